"""The reward server's vLLM backend: one request to the engine per response, any number at once."""

import asyncio
import threading
import uuid
from collections.abc import AsyncIterator
from contextlib import ExitStack, aclosing

from transformers import AutoTokenizer
from vllm import AsyncEngineArgs, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError as VLLMEngineDeadError

from ...configuration_cloud import read_config
from ...critique_format import CritiqueFormat, EncodedCritique
from ...generation import Sample
from ...scoring import Score, ScoringRequest, read_request, with_rewards
from ..server.engine import EngineDeadError
from ..server.stable_prefix import SettledText
from .folder import servable_model
from .requests import READING_TOKENS, VLLMRequests, seed_for


# Seconds after which a request looks whether the engine still lives
_SECONDS_BETWEEN_LOOKS = 1.0


class VLLMEngine:
    """
    [`RewardEngine`] over vLLM's asynchronous engine.

    Args:
        model (`str`):
            Hub id or folder of a CLoud or classic model, or of a LoRA adapter.
        **vllm_options:
            Passed to `vllm.AsyncEngineArgs` (`dtype`, `max_model_len`, `tensor_parallel_size`, …).

    Raises:
        `ValueError`: If `model` is no CLoud model.
    """

    def __init__(self, model: str, **vllm_options):
        self.name = str(model)
        self._resources = ExitStack()
        folder = self._resources.enter_context(servable_model(self.name))
        self.config = read_config(folder)
        self.critique = self.config.critique
        self.critique_format = CritiqueFormat.from_config(self.config, AutoTokenizer.from_pretrained(folder))
        self._requests = VLLMRequests(self.critique_format, self.config)
        self._settled_text = SettledText(self.critique_format, self.config.text_config.vocab_size)
        self._format_lock = threading.Lock()  # checks come from threads, and a tokenizer is not made for two
        self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(model=folder, **vllm_options))
        self.context_length = self._requests.context_length(self._llm.model_config.max_model_len)

    def check(self, prompt, response: str, max_new_tokens: int, critiques: list[str] | None = None):
        """Raise `ValueError` if the prompt, the response, given critiques or their length is not usable."""
        self._read(
            prompt, response, max_new_tokens=max_new_tokens, critiques=None if critiques is None else [critiques]
        )

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
        """Judge one response. See [`Scorer`]; cancelling the call takes the request off the engine."""
        request = self._read(
            prompt,
            response,
            num_critiques=num_critiques,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            critiques=None if critiques is None else [critiques],
        )
        if request.given is not None:
            return await self._with_rewards_read(request.given_samples()[0], request.given[0])
        params = self._writing(request, num_critiques, temperature, max_new_tokens, seed)
        output = await self._finish(self._requests.prompt_of(request.prefixes[0]), params)
        samples = self._requests.samples(output, max_new_tokens)
        if self.critique_format.rereads_critiques:
            return await self._with_rewards_read(samples, request.reread(0, samples))
        return Score.of(samples)

    async def stream(
        self, prompt, response: str, *, temperature: float = 0.0, max_new_tokens: int = 1024, seed: int | None = None
    ) -> AsyncIterator[str | Score]:
        """Yield a critique piece by piece, then its [`Score`]. Closing the generator takes the request off the engine."""
        request = self._read(prompt, response, temperature=temperature, max_new_tokens=max_new_tokens)
        if request.given is not None:  # a classic model
            yield await self._with_rewards_read(request.given_samples()[0], request.given[0])
            return
        kind = {"output_kind": RequestOutputKind.CUMULATIVE}
        params = self._writing(request, 1, temperature, max_new_tokens, seed, **kind)
        shown, output = "", None
        async with aclosing(self._generate(self._requests.prompt_of(request.prefixes[0]), params)) as outputs:
            async for output in outputs:
                ids = list(output.outputs[0].token_ids)[:max_new_tokens]
                if self.config.reward_token_id in ids:
                    ids = ids[: ids.index(self.config.reward_token_id)]
                text = self._settled_text(ids)
                if len(text) > len(shown):
                    yield text[len(shown) :]
                    shown = text
        samples = self._requests.samples(output, max_new_tokens)
        if len(samples[0].critique) > len(shown):
            yield samples[0].critique[len(shown) :]
        if self.critique_format.rereads_critiques:
            yield await self._with_rewards_read(samples, request.reread(0, samples))
        else:
            yield Score.of(samples)

    async def close(self):
        """Stop the engine and free what it holds."""
        self._llm.shutdown()
        self._resources.close()

    def _read(self, prompt, response, **options) -> ScoringRequest:
        defaults = {"num_critiques": 1, "temperature": 0.0, "max_new_tokens": 1, "critiques": None}
        with self._format_lock:
            return read_request(
                self.critique_format,
                self.config,
                [prompt],
                [response],
                **{**defaults, **options},
                context=self._llm.model_config.max_model_len,
                reserved_tokens=self._requests.reserved_tokens,
                reading_tokens=READING_TOKENS,
            )

    def _writing(self, request, num_critiques, temperature, max_new_tokens, seed, **options) -> SamplingParams:
        own_seed = seed_for(seed, temperature, request.prefixes[0], self._llm.vllm_config)
        return self._requests.writing(num_critiques, temperature, max_new_tokens, own_seed, **options)

    async def _generate(self, prompt: dict, params: SamplingParams) -> AsyncIterator[RequestOutput]:
        outputs = self._llm.generate(prompt, params, request_id=uuid.uuid4().hex)
        try:
            async with aclosing(outputs):
                while (output := await self._next(outputs)) is not None:
                    yield output
        except VLLMEngineDeadError as error:
            raise EngineDeadError("vLLM's engine has stopped; its own log says why.") from error

    async def _next(self, outputs: AsyncIterator[RequestOutput]) -> RequestOutput | None:
        """The next output. vLLM tells nothing to requests that come while its engine dies, so it is asked now and then."""
        step = asyncio.ensure_future(anext(outputs, None))
        try:
            while not step.done():
                await asyncio.wait({step}, timeout=_SECONDS_BETWEEN_LOOKS)
                if not step.done() and self._llm.errored:
                    raise VLLMEngineDeadError()
            return step.result()
        finally:
            step.cancel()
            await asyncio.wait({step}, timeout=_SECONDS_BETWEEN_LOOKS)

    async def _finish(self, prompt: dict, params: SamplingParams):
        async with aclosing(self._generate(prompt, params)) as outputs:
            async for output in outputs:
                last = output
        return last

    async def _with_rewards_read(self, samples: list[Sample], sequences: list[EncodedCritique]) -> Score:
        params = self._requests.reading()
        prompts = [self._requests.sequence_of(encoded) for encoded in sequences]
        outputs = await asyncio.gather(*(self._finish(prompt, params) for prompt in prompts))
        return with_rewards([samples], [self._requests.reward(output) for output in outputs])[0]
