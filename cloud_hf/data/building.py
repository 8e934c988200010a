"""Run a builder: every row through its work, answers journaled, then one dataset in the order of the rows."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from .completions import Answer, CompletionClient, RequestFailed, ServerUnusable
from .journal import Journal, key_of


# Rows that fail one after the other, none between them succeeding, before the run stops
_MOST_FAILURES_IN_A_ROW = 100


class Dropped(Exception):
    """The method leaves this row out, such as a tie. The message is the reason."""


class RowRefused(Exception):
    """This row cannot be used. The message is the reason."""


@dataclass(frozen=True)
class Reject:
    """
    A row that is not in the dataset.

    Args:
        index (`int`):
            Its position among the rows.
        id (`str`):
            Its id.
        kind (`str`):
            `"dropped"`: the method leaves it out. `"failed"`: it could not be worked on.
        reason (`str`):
            Why.
    """

    index: int
    id: str
    kind: str
    reason: str


class JournaledClient:
    """
    A client that asks for nothing twice: what is in the journal is not requested.

    Args:
        client ([`CompletionClient`]):
            The client.
        journal ([`Journal`]):
            Where its answers are kept.
        role (`str`):
            Tells the clients of one journal apart, such as `"judge"`.
    """

    def __init__(self, client: CompletionClient, journal: Journal, role: str):
        self.client = client
        self.journal = journal
        self.role = role

    async def chat(self, key: Sequence[Any], messages: list[dict[str, str]], **sampling) -> Answer:
        """[`CompletionClient.chat`]; `key` tells apart what else is the same: the row's id, and the number of the sample."""
        asked = key_of(self.role, list(key), self.client.model, messages, sampling)
        return await self._answer(asked, lambda: self.client.chat(messages, **sampling))

    async def complete(self, key: Sequence[Any], prompt_ids: Sequence[int], **sampling) -> Answer:
        """[`CompletionClient.complete`], likewise."""
        asked = key_of(self.role, list(key), self.client.model, list(prompt_ids), sampling)
        return await self._answer(asked, lambda: self.client.complete(prompt_ids, **sampling))

    async def _answer(self, key: str, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        if key not in self.journal:
            answer = await ask()
            value = {"text": answer.text, "finish_reason": answer.finish_reason}
            if answer.token_ids is not None:
                value["token_ids"] = answer.token_ids
            self.journal.add(key, value)
            return answer
        value = self.journal[key]
        ids = value.get("token_ids")
        return Answer(value["text"], value["finish_reason"], None if ids is None else tuple(ids))


Work = Callable[[dict[str, Any]], Awaitable[list[dict[str, Any]]]]


@dataclass
class Run:
    """
    A pass of rows through `work`, and what came of it.

    Args:
        rows (`Sequence[dict]`):
            The rows, each with an `id`; a `datasets.Dataset` serves.
        work (`Callable`):
            Coroutine function from a row to the rows of the new dataset that it becomes. It asks through
            [`JournaledClient`]s, and must depend on nothing but the row and their answers. It raises [`Dropped`] or [`RowRefused`]
            for rows that become none.
        clients (`Sequence[CompletionClient]`):
            The clients it uses, for their counts.
        max_concurrency (`int`):
            Rows under way at once.
        failures (`dict[int, str]`):
            Reasons by position, of the rows that failed.
    """

    rows: Sequence[dict[str, Any]]
    work: Work
    clients: Sequence[CompletionClient]
    max_concurrency: int
    failures: dict[int, str] = field(default_factory=dict)
    _in_a_row: int = 0

    async def ask(self):
        """
        Work on all rows until every answer is in the journal.

        Raises:
            `ServerUnusable`: If no row can succeed. What was answered before is in the journal.
        """
        indices = iter(range(len(self.rows)))
        with tqdm(total=len(self.rows), unit=" rows", smoothing=0.05, file=sys.stderr, mininterval=1.0) as progress:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self.max_concurrency, len(self.rows))):
                        group.create_task(self._work_through(indices, progress))
            except* (ServerUnusable, OSError) as errors:
                raise errors.exceptions[0] from None

    async def _work_through(self, indices: Iterable[int], progress: tqdm):
        for index in indices:
            try:
                await self.work(self.rows[index])
                self._in_a_row = 0
            except (RequestFailed, RowRefused) as error:
                self.failures[index] = str(error)
                self._count_failure(error)
            except Dropped:
                self._in_a_row = 0
            progress.set_postfix(
                retries=sum(client.counts.retried for client in self.clients),
                failed=len(self.failures),
                refresh=False,
            )
            progress.update()

    def _count_failure(self, error: Exception):
        if isinstance(error, RowRefused) or "context" in str(error):  # the row's own fault
            return
        self._in_a_row += 1
        if self._in_a_row == _MOST_FAILURES_IN_A_ROW:
            raise ServerUnusable(f"{self._in_a_row} rows failed one after the other, the last with: {error}")

    async def results(self) -> AsyncIterator[dict[str, Any] | Reject]:
        """The new rows and the rejects in the order of the rows, from the journal alone."""
        for index, row in enumerate(self.rows):
            if index in self.failures:
                yield Reject(index, row["id"], "failed", self.failures[index])
                continue
            try:
                new_rows = await self.work(row)
            except Dropped as error:
                yield Reject(index, row["id"], "dropped", str(error))
                continue
            for new_row in new_rows:
                yield new_row


async def open_clients(stack: AsyncExitStack, *clients: CompletionClient):
    """Connect, and find out before the first row whether the servers will do."""
    for client in clients:
        await stack.enter_async_context(client)
        await client.check()

