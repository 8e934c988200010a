"""Run a builder: process every row, journal the answers, and write a dataset in the order of the input rows."""

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from datasets import Features
from tqdm import tqdm

from ..interrupts import deferred_interrupts
from .bad_rows import BadRows, OverlongRows
from .completions import FINISH_REASONS, Answer, CompletionClient, RequestFailed, ServerUnusable, Stopped
from .dataset_folder import JOURNAL, REJECTS, DatasetFolder, Reject, Statistics
from .fit_to_context import Overlong
from .journal import SAMPLING_DEFAULTS, SERVERS_OWN, Journal, JournalError, key_of
from .rows import Rows


# The run stops if this many rows fail while the journal is still empty
_MOST_FAILURES_AT_FIRST = 100

# Handling of truncated answers: drop or keep them after `longer_tries` retries, or retry for as long as the context has room
TRUNCATED = ("drop", "keep", "retry")
# Maximum number of retries with more tokens under "retry", in case the server enforces no limit
_MOST_LONGER_TRIES = 16


class Dropped(Exception):
    """
    A row that is skipped by design, such as a tie. To skip an input row, raise this exception; to skip only one output row, return the
    exception in the list of output rows.

    Args:
        reason (`str`):
            Reason for `rejects.jsonl`.
        id (`str`, *optional*):
            Id of the output row; defaults to the input row's id.
        details (`dict[str, Any]`, *optional*):
            Content of the skipped row, as JSON values.
    """

    def __init__(self, reason: str, id: Any = None, details: dict[str, Any] | None = None):
        super().__init__(reason)
        self.id = id
        self.details = details or {}


class RowRefused(Exception):
    """A row that cannot be used. The exception's message is the reason."""


