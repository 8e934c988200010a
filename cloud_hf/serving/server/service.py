"""Score the rows of requests, with checks, a queue and deadlines, and turn errors into HTTP statuses."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from starlette.exceptions import HTTPException

from ...chat_parsing import RenderedChats
from ...scores import NotFinite, Sampling, Score
from ...scoring import ScoringRequest
from .contracts import Row, count_characters
from .engine import EncodingEngine, EngineDeadError
from .limits import Limits, refusal
from .middleware import Lifecycle, Metrics, RequestRecord


_T = TypeVar("_T")

# A text is queued as if it had arrived later than it did, by one second per this many characters. Short texts thus overtake long ones
# that arrived shortly before them, but no text waits forever
_CHARS_PER_SECOND = 20_000


class Encoding:
    """
    Runs work on untrusted text in a thread, one text at a time, to keep the event loop responsive. Among texts that arrive together,
    the shortest come first. Work that is cancelled before its turn is not started.
    """

    def __init__(self):
        self._numbers = itertools.count()
        self._waiting: asyncio.PriorityQueue = asyncio.PriorityQueue()
        self._loop: asyncio.Task | None = None

    async def run(self, size: int, function: Callable[..., _T], *args) -> _T:
        """Call `function` when its turn comes. `size` is the number of characters that it processes."""
        if self._loop is None:
            self._loop = asyncio.create_task(self._work())
        loop = asyncio.get_running_loop()
        result: asyncio.Future[_T] = loop.create_future()
        due = loop.time() + size / _CHARS_PER_SECOND
        self._waiting.put_nowait((due, next(self._numbers), result, partial(function, *args)))
        return await result

    async def _work(self):
        while True:
            *_, result, work = await self._waiting.get()
            if result.cancelled():
                continue
            [outcome] = await asyncio.gather(asyncio.to_thread(work), return_exceptions=True)
            if isinstance(outcome, BaseException) and not result.done():
                result.set_exception(outcome)
            elif not result.done():
                result.set_result(outcome)

    def close(self):
        """Start no further work."""
        if self._loop is not None:
            self._loop.cancel()


class RewardService:
    """Scores the rows of requests with an engine, subject to limits. Its methods raise `HTTPException`."""

    def __init__(
        self,
        engine: EncodingEngine,
        limits: Limits,
        metrics: Metrics,
        lifecycle: Lifecycle,
        chats: RenderedChats | None = None,
        model_version: str | None = None,
    ):
        self.engine = engine
        self.model_version = model_version
        # Anyone can request the name, so show only the last part of a folder's path
        self.name = Path(engine.name).name if Path(engine.name).is_dir() else engine.name
        self.limits = limits
        self.metrics = metrics
        self.lifecycle = lifecycle
        self.chats = chats
        self.queued = 0
        self._encoding = Encoding()

    async def close(self):
        """Stop the engine."""
        self._encoding.close()
        await self.engine.close()

    async def score(self, rows: list[Row], sampling: Sampling, record: RequestRecord) -> list[Score]:
        """Score all rows, in order. All of them are checked before any scoring starts."""
        critiques = sum(sampling.num_critiques if row.critiques is None else len(row.critiques) for row in rows)
        self._admit(critiques, sampling, record, any(row.critiques for row in rows))
        async with self._answering(self._deadline()):
            return await self._score(rows, sampling, record)

    async def _score(self, rows: list[Row], sampling: Sampling, record: RequestRecord) -> list[Score]:
        requests = [await self._encode(index, row, sampling) for index, row in enumerate(rows)]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._score_row(index, request, sampling))
                    for index, request in enumerate(requests)
                ]
        except ExceptionGroup as errors:  # the group has cancelled the other rows
            raise errors.exceptions[0] from None
        scores = [task.result() for task in tasks]
        for score in scores:
            self._count(score, record)
        return scores

    async def score_texts(
        self, texts: list[str], prompts: list[str] | None, field: str, record: RequestRecord
    ) -> list[Score]:
        """Score conversations that were rendered with the policy's chat template; `field` names them in error messages."""
        if self.chats is None:
            raise HTTPException(501, "This server cannot parse rendered chats; start it with `--policy_tokenizer`.")
        sampling = Sampling(max_new_tokens=self.limits.max_new_tokens)
        self._admit(len(texts), sampling, record)
        async with self._answering(self._deadline()):
            rows = []
            for index, (text, prompt) in enumerate(zip(texts, prompts or [None] * len(texts), strict=True)):
                self._check_length(index, f"`{field}`", len(text))
                rows.append(await self._encoding.run(len(text), _read_chat, self.chats, text, prompt, index, field))
            try:
                return await self._score(rows, sampling, record)
            except HTTPException as error:  # these requests have no such field
                error.detail = str(error.detail).replace("`max_new_tokens`", "the server's `--max_new_tokens`")
                raise

    async def stream(self, row: Row, sampling: Sampling, record: RequestRecord) -> AsyncGenerator[str | Score, None]:
        """Check a row, then return an iterator that yields its critique piece by piece, and then its score."""
        self._admit(1, sampling, record)
        deadline = self._deadline()
        async with self._answering(deadline):
            request = await self._encode(0, row, sampling)
        return self._pieces(request, sampling, record, deadline)

    async def _pieces(self, request: ScoringRequest, sampling: Sampling, record: RequestRecord, deadline: float):
        async with aclosing(self.engine.stream_encoded(request, sampling)) as pieces:
            while True:
                # The deadline covers each step, not the loop: a timeout around `yield` would interrupt the consumer of the pieces
                async with self._answering(deadline):
                    with _naming_row(0):
                        piece = await anext(pieces, None)
                if piece is None:
                    return
                if isinstance(piece, Score):
                    self._count(piece, record)
                yield piece

    # ---------------------------------------------------------------------------------------------------- admission

    def _admit(self, critiques: int, sampling: Sampling, record: RequestRecord, are_given: bool = False):
        """Check the request's size, and reserve places in the queue until the request ends."""
        limits, record.items = self.limits, critiques
        if critiques > limits.max_batch:
            what = f"The request asks for {critiques} critiques"
            raise HTTPException(422, refusal(what, "max_batch", limits.max_batch))
        if sampling.max_new_tokens > limits.max_new_tokens:
            what = f"`max_new_tokens` is {sampling.max_new_tokens}"
            raise HTTPException(422, refusal(what, "max_new_tokens", limits.max_new_tokens))
        if not self.engine.critique and (sampling.num_critiques > 1 or are_given):
            raise HTTPException(422, "This is a classic reward model: drop `num_critiques` and `critiques`.")
        if self.lifecycle.engine_dead:
            raise HTTPException(503, "The engine has stopped.")
        if self.queued + critiques > limits.max_queue:
            error = refusal(f"{self.queued} critiques are already waiting", "max_queue", limits.max_queue)
            raise HTTPException(429, error, {"Retry-After": "1"})
        self._reserve(critiques)
        record.resources.callback(self._reserve, -critiques)

    def _reserve(self, critiques: int):
        self.queued += critiques
        self.metrics.queue.set(self.queued)

    async def _encode(self, index: int, row: Row, sampling: Sampling) -> ScoringRequest:
        """Check a row against the limits, then encode it when its turn comes."""
        messages = row.prompt.get("messages") if isinstance(row.prompt, dict) else row.prompt
        if isinstance(messages, list) and len(messages) > self.limits.max_messages:
            what = f"Row {index}: `prompt` has {len(messages)} messages"
            raise HTTPException(422, refusal(what, "max_messages", self.limits.max_messages))
        size = count_characters([row.prompt, row.response])
        self._check_length(index, "prompt and response", size)
        self._check_length(index, "a critique", max(map(len, row.critiques or [""])))
        with _naming_row(index):
            work = self.engine.encode, row.prompt, row.response, sampling, row.critiques
            return await self._encoding.run(size + count_characters(row.critiques), *work)

    def _check_length(self, index: int, name: str, characters: int):
        """Refuse text that is too long to fit in the context, without encoding it first."""
        context, most = self.engine.context_length, self.limits.max_chars_per_token
        if context is not None and characters > context * most:
            what = (
                f"Row {index}: {name} of {characters} characters will not fit in the model's context of {context} tokens, even "
                f"at {most:g} characters per token"
            )
            raise HTTPException(422, refusal(what, "max_chars_per_token", most))

    # ------------------------------------------------------------------------------------------------------ scoring

    async def _score_row(self, index: int, request: ScoringRequest, sampling: Sampling) -> Score:
        with _naming_row(index):
            return await self.engine.score_encoded(request, sampling)

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self.limits.request_timeout

    @asynccontextmanager
    async def _answering(self, deadline: float):
        """Apply a deadline, and turn the engine's errors into HTTP statuses."""
        try:
            async with asyncio.timeout_at(deadline):
                yield
        except TimeoutError:
            limit = self.limits.request_timeout
            raise HTTPException(504, f"The request took longer than {limit:g} seconds and was cancelled.") from None
        except EngineDeadError:
            self.lifecycle.engine_dead = True
            raise HTTPException(503, "The engine has stopped.") from None

    def _count(self, score: Score, record: RequestRecord):
        tokens = sum(map(len, score.critique_ids))
        record.critique_tokens += tokens
        self.metrics.tokens.inc(tokens)
        self.metrics.truncated.inc(score.finish_reasons.count("length"))


def _read_chat(chats: RenderedChats, text: str, prompt: str | None, index: int, field: str) -> Row:
    try:
        *messages, last = chats.parse(text, prompt)
        if last["role"] != "assistant":
            raise ValueError(f"It ends with a {last['role']} turn; it must end with the assistant turn to judge.")
    except ValueError as error:
        raise HTTPException(422, f"Row {index}: `{field}` cannot be parsed as a conversation: {error}") from error
    return Row(messages, last["content"])


@contextmanager
def _naming_row(index: int):
    """Turn an engine's `ValueError` about a row into a 422, and a non-finite reward into a 500."""
    try:
        yield
    except ValueError as error:
        # An engine sees one row at a time and may number it 0
        raise HTTPException(422, f"Row {index}: {str(error).removeprefix('Row 0: ')}") from error
    except NotFinite as error:
        raise HTTPException(500, f"Row {index}: {error}") from error
