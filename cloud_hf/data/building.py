"""Run a builder: every row through its work, answers journaled, then one dataset in the order of the rows."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from datasets import Features
from tqdm import tqdm

from .completions import Answer, CompletionClient, RequestFailed, ServerUnusable
from .dataset_folder import JOURNAL, REJECTS, DatasetFolder, Reject
from .journal import Journal, JournalError, key_of
from .schemas import row_name


# Rows that fail one after the other, none between them succeeding, before the run stops
_MOST_FAILURES_IN_A_ROW = 100


class Dropped(Exception):
    """The method leaves this row out, such as a tie. The message is the reason."""


class RowRefused(Exception):
    """This row cannot be used. The message is the reason."""


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
        if isinstance(error, RowRefused) or "context" in str(error):
            return  # a row that is too long says nothing about the next
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


def check_rows(rows: Sequence[dict[str, Any]], check: Callable[[dict[str, Any]], Any]):
    """
    Try all rows before anything is paid for.

    Args:
        rows (`Sequence[dict]`):
            The rows.
        check (`Callable`):
            Raises `ValueError` for a row that cannot be used.

    Raises:
        `ValueError`: Naming the first bad row.
    """
    for index in range(len(rows)):
        try:
            row = rows[index]
        except UnicodeDecodeError as error:
            raise ValueError(f"row {index} is not UTF-8 ({error}). Write the file anew in UTF-8.") from None
        try:
            check(row)
            json.dumps(row, ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError:
            raise ValueError(f"{row_name(index, row)} holds a lone surrogate, which is no text.") from None
        except ValueError as error:
            raise ValueError(f"{row_name(index, row)}: {error}") from error


async def all_of(*asked: Awaitable[Any]) -> list[Any]:
    """The results of all, in order. Waits for all of them even if one fails, since each answer is worth keeping."""
    results = await asyncio.gather(*asked, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


async def build_dataset(
    folder: DatasetFolder,
    rows: Sequence[dict[str, Any]],
    features: Features,
    clients: dict[str, CompletionClient],
    make_work: Callable[..., Work],
) -> dict[str, Any]:
    """
    Build a dataset with the answers of servers, or go on with one.

    Args:
        folder ([`DatasetFolder`]):
            Where it is written. The models are added to its settings.
        rows (`Sequence[dict]`):
            The rows, each with an `id`.
        features (`Features`):
            Columns of the new rows.
        clients (`dict[str, CompletionClient]`):
            The models by role, such as `"judge"`.
        make_work (`Callable`):
            From a [`JournaledClient`] per role, as keywords, to the work of [`Run`].

    Returns:
        `dict[str, Any]`: Rows, rejects, answers, requests that were tried again.

    Raises:
        `ServerUnusable`, `JournalError`, `ValueError`, `OSError`: With all answers so far in the journal.
    """
    async with AsyncExitStack() as stack:
        for role, client in clients.items():
            await stack.enter_async_context(client)
            await client.check()
            folder.settings[f"{role}_model"] = client.model
        journal = stack.enter_context(Journal(folder.path / JOURNAL, folder.settings))
        kept = len(journal)
        work = make_work(**{role: JournaledClient(client, journal, role) for role, client in clients.items()})
        run = Run(rows, work, list(clients.values()), sum(client.max_concurrency for client in clients.values()))
        await run.ask()
        counts = {
            "rows_read": len(rows),
            "answers": len(journal),
            "answers_of_earlier_runs": kept,
            "retries": sum(client.counts.retried for client in clients.values()),
        }
        counts = await folder.write(run.results(), features, counts)
    folder.write_record(counts)
    return counts


def run_builder(build: Awaitable[dict[str, Any]], folder: DatasetFolder):
    """
    Run a builder to its end and say what came of it.

    Raises:
        `SystemExit`: With status 3 if rows failed for good, and 1 with a message if the run had to stop.
    """
    try:
        counts = asyncio.run(build)
    except (ServerUnusable, JournalError) as error:
        raise SystemExit(f"{error}\n{_how_to_go_on(folder)}") from None
    except OSError as error:
        raise SystemExit(f"Stopped: {error}.\n{_how_to_go_on(folder)}") from None
    except KeyboardInterrupt:
        raise SystemExit(f"Interrupted.\n{_how_to_go_on(folder)}") from None
    print(
        f"{counts['rows']} rows in {folder.path}, from {counts['rows_read']} ({counts['dropped']} dropped, {counts['failed']} "
        f"failed; {counts['answers']} answers, {counts['answers_of_earlier_runs']} of them from earlier runs; "
        f"{counts['retries']} requests tried again)."
    )
    for reason, number in counts["reasons"].items():
        print(f"  {number} x {reason}")
    if counts["failed"]:
        print(f"{counts['failed']} row(s) failed: see {folder.path / REJECTS}. The same command tries them again.")
        raise SystemExit(3)


def _how_to_go_on(folder: DatasetFolder) -> str:
    return f"What was answered is kept in {folder.path / JOURNAL}: the same command goes on from there."
