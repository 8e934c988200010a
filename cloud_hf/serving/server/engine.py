"""What the reward server needs of a backend, and the transformers backend behind that interface."""

import asyncio
import copy
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from ...critique_format import CritiqueFormat
from ...scoring import Score, context_length, score_with_transformers
from .stable_prefix import SettledText


class EngineDeadError(RuntimeError):
    """The engine has stopped and will answer no further request."""


class RewardEngine(Protocol):
    """
    A backend that serves many requests at once. Cancelling the task that awaits [`RewardEngine.score`], or closing the
    iterator of [`RewardEngine.stream`], cancels the work. Both raise [`EngineDeadError`] once the engine has stopped.

    Attributes:
        name (`str`): The model's name.
        critique (`bool`): Whether the model writes critiques.
        context_length (`int`, *optional*): Tokens of its longest sequence, critique included; `None` if not known.
    """

    name: str
    critique: bool
    context_length: int | None

    def check(self, prompt, response: str, max_new_tokens: int, critiques: list[str] | None = None) -> None:
        """
        Refuse what cannot be scored, before it is queued. Called from threads, perhaps several at once.

        Raises:
            `ValueError`: If the prompt, the response or a given critique is not usable, or the whole is longer than the
                model's context; the message gives the lengths.
        """
        ...

    async def score(
        self,
        prompt,
        response: str,
        *,
        num_critiques: int = 1,
        temperature: float = 0.0,
        max_new_tokens: int = 1024,
        critiques: list[str] | None = None,
        seed: int | None = None,
    ) -> Score:
        """Judge one response; arguments as in [`~cloud_hf.scoring.Scorer`]."""
        ...

    def stream(
        self,
        prompt,
        response: str,
        *,
        temperature: float = 0.0,
        max_new_tokens: int = 1024,
        seed: int | None = None,
    ) -> AsyncIterator[str | Score]:
        """Pieces of one critique as it is written, which joined are `Score.critique`, and then the `Score`."""
        ...

    async def close(self) -> None:
        """Stop. What still waits or runs gets [`EngineDeadError`]."""
        ...


@dataclass(eq=False)
class _Job:
    """One response that waits to be judged."""

    prompt: Any
    response: str
    critiques: list[str] | None
    options: dict[str, Any]
    ids: tuple[int, ...]
    result: asyncio.Future
    on_token: Callable[[int], None] | None = None
    abandoned: threading.Event = field(default_factory=threading.Event)

    def fits(self, batch: list["_Job"]) -> bool:
        """Whether it can be scored in one call with the jobs of `batch`."""
        if self.on_token or batch[0].on_token:
            return False
        if self.options != batch[0].options or (self.critiques is None) != (batch[0].critiques is None):
            return False
        # In one call, equal texts get equal samples
        sampled = self.options["temperature"] > 0 and self.options["seed"] is None
        return not (sampled and any(self.ids == other.ids for other in batch))

    @property
    def sequences(self) -> int:
        return self.options["num_critiques"] if self.critiques is None else len(self.critiques)


class _AbandonedError(Exception):
    """Nobody waits for the batch that is being computed."""


