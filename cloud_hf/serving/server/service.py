"""Scoring of requests: checks, queue, deadlines, and errors as HTTP statuses."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any

from starlette.exceptions import HTTPException

from ...rendered_chats import RenderedChats
from ...scores import NotFinite, Sampling, Score
from .contracts import Row
from .engine import EngineDeadError, RewardEngine
from .limits import Limits
from .middleware import Lifecycle, Metrics, RequestRecord


class RewardService:
    """Scores the rows of requests with an engine, within limits. Its methods raise `HTTPException`."""

    def __init__(
        self,
        engine: RewardEngine,
        limits: Limits,
        metrics: Metrics,
        lifecycle: Lifecycle,
        chats: RenderedChats | None = None,
    ):
        self.engine = engine
        self.limits = limits
        self.metrics = metrics
        self.lifecycle = lifecycle
        self.chats = chats
        self.queued = 0
        # Tokenising a large request would block the event loop. Only two threads, because each keeps its own memory
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="checking")

    async def close(self):
        """Stop the engine."""
        self._threads.shutdown(cancel_futures=True)
        await self.engine.close()

    async def score(self, rows: list[Row], sampling: Sampling, record: RequestRecord) -> list[Score]:
        """Score all rows, in order. All of them are checked before any work starts."""
        self._admit(rows, sampling, record)
        async with self._answering(self._deadline()):
            await self._in_thread(self._check, rows, sampling.max_new_tokens)
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [
                        group.create_task(self._score_row(index, row, sampling)) for index, row in enumerate(rows)
                    ]
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None
        scores = [task.result() for task in tasks]
        for score in scores:
            self._count(score, record)
        return scores

    async def score_texts(
        self, texts: list[str], prompts: list[str] | None, field: str, record: RequestRecord
    ) -> list[Score]:
        """Score conversations that were rendered with the policy's chat template; `field` names them in errors."""
        if self.chats is None:
            raise HTTPException(501, "This server cannot read rendered chats; start it with `--policy_tokenizer`.")
        rows = await self._in_thread(_read_chats, self.chats, texts, prompts, field)
        return await self.score(rows, Sampling(max_new_tokens=self.limits.max_new_tokens), record)

    async def stream(self, row: Row, sampling: Sampling, record: RequestRecord) -> AsyncGenerator[str | Score, None]:
        """Check a row, then return an iterator over the pieces of its critique and, last, its score."""
        self._admit([row], sampling, record)
        deadline = self._deadline()
        async with self._answering(deadline):
            await self._in_thread(self._check, [row], sampling.max_new_tokens)
        return self._pieces(row, sampling, record, deadline)

    async def _pieces(self, row: Row, sampling: Sampling, record: RequestRecord, deadline: float):
        async with aclosing(self.engine.stream(row.prompt, row.response, sampling)) as pieces:
            while True:
                # The deadline covers each step, not the loop: it must not interrupt the consumer of the pieces
                async with self._answering(deadline):
                    with _naming_row(0):
                        piece = await anext(pieces, None)
                if piece is None:
                    return
                if isinstance(piece, Score):
                    self._count(piece, record)
                yield piece

    # ---------------------------------------------------------------------------------------------------- admission

    def _admit(self, rows: list[Row], sampling: Sampling, record: RequestRecord):
        """Check the request's size, and reserve places in the queue until its end."""
        critiques = sum(sampling.num_critiques if row.critiques is None else len(row.critiques) for row in rows)
        limits, record.items = self.limits, critiques
        if critiques > limits.max_batch:
            raise HTTPException(
                422, f"The request asks for {critiques} critiques; this server's limit is {limits.max_batch}."
            )
        if sampling.max_new_tokens > limits.max_new_tokens:
            error = f"`max_new_tokens` is {sampling.max_new_tokens}; this server's limit is {limits.max_new_tokens}."
            raise HTTPException(422, error)
        if not self.engine.critique and (sampling.num_critiques > 1 or any(row.critiques for row in rows)):
            raise HTTPException(422, "This is a classic reward model: drop `num_critiques` and `critiques`.")
        if self.lifecycle.engine_dead:
            raise HTTPException(503, "The engine has stopped.")
        record.resources.enter_context(self._places(critiques))

    @contextmanager
    def _places(self, critiques: int):
        if self.queued + critiques > self.limits.max_queue:
            error = f"{self.queued} critiques are already waiting; this server's limit is {self.limits.max_queue}."
            raise HTTPException(429, error, {"Retry-After": "1"})
        self.queued += critiques
        self.metrics.queue.set(self.queued)
        try:
            yield
        finally:
            self.queued -= critiques
            self.metrics.queue.set(self.queued)

    def _check(self, rows: list[Row], max_new_tokens: int):
        for index, row in enumerate(rows):
            with _naming_row(index):
                self.engine.check(row.prompt, row.response, max_new_tokens, row.critiques)

    # ------------------------------------------------------------------------------------------------------ scoring

    async def _score_row(self, index: int, row: Row, sampling: Sampling) -> Score:
        with _naming_row(index):
            return await self.engine.score(row.prompt, row.response, sampling, row.critiques)

    async def _in_thread(self, function: Callable, *args) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self.limits.request_timeout

    @asynccontextmanager
    async def _answering(self, deadline: float):
        """Apply a deadline, and turn the engine's errors into statuses."""
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


def _read_chats(chats: RenderedChats, texts: list[str], prompts: list[str] | None, field: str) -> list[Row]:
    rows = []
    for index, text in enumerate(texts):
        try:
            *messages, last = chats.parse(text, None if prompts is None else prompts[index])
            if last["role"] != "assistant":
                raise ValueError(f"It ends with a {last['role']} turn; it must end with the assistant turn to judge.")
        except ValueError as error:
            raise HTTPException(422, f"Row {index}: `{field}` cannot be read as a conversation: {error}") from error
        rows.append(Row(messages, last["content"]))
    return rows


@contextmanager
def _naming_row(index: int):
    """Turn an engine's `ValueError` about a row into 422, and a reward that is not finite into 500."""
    try:
        yield
    except ValueError as error:
        # An engine sees one row at a time and may number it 0
        raise HTTPException(422, f"Row {index}: {str(error).removeprefix('Row 0: ')}") from error
    except NotFinite as error:
        raise HTTPException(500, f"Row {index}: {error}") from error
