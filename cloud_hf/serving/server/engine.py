"""The reward server's interface to a backend, the transformers backend, and the decoding of unfinished critiques."""

import asyncio
import copy
import re
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from ...critique_format import CritiqueFormat
from ...scores import Sampling, Score
from ...scoring import ScoringRequest, context_length, read_request, score_request


class EngineDeadError(RuntimeError):
    """The engine has stopped and accepts no more requests."""


class RewardEngine(Protocol):
    """
    A backend that serves many requests concurrently. Cancelling the task that awaits [`RewardEngine.score`], or closing the generator of
    [`RewardEngine.stream`], cancels the work. Both methods raise [`EngineDeadError`] after the engine has stopped.
    """

    name: str
    critique: bool
    context_length: int | None  # in tokens, including the critique; `None` if unknown
    runs_on: str  # data type and device, for the log

    def check(self, prompt, response: str, max_new_tokens: int, critiques: list[str] | None = None) -> None:
        """
        Check a row before it is queued. Raises `ValueError` if its prompt, response or given critiques cannot be used or do not fit in
        the model's context (the message then gives the lengths). Called from several threads.
        """
        ...

    async def score(self, prompt, response: str, sampling: Sampling, critiques: list[str] | None = None) -> Score:
        """Score one response. If `critiques` are given, score these instead of writing new ones."""
        ...

    def stream(self, prompt, response: str, sampling: Sampling) -> AsyncGenerator[str | Score, None]:
        """Yield one critique piece by piece as it is written, then its `Score`."""
        ...

    async def close(self) -> None:
        """Stop the engine. Waiting and running requests raise [`EngineDeadError`]."""
        ...


class EncodingEngine(RewardEngine, Protocol):
    """A [`RewardEngine`] that can also score rows already encoded by [`EncodingEngine.encode`], so that no row is encoded twice."""

    def encode(self, prompt, response, sampling: Sampling, critiques: list[str] | None = None) -> ScoringRequest:
        """Check a row as [`RewardEngine.check`] does, and encode it. Called from several threads."""
        ...

    async def score_encoded(self, request: ScoringRequest, sampling: Sampling) -> Score:
        """Score one response."""
        ...

    def stream_encoded(self, request: ScoringRequest, sampling: Sampling) -> AsyncGenerator[str | Score, None]:
        """Yield one critique piece by piece as it is written, then its `Score`."""
        ...

    def check(self, prompt, response: str, max_new_tokens: int, critiques: list[str] | None = None) -> None:
        """See [`RewardEngine`]."""
        self.encode(prompt, response, Sampling(max_new_tokens=max_new_tokens), critiques)

    async def score(self, prompt, response: str, sampling: Sampling, critiques: list[str] | None = None) -> Score:
        """See [`RewardEngine`]."""
        request = await asyncio.to_thread(self.encode, prompt, response, sampling, critiques)
        return await self.score_encoded(request, sampling)

    async def stream(self, prompt, response: str, sampling: Sampling) -> AsyncGenerator[str | Score, None]:
        """See [`RewardEngine`]."""
        request = await asyncio.to_thread(self.encode, prompt, response, sampling)
        async with aclosing(self.stream_encoded(request, sampling)) as pieces:
            async for piece in pieces:
                yield piece


class StablePrefix:
    """
    Decodes the ids of an unfinished critique, but returns only text that later tokens can no longer change. `vocab_size` counts all ids
    that the model can generate, including those without a token.
    """

    def __init__(self, critique_format: CritiqueFormat, vocab_size: int):
        self._format = critique_format
        tokenizer = critique_format.tokenizer
        tokens = dict.fromkeys(range(vocab_size), "") | {id: token for token, id in tokenizer.get_vocab().items()}
        # The tokenizer decodes a run of byte tokens (such as `<0xE2>`) as a unit, so a later byte token may still change the text of the
        # whole run. Ids without text do not end a run
        byte_ids = {id for id, token in tokens.items() if re.fullmatch(r"<0x[0-9A-F]{2}>", token)}
        silent_ids = {id for id, token in tokens.items() if not token} | set(tokenizer.all_special_ids)
        self._unstable_ids = frozenset(byte_ids | silent_ids) if byte_ids else frozenset()

    def __call__(self, critique_ids: list[int]) -> str:
        """Decode the critique so far, without text that may still change."""
        length = len(critique_ids)
        while length and critique_ids[length - 1] in self._unstable_ids:
            length -= 1
        # A replacement character at the end may stand for the first bytes of a character whose other bytes are yet to come
        text = self._format.decode(critique_ids[:length]).rstrip("\ufffd")
        if self._format.rereads_critiques:
            # Decoding removes spaces before punctuation, so the space before the last word may still disappear
            text = text[: max(text.rfind(" "), 0)]
        return text.rstrip()


@dataclass(eq=False)
class _Job:
    request: ScoringRequest
    sampling: Sampling
    result: asyncio.Future
    on_token: Callable[[int], Any] | None = None
    abandoned: threading.Event = field(default_factory=threading.Event)
    alone: bool = False

    def fits(self, batch: list["_Job"]) -> bool:
        """Return whether one call can score this job together with those in `batch`."""
        if self.on_token or batch[0].on_token or self.alone or batch[0].alone:
            return False
        if self.sampling != batch[0].sampling or (self.request.given is None) != (batch[0].request.given is None):
            return False
        # Within one call, identical inputs would get identical samples
        sampled = self.sampling.temperature > 0 and self.sampling.seed is None
        return not (sampled and any(self.ids == other.ids for other in batch))

    @property
    def sequences(self) -> int:
        return self.sampling.num_critiques if self.request.given is None else len(self.request.given[0])

    @property
    def ids(self) -> tuple[int, ...]:
        return self.request.prefixes[0].input_ids


