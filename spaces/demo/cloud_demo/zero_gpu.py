"""
On a ZeroGPU Space: each request borrows a GPU, in a process of its own, for as long as it runs.

https://huggingface.co/docs/hub/spaces-zerogpu
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import spaces  # there only, where it must come before the GPU is used
from cloud_hf.scoring import Score
from cloud_hf.serving.server.engine import TransformersEngine


_GPU_SECONDS = 120
# A borrowed process sees what stood here when it was split off; models cannot be sent to it
_engines: dict[str, TransformersEngine] = {}
_END = object()


@spaces.GPU(duration=_GPU_SECONDS)
def _write(name: str, prompt, response: str, options: dict[str, Any]) -> Iterator[str | Score]:
    pieces = _engines[name].stream(prompt, response, **options)
    with asyncio.Runner() as runner:
        while (piece := runner.run(_next(pieces))) is not _END:
            yield piece


@spaces.GPU(duration=_GPU_SECONDS)
def _judge(name: str, prompt, response: str, options: dict[str, Any]) -> Score:
    return asyncio.run(_engines[name].score(prompt, response, **options))


class ZeroGPUEngine:
    """
    `RewardEngine` over `spaces.GPU`. Arguments are those of [`TransformersEngine`].

    Its own process only checks requests: threads begun there would be missing in those with a GPU.
    """

    def __init__(self, model, tokenizer, batch_size: int = 16):
        self._engine = TransformersEngine(model, tokenizer, batch_size)
        engine = self._engine
        self.name, self.critique, self.context_length = engine.name, engine.critique, engine.context_length
        _engines[self.name] = self._engine

    def check(self, prompt, response: str, max_new_tokens: int, critiques: list[str] | None = None) -> None:
        """See `RewardEngine`."""
        self._engine.check(prompt, response, max_new_tokens, critiques)

    async def score(self, prompt, response: str, **options) -> Score:
        """See `RewardEngine`."""
        return await asyncio.to_thread(_judge, self.name, prompt, response, options)

    async def stream(self, prompt, response: str, **options) -> AsyncIterator[str | Score]:
        """See `RewardEngine`."""
        pieces = _write(self.name, prompt, response, options)
        while (piece := await asyncio.to_thread(next, pieces, _END)) is not _END:
            yield piece

    async def close(self) -> None:
        """See `RewardEngine`."""
        await self._engine.close()


async def _next(pieces: AsyncIterator):
    return await anext(pieces, _END)