class JournaledClient:
    """
    Client that never sends a request twice: if the journal already contains the answer, the client reads it from there. `role`, such as
    `"judge"`, distinguishes the clients that share a journal.
    """

    def __init__(self, client: CompletionClient, journal: Journal, role: str):
        self.client = client
        self.journal = journal
        self.role = role
        # For the counts: all answers (without their contents), and the keys of truncated answers that were kept. The keys prevent double
        # counting, because each row's work runs twice
        self.answers: dict[str, Answer] = {}
        self.kept_cut: set[str] = set()
        self._warned = False  # whether a warning about answers from another model has been printed

    async def chat(self, key: Sequence[Any], messages: list[dict[str, str]], **sampling) -> Answer:
        """
        Return the journaled answer or, if there is none, call [`CompletionClient.chat`]. `key` (such as the row id and the sample number)
        distinguishes requests that are otherwise identical.
        """
        # The journal key contains everything that defines the request, so a changed prompt or option causes a new request
        asked = self._key(key, messages, sampling)
        return await self._answer(asked, lambda: self.client.chat(messages, **sampling))

    async def chat_longer(self, key: Sequence[Any], messages: list[dict[str, str]], **sampling) -> Answer:
        """
        Call [`JournaledClient.chat`] with more tokens than an earlier, truncated answer had. If the model's context has no room for them,
        return an empty answer with the `finish_reason` `"no room"`.
        """
        try:
            return await self.chat(key, messages, **sampling)
        except RequestFailed as error:
            if not error.exceeds_context:
                raise
            # Journal the rejection, so that a resumed run does not repeat a request that would be rejected again
            answer = Answer("", "no room")
            self._keep(self._key(key, messages, sampling), answer)
            return answer

    async def chat_until_complete(
        self, key: Sequence[Any], messages: list[dict[str, str]], *, max_tokens: int, longer_tries: int,
        truncated: str = "drop", **sampling,
    ) -> Answer:  # fmt: skip
        """
        Call [`JournaledClient.chat`]. As long as the answer is truncated, retry with twice the tokens, up to `longer_tries` times.

        Returns the first answer that is not truncated. If there is none, returns the last answer, with the `finish_reason` `"length"`, or
        an empty answer with the `finish_reason` `"no room"` if the model's context has no room for more tokens. `truncated="retry"` retries
        for as long as the context has room. `truncated="keep"` returns the last truncated answer as if it were complete, unless it has no
        text.
        """
        cut = Answer("", "length")
        for doublings in range(most_longer_tries(truncated, longer_tries) + 1):
            chat = self.chat if doublings == 0 else self.chat_longer
            answer = await chat(key, messages, max_tokens=max_tokens * 2**doublings, **sampling)
            if answer.finish_reason != "length":
                break
            cut = answer
        if truncated == "keep" and answer.finish_reason in ("length", "no room") and cut.text.strip():
            self.kept_cut.add(self._key(key, messages, sampling))
            return replace(cut, finish_reason="stop")
        return answer

    async def complete(self, key: Sequence[Any], prompt_ids: Sequence[int], **sampling) -> Answer:
        """Return the journaled answer or, if there is none, call [`CompletionClient.complete`]."""
        asked = self._key(key, list(prompt_ids), sampling)
        return await self._answer(asked, lambda: self.client.complete(prompt_ids, **sampling))

    async def _answer(self, key: str, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        answer = self._read(key)
        if answer is None:
            answer = await ask()
            self._keep(key, answer)
        self.answers[key] = replace(answer, text="", token_ids=None)
        if answer.model not in (None, self.client.model) and not self._warned:
            self._warned = True
            print(
                f"The server reports that {answer.model!r} answered a request to {self.client.model!r} ({self.role}). The card counts such "
                "answers. If this is a different model rather than a version of the requested one, check the server.",
                file=sys.stderr,
            )
        return answer

    def _key(self, key: Sequence[Any], prompt: list, sampling: dict[str, Any]) -> str:
        return key_of(self.role, list(key), self.client.model, prompt, sampling)

    def _read(self, key: str) -> Answer | None:
        if key not in self.journal:
            return None
        value = self.journal[key]
        # Ignore aborted answers, which version 0.1 journaled
        if value["finish_reason"] not in (*FINISH_REASONS, "no room"):
            return None
        ids = value.get("token_ids")
        ids = None if ids is None else tuple(ids)
        counted = (value.get(name) for name in ("model", "tokens", "completion_tokens"))
        return Answer(value["text"], value["finish_reason"], ids, *counted)

    def _keep(self, key: str, answer: Answer):
        value = {name: part for name, part in vars(answer).items() if part is not None}
        if answer.model == self.client.model:
            value.pop("model", None)
        self.journal.add(key, value)


def why_incomplete(answer: Answer, name: str, longer_tries: int) -> str | None:
    """Return why an answer from [`JournaledClient.chat_until_complete`] is incomplete, for `rejects.jsonl`, or `None` if it is complete."""
    if answer.finish_reason == "stop":
        return None
    if answer.finish_reason == "content_filter":
        return f"{name} was withheld by the server's content filter"
    if answer.finish_reason == "no room":
        return f"{name} is truncated, and the model's context has no room for more tokens"
    return f"{name} is truncated after {longer_tries} longer tries"


def most_longer_tries(truncated: str, longer_tries: int) -> int:
    """Return the maximum number of retries of a truncated answer. The context may have room for fewer."""
    return _MOST_LONGER_TRIES if truncated == "retry" else longer_tries


def check_truncated(value: str):
    """Raise `ValueError` unless the value is one of the choices for `truncated`."""
    if value not in TRUNCATED:
        raise ValueError(f"`truncated` is {value!r}; use drop, keep or retry.")


def seed_of(seed: int, *parts: Any) -> int:
    """
    Return a seed in [0, 2^31) for one request. Each request needs its own seed, because identical prompts with the same seed get the
    same text.
    """
    return int(key_of(seed, *parts)[:8], 16) >> 1


Work = Callable[[dict[str, Any]], Awaitable[Sequence[dict[str, Any] | Dropped]]]


@dataclass
class Run:
    """
    The rows, the work to do for each row, and the reasons why rows failed, keyed by row position.

    `work` is a coroutine function that maps an input row to its output rows, with a [`Dropped`] in place of each skipped output row. To
    skip the input row, `work` raises [`Dropped`] or [`RowRefused`]. It may depend only on the row and on answers from
    [`JournaledClient`]s, because it runs again when the dataset is written. If many rows fail while the journal is still empty, the run
    stops.
    """

    rows: Rows
    work: Work
    clients: Sequence[CompletionClient]  # Ctrl-C stops the clients, and the progress bar shows their counts
    max_concurrency: int  # maximum number of rows in progress
    failures: dict[int, str] = field(default_factory=dict)
    journal: Journal | None = None
    dropped: int = 0  # rows dropped so far, for the progress bar

    async def ask(self):
        """
        Work on all rows until every answer is in the journal. After the first Ctrl-C, no more requests are sent, and `KeyboardInterrupt` is
        raised once the requests in flight have been answered. Raises `ServerUnusable` if no row can succeed. In both cases, the journal
        keeps all answers received so far.
        """
        # Use `call_soon_threadsafe`, because a signal handler does not wake the event loop
        stop = partial(asyncio.get_running_loop().call_soon_threadsafe, self._stop)
        indices = iter(range(len(self.rows)))
        # `miniters` is 0 because a row may need many requests, and each answer may refresh the bar
        shown = {"smoothing": 0.05, "file": sys.stderr, "mininterval": 1.0, "miniters": 0}
        with tqdm(total=len(self.rows), unit=" rows", **shown) as progress, deferred_interrupts(stop):
            for client in self.clients:
                client.on_answer = partial(self._show, progress)
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self.max_concurrency, len(self.rows))):
                        group.create_task(self._work_through(indices, progress))
            # Do not use `except*`: if such a block raises an exception, Python 3.11.2 (Debian 12) wraps it in a group again
            except ExceptionGroup as errors:
                if errors.split((ServerUnusable, OSError))[1] is not None:
                    raise
                raise errors.exceptions[0] from None

    def _stop(self):
        for client in self.clients:
            client.stop()

    async def _work_through(self, indices: Iterable[int], progress: tqdm):
        for index in indices:
            try:
                await self.work(self.rows[index])
            except (RequestFailed, RowRefused) as error:
                self.failures[index] = str(error)
                self._stop_if_nothing_works()
            except Dropped:
                self.dropped += 1  # `results` reports the reason
            except Stopped:
                return
            self._show(progress, rows=1)

    def _show(self, progress: tqdm, rows: int = 0):
        """Advance the progress bar by `rows` finished rows, and show the number of answers, which grows even before a row is finished."""
        answers, retries = (
            sum(getattr(client.counts, name) for client in self.clients) for name in ("answered", "retried")
        )
        failed, dropped = len(self.failures), self.dropped
        progress.set_postfix(answers=answers, retries=retries, dropped=dropped, failed=failed, refresh=False)
        progress.update(rows)

    def _stop_if_nothing_works(self):
        if len(self.failures) >= _MOST_FAILURES_AT_FIRST and self.journal is not None and not len(self.journal):
            *_, last = self.failures.values()
            raise ServerUnusable(f"The first {len(self.failures)} rows failed. The last error: {last}")

    async def results(self) -> AsyncIterator[dict[str, Any] | Reject]:
        """Yield output rows and rejects in the order of the input rows, using only the journal."""
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