class _AbandonedError(Exception):
    """All clients of the running batch have disconnected."""


class TransformersEngine(EncodingEngine):
    """
    [`RewardEngine`] that runs a [`CLoudForRewardModeling`] in this process. A worker thread scores waiting requests in batches of
    `batch_size` sequences, and handles streams one at a time. Raises `ValueError` if the tokenizer does not match the model.
    """

    def __init__(self, model, tokenizer: PreTrainedTokenizerBase, batch_size: int = 16):
        if batch_size < 1:
            raise ValueError(f"`batch_size` is {batch_size}; it must be at least 1.")
        self.name = model.name_or_path
        self.critique = model.config.critique
        self.context_length = context_length(model.config)
        self.runs_on = f"{str(model.dtype).removeprefix('torch.')} on {model.device}"
        self._model = model
        self._scoring_format = CritiqueFormat.from_config(model.config, tokenizer)
        self._batch_size = batch_size
        # A copy, because checks run while the worker scores, and tokenizers are not thread-safe
        self._format = CritiqueFormat.from_config(model.config, copy.deepcopy(tokenizer))
        self._format_lock = threading.Lock()
        self._stable_prefix = StablePrefix(self._format, model.config.text_config.vocab_size)
        self._waiting: deque[_Job] = deque()
        self._running: list[_Job] = []
        self._dispatcher: asyncio.Task | None = None
        self._closed = False
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scoring")

    def encode(self, prompt, response, sampling: Sampling, critiques: list[str] | None = None) -> ScoringRequest:
        """See [`EncodingEngine`]."""
        given = None if critiques is None else [critiques]
        with self._format_lock:
            return read_request(self._format, self._model.config, [prompt], [response], sampling, given)

    async def score_encoded(self, request: ScoringRequest, sampling: Sampling) -> Score:
        """See [`EncodingEngine`]."""
        return await self._queue(request, sampling).result

    async def stream_encoded(self, request: ScoringRequest, sampling: Sampling) -> AsyncGenerator[str | Score, None]:
        """See [`EncodingEngine`]."""
        loop = asyncio.get_running_loop()
        tokens: asyncio.Queue[int | None] = asyncio.Queue()
        job = self._queue(request, sampling, lambda token_id: loop.call_soon_threadsafe(tokens.put_nowait, token_id))
        job.result.add_done_callback(lambda _: tokens.put_nowait(None))
        ids, written = [], ""
        try:
            while (token_id := await tokens.get()) is not None:
                if token_id == self._format.end_token_id:
                    continue
                ids.append(token_id)
                if piece := self._stable_prefix(ids)[len(written) :]:
                    written += piece
                    yield piece
            score = await job.result
        finally:
            job.result.cancel()
        if not score.critique.startswith(written):
            raise RuntimeError("The streamed text is not the start of the critique.")
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

    # --------------------------------------------------------------------------------------------------- computing

    def _queue(
        self, request: ScoringRequest, sampling: Sampling, on_token: Callable[[int], Any] | None = None
    ) -> _Job:
        if self._closed:
            raise EngineDeadError("The engine was closed.")
        if sampling.temperature == 0:
            sampling = replace(sampling, seed=None)  # greedy jobs can share a batch regardless of their seeds
        job = _Job(request, sampling, asyncio.get_running_loop().create_future(), on_token)
        job.result.add_done_callback(lambda result: job.abandoned.set() if result.cancelled() else None)
        self._waiting.append(job)
        if self._dispatcher is None or self._dispatcher.done():
            self._dispatcher = asyncio.create_task(self._dispatch())
        return job

    async def _dispatch(self):
        """Score batches until no job is waiting."""
        loop = asyncio.get_running_loop()
        while batch := self._take_batch():
            self._running = batch
            try:
                scores = await loop.run_in_executor(self._worker, self._compute, batch)
            except Exception as error:
                if isinstance(error, ValueError) and len(batch) > 1:
                    # One row's fault: score each job again, by itself
                    for job in batch:
                        job.alone = True
                    self._waiting.extendleft(reversed(batch))
                    batch = []
                for job in batch:
                    if not job.result.done():
                        job.result.set_exception(error)
            else:
                for job, score in zip(batch, scores, strict=True):
                    if not job.result.done():
                        job.result.set_result(score)
            self._running = []

    def _take_batch(self) -> list[_Job]:
        """Dequeue the longest-waiting job, and the others that fit in one batch with it."""
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
        request = ScoringRequest.joined(self._scoring_format, [job.request for job in batch])
        with self._watching(batch):
            return score_request(self._model, request, batch[0].sampling, self._batch_size)

    @contextmanager
    def _watching(self, batch: list[_Job]):
        """Hook into each forward pass of the model: abort when all clients have disconnected, and pass on the tokens of a stream."""
        on_token = batch[0].on_token
        passes = 0

        def watch(module, args, kwargs):
            nonlocal passes
            if all(job.abandoned.is_set() for job in batch):
                raise _AbandonedError
            fed = kwargs["input_ids"] if "input_ids" in kwargs else args[0]  # GPT-2 passes it by position
            # The first pass feeds the prompt; each later pass feeds the token sampled by the previous one
            if on_token and passes > 0 and fed.shape[1] == 1:
                on_token(fed[0, 0].item())
            passes += 1

        # OPT calls the decoder inside its trunk without the trunk
        hook = self._model.trunk.get_decoder().register_forward_pre_hook(watch, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()
