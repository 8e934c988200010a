"""Run a builder: every row through its work, answers journaled, then one dataset in the order of the rows."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

from datasets import Features
from tqdm import tqdm

from .completions import Answer, CompletionClient, RequestFailed, ServerUnusable
from .folder import JOURNAL, REJECTS, DatasetFolder, Reject
from .journal import Journal, JournalError, key_of
from .rows import row_name


# Rows that may fail before anything was answered at all
_MOST_FAILURES_AT_FIRST = 100


class Dropped(Exception):
    """
    The method leaves something out, such as a tie: raised, the whole row; among the new rows, one of them.

    Args:
        reason (`str`):
            Why.
        id (`str`, *optional*):
            Id of the new row that is left out; by default that of the row.
        details (`dict[str, Any]`, *optional*):
            What it would have held, as JSON, for those who check.
    """

    def __init__(self, reason: str, id: Any = None, details: dict[str, Any] | None = None):
        super().__init__(reason)
        self.id = id
        self.details = details or {}


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
        self.cut: set[str] = set()  # keys of the answers that ran out of tokens

    async def chat(self, key: Sequence[Any], messages: list[dict[str, str]], **sampling) -> Answer:
        """[`CompletionClient.chat`]; `key` tells apart what else is the same: the row's id, and the number of the sample."""
        asked = self._key(key, messages, sampling)
        return await self._answer(asked, lambda: self.client.chat(messages, **sampling))

    async def chat_whole(
        self, key: Sequence[Any], messages: list[dict[str, str]], *, max_tokens: int, longer_tries: int, **sampling
    ) -> Answer:
        """
        [`JournaledClient.chat`], and again with twice the tokens while the answer is cut.

        Args:
            key, messages, **sampling:
                As for [`JournaledClient.chat`].
            max_tokens (`int`):
                Tokens of the first try.
            longer_tries (`int`):
                Tries after it.

        Returns:
            [`Answer`]: The first that is whole, or the last. Its `finish_reason` is `"length"` if that is cut still, or
            `"no room"` (and its text empty) if the model's context does not hold more.
        """
        for doublings in range(longer_tries + 1):
            asked = {"max_tokens": max_tokens * 2**doublings, **sampling}
            try:
                answer = await self.chat(key, messages, **asked)
            except RequestFailed as error:
                if doublings == 0 or not error.is_refusal:
                    raise
                answer = Answer("", "no room")
                self._keep(self._key(key, messages, asked), answer)
            if answer.finish_reason != "length":
                break
        return answer

    async def complete(self, key: Sequence[Any], prompt_ids: Sequence[int], **sampling) -> Answer:
        """[`CompletionClient.complete`], likewise."""
        asked = self._key(key, list(prompt_ids), sampling)
        return await self._answer(asked, lambda: self.client.complete(prompt_ids, **sampling))

    async def _answer(self, key: str, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        if key not in self.journal:
            answer = await ask()
            self._keep(key, answer)
        else:
            value = self.journal[key]
            ids = value.get("token_ids")
            answer = Answer(value["text"], value["finish_reason"], None if ids is None else tuple(ids))
        if answer.finish_reason == "length":
            self.cut.add(key)
        return answer

    def _key(self, key: Sequence[Any], prompt: list, sampling: dict[str, Any]) -> str:
        return key_of(self.role, list(key), self.client.model, prompt, sampling)

    def _keep(self, key: str, answer: Answer):
        value = {"text": answer.text, "finish_reason": answer.finish_reason}
        if answer.token_ids is not None:
            value["token_ids"] = answer.token_ids
        self.journal.add(key, value)


def seed_of(seed: int, *parts: Any) -> int:
    """A seed from 0 to 2^31 - 1 for one request: servers give equal texts for equal prompts and seeds."""
    return int(key_of(seed, *parts)[:8], 16) >> 1


Work = Callable[[dict[str, Any]], Awaitable[list[dict[str, Any] | Dropped]]]


class Statistics(Protocol):
    """What there is to say about a dataset as a whole."""

    def add(self, result: dict[str, Any] | Reject):
        """Take in the next row or reject."""

    def report(self) -> dict[str, Any]:
        """The statistics by name, as JSON."""


@dataclass
class Run:
    """
    A pass of rows through `work`, and what came of it.

    Args:
        rows (`Sequence[dict]`):
            The rows, each with an `id`; a `datasets.Dataset` serves.
        work (`Callable`):
            Coroutine function from a row to the rows of the new dataset that it becomes, and a [`Dropped`] for each that is
            left out. It asks through [`JournaledClient`]s, and must depend on nothing but the row and their answers. It raises
            [`Dropped`] or [`RowRefused`] for rows that become none.
        clients (`Sequence[CompletionClient]`):
            The clients it uses, for their counts.
        max_concurrency (`int`):
            Rows under way at once.
        failures (`dict[int, str]`):
            Reasons by position, of the rows that failed.
        journal ([`Journal`], *optional*):
            Where answers are kept: while it is empty, many failures stop the run.
    """

    rows: Sequence[dict[str, Any]]
    work: Work
    clients: Sequence[CompletionClient]
    max_concurrency: int
    failures: dict[int, str] = field(default_factory=dict)
    journal: Journal | None = None

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
            # Not `except*`: in Python 3.11.2, Debian 12's, what is raised there comes out in a group again
            except ExceptionGroup as errors:
                if errors.split((ServerUnusable, OSError))[1] is not None:
                    raise
                raise errors.exceptions[0] from None

    async def _work_through(self, indices: Iterable[int], progress: tqdm):
        for index in indices:
            try:
                await self.work(self.rows[index])
            except (RequestFailed, RowRefused) as error:
                self.failures[index] = str(error)
                self._stop_if_nothing_works()
            except Dropped:
                pass  # told by `results`, as all that the method leaves out
            progress.set_postfix(
                retries=sum(client.counts.retried for client in self.clients),
                failed=len(self.failures),
                refresh=False,
            )
            progress.update()

    def _stop_if_nothing_works(self):
        if len(self.failures) >= _MOST_FAILURES_AT_FIRST and self.journal is not None and not len(self.journal):
            *_, last = self.failures.values()
            raise ServerUnusable(f"The first {len(self.failures)} rows failed, the last with: {last}")

    async def results(self) -> AsyncIterator[dict[str, Any] | Reject]:
        """The new rows and the rejects in the order of the rows, from the journal alone."""
        for index, row in enumerate(self.rows):
            if index in self.failures:
                yield Reject(index, row["id"], "failed", self.failures[index])
                continue
            try:
                new_rows = await self.work(row)
            except Dropped as error:
                new_rows = [error]
            for new_row in new_rows:
                if isinstance(new_row, Dropped):
                    name = row["id"] if new_row.id is None else new_row.id
                    yield Reject(index, name, "dropped", str(new_row), details=new_row.details)
                else:
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
    """
    The results of all, in order. Waits for all of them even if one fails, since each answer is worth keeping, and raises a
    failure rather than a [`Dropped`].
    """
    results = await asyncio.gather(*asked, return_exceptions=True)
    errors = [result for result in results if isinstance(result, BaseException)]
    for error in sorted(errors, key=lambda error: isinstance(error, Dropped)):
        raise error
    return results


async def build_dataset(
    folder: DatasetFolder,
    rows: Sequence[dict[str, Any]],
    features: Features,
    clients: dict[str, CompletionClient],
    make_work: Callable[..., Work],
    statistics: Statistics | None = None,
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
        statistics ([`Statistics`], *optional*):
            Sees all rows and rejects in order; its report becomes part of the counts.

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
        journal = stack.enter_context(folder.open_journal())
        kept = len(journal)
        journaled = {role: JournaledClient(client, journal, role) for role, client in clients.items()}
        work = make_work(**journaled)
        run = Run(
            rows,
            work,
            list(clients.values()),
            sum(client.max_concurrency for client in clients.values()),
            journal=journal,
        )
        await run.ask()
        counts = {
            "rows_read": len(rows),
            "answers": len(journal),
            "answers_of_earlier_runs": kept,
            "retries": sum(client.counts.retried for client in clients.values()),
        }
        results = run.results() if statistics is None else seen(run.results(), statistics)
        counts = await folder.write(results, features, counts)
        counts |= {f"{role}_answers_cut": len(client.cut) for role, client in journaled.items()}
        if statistics is not None:
            counts["statistics"] = statistics.report()
        folder.write_record(counts)  # while the journal keeps other writers out
    return counts


async def seen(results: AsyncIterator[dict[str, Any] | Reject], statistics: Statistics):
    """The same rows and rejects, shown to the statistics on their way."""
    async for result in results:
        statistics.add(result)
        yield result


def complete_build(build: Awaitable[dict[str, Any]], folder: DatasetFolder) -> dict[str, Any]:
    """
    Run a builder to its end.

    Returns:
        `dict[str, Any]`: Its counts; rows may have failed.

    Raises:
        `SystemExit`: With status 1 and a message if the run had to stop.
    """
    try:
        return asyncio.run(build)
    except (ServerUnusable, JournalError) as error:
        raise SystemExit(f"{error}\n{_how_to_go_on(folder)}") from None
    except OSError as error:
        raise SystemExit(f"Stopped: {error}.\n{_how_to_go_on(folder)}") from None
    except KeyboardInterrupt:
        raise SystemExit(f"Interrupted.\n{_how_to_go_on(folder)}") from None


def run_builder(build: Awaitable[dict[str, Any]], folder: DatasetFolder):
    """
    Run a builder to its end and say what came of it.

    Raises:
        `SystemExit`: With status 3 if rows failed for good, and 1 with a message if the run had to stop or no row is left.
    """
    counts = complete_build(build, folder)
    if not counts["rows"]:
        raise SystemExit(f"No row is left; {folder.path / REJECTS} says why: {counts['reasons']}.")
    print(
        f"{counts['rows']} rows in {folder.path}, from {counts['rows_read']} ({counts['dropped']} dropped, {counts['failed']} "
        f"failed; {counts['answers']} answers, {counts['answers_of_earlier_runs']} of them from earlier runs; "
        f"{counts['retries']} requests tried again)."
    )
    for reason, number in counts["reasons"].items():
        print(f"  {number} x {reason}")
    for name, value in counts.get("statistics", {}).items():
        print(f"  {name}: {value}")
    if counts["failed"]:
        print(f"{counts['failed']} row(s) failed: see {folder.path / REJECTS}. The same command tries them again.")
        raise SystemExit(3)


def _how_to_go_on(folder: DatasetFolder) -> str:
    journal = folder.path / JOURNAL
    return f"What was answered is kept in {journal}: the same command goes on from there." if journal.exists() else ""