def check_rows(rows: Rows, check: Callable[[dict[str, Any]], Any], bad_rows: str = "error") -> list[int]:
    """
    Check all rows before anything expensive starts. With `bad_rows="drop"`, return the positions of the bad rows, which are to be left
    out. `check` may return the number of tokens that a row needs.

    A row is bad if `check` raises `ValueError` for it or if its text is not valid Unicode. If any rows are bad, raises a `ValueError`
    that lists them by kind of problem, unless `bad_rows` is `"drop"` and at least one row is good. If `check` raises [`Overlong`], raises
    a `ValueError` that recommends token limits.
    """
    bad, overlong = BadRows("", bad_rows), OverlongRows("")
    for index in tqdm(range(len(rows)), "Checking rows", unit=" rows", disable=None):
        row: dict[str, Any] = {}
        try:
            row = rows[index]
            needed = check(row)
            json.dumps(row, ensure_ascii=False, default=str).encode()
            if isinstance(needed, int):
                overlong.lengths.append(needed)
        except UnicodeDecodeError as error:
            bad.add(index, row, f"it is not UTF-8 ({error}). Save the file as UTF-8.")
        except UnicodeEncodeError:
            bad.add(index, row, "it contains a lone surrogate, which is not valid text.")
        except Overlong as error:
            overlong.add(index, row, str(error), error.needed)
        except ValueError as error:
            bad.add(index, row, str(error))
    left_out = bad.settle(len(rows))
    overlong.settle()
    return left_out