class TransformersEngine:
    """
    [`RewardEngine`] over a [`CLoudForRewardModeling`] in this process. Requests that wait are computed together, in one
    worker thread; streamed ones are computed alone.

    Args:
        model ([`CLoudForRewardModeling`]):
            CLoud or classic.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The model's tokenizer.
        batch_size (`int`, *optional*, defaults to `16`):
            Sequences computed at once.

    Raises:
        `ValueError`: If the tokenizer does not fit the model.
    """

    def __init__(self, model, tokenizer: PreTrainedTokenizerBase, batch_size: int = 16):
        if batch_size < 1:
            raise ValueError(f"`batch_size` is {batch_size}; it must be at least 1.")
        self.name = model.name_or_path
        self.critique = model.config.critique
        self.context_length = context_length(model.config)
        self._model = model
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        # Checks run while the worker scores, and a tokenizer is not made for two threads
        self._format = CritiqueFormat.from_config(model.config, copy.deepcopy(tokenizer))
        self._format_lock = threading.Lock()
        self._settled_text = SettledText(self._format, model.config.text_config.vocab_size)
        self._waiting: deque[_Job] = deque()
        self._running: list[_Job] = []
        self._dispatcher: asyncio.Task | None = None
        self._closed = False
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scoring")
        self._encoder = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encoding")

    def check(self, prompt, response: str, max_new_tokens: int, critiques: list[str] | None = None) -> None:
        """See [`RewardEngine`]."""
        self._encode(prompt, response, max_new_tokens, critiques)

    async def score(
        self,
        prompt,
        response: str,
        *,
        num_critiques: int = 1,
        temperature: float = 0.0,
        max_new_tokens: int = 1024,
        critiques: list[str] | None = None,
        seed: int | None = None,
    ) -> Score:
        """See [`RewardEngine`]."""
        options = {"num_critiques": num_critiques, "temperature": temperature, "max_new_tokens": max_new_tokens}
        job = await self._make_job(prompt, response, critiques, {**options, "seed": seed})
        self._queue(job)
        return await job.result

    async def stream(
        self,
        prompt,
        response: str,
        *,
        temperature: float = 0.0,
        max_new_tokens: int = 1024,
        seed: int | None = None,
    ) -> AsyncIterator[str | Score]:
        """See [`RewardEngine`]."""
        options = {"num_critiques": 1, "temperature": temperature, "max_new_tokens": max_new_tokens, "seed": seed}
        job = await self._make_job(prompt, response, None, options)
        loop, tokens = asyncio.get_running_loop(), asyncio.Queue()
        job.on_token = lambda token_id: loop.call_soon_threadsafe(tokens.put_nowait, token_id)
        job.result.add_done_callback(lambda _: tokens.put_nowait(None))
        self._queue(job)
        try:
            async with aclosing(self._pieces(tokens)) as pieces:
                written = ""
                async for piece in pieces:
                    written += piece
                    yield piece
            score = await job.result
        finally:
            job.result.cancel()
        if not score.critique.startswith(written):
            raise RuntimeError("The text that was streamed is not the start of the critique.")
        if rest := score.critique[len(written) :]:
            yield rest
        yield score

    async def close(self) -> None:
        """See [`RewardEngine`]."""
        self._closed = True
        jobs = [*self._waiting, *self._running]
        self._waiting.clear()
        for job in jobs:
            job.abandoned.set()
            if not job.result.done():
                job.result.set_exception(EngineDeadError("The engine was closed."))
        if self._dispatcher is not None:
            await self._dispatcher
        self._worker.shutdown()
        self._encoder.shutdown()

    # ---------------------------------------------------------------------------------------------------- checking

    def _encode(self, prompt, response: str, max_new_tokens: int, critiques: list[str] | None) -> tuple[int, ...]:
        """The ids of the context, once it is known to be usable."""
        with self._format_lock:
            prefix = self._format.encode_prefix(prompt, response)
            if critiques is not None:
                longest = max(len(self._format.complete(prefix, critique).input_ids) for critique in critiques)
            else:
                longest = len(prefix.input_ids) + (max_new_tokens + 1 if self.critique else 0)
        if self.context_length is not None and longest > self.context_length:
            what = "a critique of up to `max_new_tokens`" if critiques is None else "its critique"
            more = f" and {what}, {longest} together" if self.critique else ""
            raise ValueError(
                f"`prompt` and `response` have {len(prefix.input_ids)} tokens{more}, but the model's context holds "
                f"{self.context_length}."
            )
        return prefix.input_ids

    async def _make_job(self, prompt, response, critiques, options) -> _Job:
        if self._closed:
            raise EngineDeadError("The engine was closed.")
        if options["temperature"] == 0:
            options["seed"] = None  # greedy critiques of any seed can be written together
        loop, budget = asyncio.get_running_loop(), options["max_new_tokens"]
        ids = await loop.run_in_executor(self._encoder, self._encode, prompt, response, budget, critiques)
        job = _Job(prompt, response, critiques, options, ids, loop.create_future())
        job.result.add_done_callback(lambda result: job.abandoned.set() if result.cancelled() else None)
        return job

    # --------------------------------------------------------------------------------------------------- computing

    def _queue(self, job: _Job):
        if self._closed:
            raise EngineDeadError("The engine was closed.")
        self._waiting.append(job)
        if self._dispatcher is None or self._dispatcher.done():
            self._dispatcher = asyncio.create_task(self._dispatch())

    async def _dispatch(self):
        """Compute until nobody waits."""
        loop = asyncio.get_running_loop()
        while batch := self._take_batch():
            self._running = batch
            try:
                scores = await loop.run_in_executor(self._worker, self._compute, batch)
            except Exception as error:
                for job in batch:
                    if not job.result.done():
                        job.result.set_exception(error)
            else:
                for job, score in zip(batch, scores, strict=True):
                    if not job.result.done():
                        job.result.set_result(score)
            self._running = []

    def _take_batch(self) -> list[_Job]:
        """The job that has waited longest, and those that can be computed with it."""
        batch, others, sequences = [], deque(), 0
        while self._waiting:
            job = self._waiting.popleft()
            if job.abandoned.is_set():
                continue
            if not batch or (sequences + job.sequences <= self._batch_size and job.fits(batch)):
                batch.append(job)
                sequences += job.sequences
            else:
                others.append(job)
        self._waiting = others
        return batch

    def _compute(self, batch: list[_Job]) -> list[Score]:
        critiques = None if batch[0].critiques is None else [job.critiques for job in batch]
        with self._watching(batch):
            return score_with_transformers(
                self._model,
                self._tokenizer,
                [job.prompt for job in batch],
                [job.response for job in batch],
                critiques=critiques,
                batch_size=self._batch_size,
                **batch[0].options,
            )

    @contextmanager
    def _watching(self, batch: list[_Job]):
        """Look at each step of the model: stop when nobody waits any more, and pass on the tokens of a stream."""
        on_token = batch[0].on_token
        passes = 0

        def watch(module, args, kwargs):
            nonlocal passes
            if all(job.abandoned.is_set() for job in batch):
                raise _AbandonedError
            fed = kwargs["input_ids"] if "input_ids" in kwargs else args[0]  # GPT-2 passes it by position
            if on_token and passes > 0 and fed.shape[1] == 1:
                on_token(fed[0, 0].item())
            passes += 1

        hook = self._model.trunk.register_forward_pre_hook(watch, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()

    # --------------------------------------------------------------------------------------------------- streaming

    async def _pieces(self, tokens: asyncio.Queue) -> AsyncIterator[str]:
        """What each token adds to the text that is settled."""
        ids, written = [], ""
        while (token_id := await tokens.get()) is not None:
            if token_id == self._format.end_token_id:
                continue
            ids.append(token_id)
            text = self._settled_text(ids)
            if len(text) > len(written):
                yield text[len(written) :]
                written = text
