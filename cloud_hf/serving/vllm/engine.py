"""The reward server's vLLM backend: one request to the engine per response, with any number of concurrent requests."""

import asyncio
import threading
import uuid
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from itertools import takewhile

from vllm import AsyncEngineArgs, RequestOutput  # pyright: ignore[reportAttributeAccessIssue]
from vllm.inputs import TokensInput
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError as VLLMEngineDeadError

from ...critique_format import EncodedCritique
from ...generation import Sample
from ...interrupts import processes_without_interrupts
from ...scores import Sampling, Score
from ...scoring import ScoringRequest
from ..server.engine import EncodingEngine, EngineDeadError, StablePrefix
from .requests import VLLMRequests


# While a request waits, the engine is checked at this interval, in seconds, in case it has died
_SECONDS_BETWEEN_CHECKS = 1.0


class VLLMEngine(EncodingEngine):
    """
    [`RewardEngine`] that runs vLLM's asynchronous engine. `vllm_options` are passed to `vllm.AsyncEngineArgs`. Raises `ValueError` if
    `model` is not a CLoud or classic model, or if a vLLM option is unknown, cannot be used or names files other than the model's.
    """

    def __init__(self, model: str, **vllm_options):
        self.name = str(model)
        self._resources = ExitStack()
        self._requests, folder, options = VLLMRequests.load(self.name, vllm_options, self._resources)
        self.config, self.critique_format = self._requests.config, self._requests.critique_format
        self.critique = self.config.critique
        self._stable_prefix = StablePrefix(self.critique_format, self.config.text_config.vocab_size)
        self._format_lock = threading.Lock()  # checks run in threads, and tokenizers are not thread-safe
        with processes_without_interrupts():
            self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(model=folder, **options))
        self.runs_on = f"{str(self._llm.model_config.dtype).removeprefix('torch.')} by vLLM"
        self.context_length: int | None = self._requests.context_length(self._llm.model_config.max_model_len)

    def encode(self, prompt, response, sampling: Sampling, critiques: list[str] | None = None) -> ScoringRequest:
        """See [`EncodingEngine`]."""
        with self._format_lock:
            given = None if critiques is None else [critiques]
            return self._requests.read([prompt], [response], sampling, given, self._llm.model_config.max_model_len)

    async def score_encoded(self, request: ScoringRequest, sampling: Sampling) -> Score:
        """See [`EncodingEngine`]. Cancelling the call aborts the request in the engine."""
        if request.given is not None:
            return await self._with_rewards_read(request, request.given_samples()[0], request.given[0])
        params = self._requests.writing(sampling, request.prefixes[0], self._llm.vllm_config)
        output = await self._finish(self._requests.prompt_of(request.prefixes[0]), params)
        return await self._score(request, self._requests.samples(output, sampling))

    async def _score(self, request: ScoringRequest, samples: list[Sample]) -> Score:
        """Return the score for finished critiques. In the reference format, the rewards are read in a second pass."""
        if self.critique_format.rereads_critiques:
            return await self._with_rewards_read(request, samples, request.reread(0, samples))
        return request.score(0, samples)

    async def stream_encoded(self, request: ScoringRequest, sampling: Sampling) -> AsyncGenerator[str | Score, None]:
        """See [`EncodingEngine`]. Closing the generator aborts the request in the engine."""
        if request.given is not None:  # a classic model
            yield await self._with_rewards_read(request, request.given_samples()[0], request.given[0])
            return
        kind = RequestOutputKind.CUMULATIVE
        params = self._requests.writing(sampling, request.prefixes[0], self._llm.vllm_config, output_kind=kind)
        shown, output = "", None
        async with aclosing(self._generate(self._requests.prompt_of(request.prefixes[0]), params)) as outputs:
            async for output in outputs:
                ids = list(output.outputs[0].token_ids)[: sampling.max_new_tokens]
                text = self._stable_prefix(list(takewhile(lambda one: one != self._requests.reward_id, ids)))
                if piece := text[len(shown) :]:
                    shown += piece
                    yield piece
        assert output is not None, "vLLM finished a request without an output"
        samples = self._requests.samples(output, sampling)
        if rest := samples[0].critique[len(shown) :]:
            yield rest
        yield await self._score(request, samples)

    async def close(self):
        """Stop the engine and free its resources."""
        self._llm.shutdown()
        self._resources.close()

    async def _generate(self, prompt: TokensInput, params: SamplingParams) -> AsyncGenerator[RequestOutput, None]:
        outputs = self._llm.generate(prompt, params, request_id=uuid.uuid4().hex)
        try:
            async with aclosing(outputs):
                while (output := await self._next(outputs)) is not None:
                    yield output
        except VLLMEngineDeadError as error:
            raise EngineDeadError("vLLM's engine has stopped; see its log for the reason.") from error

    async def _next(self, outputs: AsyncGenerator[RequestOutput, None]) -> RequestOutput | None:
        """Wait for the next output. vLLM does not wake requests that arrive while its engine is dying, so poll the engine's state."""
        step = asyncio.ensure_future(anext(outputs, None))
        try:
            while not step.done():
                await asyncio.wait({step}, timeout=_SECONDS_BETWEEN_CHECKS)
                if not step.done() and self._llm.errored:
                    raise VLLMEngineDeadError()
            return step.result()
        finally:
            step.cancel()
            await asyncio.wait({step}, timeout=_SECONDS_BETWEEN_CHECKS)

    async def _finish(self, prompt: TokensInput, params: SamplingParams) -> RequestOutput:
        async with aclosing(self._generate(prompt, params)) as outputs:
            return [output async for output in outputs][-1]

    async def _with_rewards_read(
        self, request: ScoringRequest, samples: list[Sample], sequences: list[EncodedCritique]
    ) -> Score:
        params = self._requests.reading()
        prompts = [self._requests.sequence_of(encoded) for encoded in sequences]
        outputs = await asyncio.gather(*(self._finish(prompt, params) for prompt in prompts))
        return request.with_rewards([samples], [self._requests.reward(output) for output in outputs])[0]