async def all_of(*asked: Awaitable[Any]) -> list[Any]:
    """Wait for all results and return them in order. If any fail, raise one of their exceptions, preferably one other than [`Dropped`]."""
    # Without `return_exceptions`, the first failure would discard answers that have already been paid for
    results = await asyncio.gather(*asked, return_exceptions=True)
    errors = [result for result in results if isinstance(result, BaseException)]
    if errors:
        raise min(errors, key=lambda error: isinstance(error, Dropped))
    return results


async def build_dataset(
    folder: DatasetFolder,
    rows: Rows,
    features: Features,
    clients: dict[str, CompletionClient],
    make_work: Callable[..., Work],
    statistics: Statistics | None = None,
    chats: bool = True,
) -> dict[str, Any]:
    """
    Build a dataset from servers' answers, or resume an interrupted build.

    Args:
        folder ([`DatasetFolder`]):
            Output folder. The model names are added to its settings.
        rows ([`~cloud_hf.data.rows.Rows`]):
            Input rows, each with an `id`.
        features (`Features`):
            Columns of the output rows.
        clients (`dict[str, CompletionClient]`):
            Clients by role, such as `"judge"`, each for one model.
        make_work (`Callable`):
            Receives a [`JournaledClient`] for each role, as keyword arguments, and returns the `work` for [`Run`].
        statistics ([`Statistics`], *optional*):
            Collects statistics about the rows and rejects. The counts then include these statistics.
        chats (`bool`, *optional*, defaults to `True`):
            Whether the requests are chats. If so, the settings also record the servers' sampling defaults, which may affect the answers.

    Returns:
        `dict[str, Any]`: Counts of rows, rejects, answers and retries.

    Raises:
        `ServerUnusable`, `JournalError`, `ValueError`, `OSError`: If the build had to stop. The journal keeps all answers received so far.
    """
    async with AsyncExitStack() as stack:
        for role, client in clients.items():
            await stack.enter_async_context(client)
            await client.check()
            folder.settings[f"{role}_model"] = client.model
            if chats:
                folder.settings[f"{role}{SAMPLING_DEFAULTS}"] = client.sampling_defaults or SERVERS_OWN
        journal = stack.enter_context(folder.open_journal())
        journaled = {role: JournaledClient(client, journal, role) for role, client in clients.items()}
        work = make_work(**journaled)
        run = Run(
            rows,
            work,
            list(clients.values()),
            # The highest of the clients' limits is enough to keep all clients busy, because each row sends several requests concurrently
            max(client.max_concurrency for client in clients.values()),
            journal=journal,
        )
        await run.ask()
        counts = {
            "rows_read": len(rows),
            "answers": len(journal),
            "answers_of_earlier_runs": journal.kept,
            "retries": sum(client.counts.retried for client in clients.values()),
        }
        counts = await folder.write(run.results(), features, counts, statistics)
        counts |= _count_answers(journaled)
        folder.write_record(counts)  # before the journal releases the lock
    return counts


def _count_answers(clients: dict[str, JournaledClient]) -> dict[str, Any]:
    """For each role, count the tokens, the truncated answers, and the answers from models other than the client's."""
    counts: dict[str, Any] = {}
    for role, client in clients.items():
        answers = client.answers.values()
        counts[f"{role}_answers_cut"] = sum(answer.finish_reason == "length" for answer in answers)
        # Not all servers count tokens, and earlier releases journaled only the sum of prompt and completion tokens
        counted = [answer for answer in answers if answer.tokens is not None]
        if counted:
            counts[f"{role}_tokens"] = sum(answer.tokens or 0 for answer in counted)
        if counted and all(answer.completion_tokens is not None for answer in counted):
            counts[f"{role}_completion_tokens"] = sum(answer.completion_tokens or 0 for answer in counted)
        if client.kept_cut:
            counts[f"{role}_answers_kept_cut"] = len(client.kept_cut)
        # A server may forward requests to a model other than the one that it lists
        if others := Counter(answer.model for answer in answers if answer.model not in (None, client.client.model)):
            counts[f"{role}_answers_of_other_models"] = dict(others)
    return counts


# A build that blocks must be a function: under `asyncio.run`, Ctrl-C cancels a coroutine only at its next `await`, which may be hours away
Build = Coroutine[Any, Any, dict[str, Any]] | Callable[[], dict[str, Any]]


def complete_build(build: Build, folder: DatasetFolder) -> dict[str, Any]:
    """
    Run a builder to completion and return its counts. If the run had to stop, raises `SystemExit` or `KeyboardInterrupt` with a message.
    """
    try:
        return build() if callable(build) else asyncio.run(build)
    except (ServerUnusable, JournalError) as error:
        raise SystemExit(f"{error}\n{_resume_hint(folder)}") from None
    except OSError as error:
        raise SystemExit(f"Stopped: {error}.\n{_resume_hint(folder)}") from None
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Interrupted. {_resume_hint(folder)}".rstrip()) from None


def run_builder(build: Build, folder: DatasetFolder, following: str | None = None, push_to_hub: str | None = None):
    """
    Run a builder to completion, print its counts, upload the dataset, and print the command to run next.

    Args:
        build (`Coroutine` or `Callable`):
            Builds the dataset and returns the counts, as [`build_dataset`] does. Pass a function, not a coroutine, if the work blocks.
        folder ([`DatasetFolder`]):
            Output folder.
        following (`str`, *optional*):
            Command to run next, with `{}` in place of the dataset's path.
        push_to_hub (`str`, *optional*):
            Hub id to upload the dataset to.

    Raises:
        `SystemExit`: With status 3 if rows failed, or with a message if the run had to stop or every row was left out.
    """
    counts = complete_build(build, folder)
    check_not_empty(counts, folder)
    print(
        f"{counts['rows']} rows from {counts['rows_read']} ({counts['dropped']} dropped, {counts['failed']} "
        f"failed; {counts['answers']} answers, {counts['answers_of_earlier_runs']} of them from earlier runs; "
        f"{counts['retries']} retries)."
    )
    for reason, number in counts["reasons"].items():
        print(f"  {number} x {reason}")
    for name, value in counts.get("statistics", {}).items():
        print(f"  {name}: {value}")
    if counts["failed"]:
        print(f"{counts['failed']} row(s) failed: see {folder.path / REJECTS}. Run the same command to retry them.")
        raise SystemExit(3)
    if push_to_hub:
        folder.push(push_to_hub)
    if not folder.settings.get("shard", "0/1").endswith("/1"):
        following = "cloud-hf merge-shards --output_dir MERGED --shards ALL_SHARDS"
    next_command = f" Next: {following.format(folder.path)}" if following else ""
    print(f"Wrote {counts['rows']} rows to {folder.path}.{next_command}")


def check_not_empty(counts: dict[str, Any], folder: DatasetFolder):
    """Raise `SystemExit` with the reasons if every row was left out."""
    if not counts["rows"]:
        raise SystemExit(f"Every row was left out: {counts['reasons']}. See {folder.path / REJECTS}.")


def _resume_hint(folder: DatasetFolder) -> str:
    journal = folder.path / JOURNAL
    if not journal.exists():
        return ""
    with journal.open("rb") as lines:
        kept = sum(1 for _ in lines) - 1  # minus the header line
    return f"{journal} contains {kept} answers so far; run the same command to resume."
