"""Generate critiques of both responses in a pair: options, retries of truncated critiques, and output rows."""

import asyncio
import logging
import math
from collections.abc import Awaitable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Protocol

from datasets import Dataset, Features, List, Value
from tqdm import tqdm

from ..argument_help import documented
from ..interrupts import deferred_interrupts
from .build_run import (
    Dropped,
    JournaledClient,
    RowRefused,
    Run,
    all_of,
    check_rows,
    check_truncated,
    most_longer_tries,
)
from .completions import NEUTRAL_SAMPLING, Answer
from .dataset_folder import DatasetFolder
from .fit_to_context import Overlong, check_policy, fit_to_context
from .journal import Journal, key_of
from .preference_rows import SIDES, Response
from .row_values import judged_chat, prompt_column, prompt_of, response_of
from .rows import Rows


if TYPE_CHECKING:
    from ..configuration_cloud import CLoudConfig
    from ..critique_format import CritiqueFormat, EncodedPrefix
    from ..scoring import Score, Scorer


@dataclass(frozen=True)
class Critique:
    """Token ids of a critique without the end token. `finish_reason` is `"length"` if it was truncated, otherwise `"stop"`."""

    ids: tuple[int, ...]
    finish_reason: str


@documented
@dataclass(kw_only=True)
class CritiqueOptions:
    """
    Number, length and sampling of critiques.

    Parameters:
        num_critiques (`int`, *optional*, defaults to `1`):
            Critiques per response. If there are several, the critique columns contain lists.
        temperature (`float`, *optional*, defaults to `0.0`):
            Sampling temperature; 0 is greedy.
        max_new_tokens (`int`, *optional*, defaults to `1024`):
            Token limit of a critique.
        longer_tries (`int`, *optional*, defaults to `2`):
            Maximum number of retries of a truncated critique. Each retry doubles the token limit, as long as the model's context has room.
        truncated (`str`, *optional*, defaults to `"drop"`):
            What to do with critiques that remain truncated. `"drop"` drops them, and also the row if one of its responses has no other
            critiques; `"keep"` keeps them. `"retry"` ignores `longer_tries`: it keeps doubling the token limit as long as the model's
            context has room, and then does the same as `"drop"`.
        overlong_policy (`str`, *optional*, defaults to `"error"`):
            Handling of rows that do not fit in the model's context: `error`, `drop` or `truncate_prompt`.
        seed (`int`, *optional*, defaults to `0`):
            Sampling seed.
    """

    num_critiques: int = 1
    temperature: float = 0.0
    max_new_tokens: int = 1024
    longer_tries: int = 2
    truncated: str = "drop"
    overlong_policy: str = "error"
    seed: int = 0

    def __post_init__(self):
        if self.num_critiques < 1 or self.max_new_tokens < 1 or self.longer_tries < 0:
            raise ValueError("`num_critiques` and `max_new_tokens` must be at least 1, `longer_tries` at least 0.")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"`temperature` is {self.temperature}; it must be a finite number of at least 0.")
        if self.num_critiques > 1 and self.temperature == 0.0:
            raise ValueError("`num_critiques` above 1 needs a `temperature` above 0; greedy critiques are identical.")
        check_truncated(self.truncated)
        check_policy(self.overlong_policy)

    @property
    def most_longer_tries(self) -> int:
        """Maximum number of retries of a truncated critique. The context may have room for fewer."""
        return most_longer_tries(self.truncated, self.longer_tries)


@dataclass(frozen=True)
class CritiqueTask:
    """A row that fits in the context, possibly with a shortened prompt. `responses` and `prefixes` are keyed by side."""

    row: dict[str, Any]
    prompt: Any
    is_shortened: bool
    responses: dict[str, Response]
    prefixes: "dict[str, EncodedPrefix]"


class Ask(Protocol):
    """Source of critiques. It returns critique `number` of the response on `side`, with at most `max_new_tokens` tokens."""

    def __call__(self, task: CritiqueTask, side: str, number: int, max_new_tokens: int) -> Awaitable[Critique]: ...


@dataclass
class CritiqueBuilder:
    """
    Adds critiques to rows. `context` is the model's context length in tokens; a row must fit in it together with its critique. With
    `bad_rows="drop"`, rows that the critique format rejects are left out.
    """

    critique_format: "CritiqueFormat"
    context: int | None
    options: CritiqueOptions
    bad_rows: str = "error"
    # Keyed by id, because each row is built twice: first with answers from the server, and then again from the journal
    _counts: dict[Any, "_Counts"] = field(default_factory=dict)

    def fit(self, row: dict[str, Any]) -> CritiqueTask:
        """
        Encode a row. If the row is too long and `overlong_policy` is `"truncate_prompt"`, shorten its prompt.

        Raises `ValueError` if the row's text is unusable; with `bad_rows="drop"`, raises [`Dropped`] instead. If the row is too long, even
        after any shortening, raises [`Overlong`] if `overlong_policy` is `"error"`, otherwise [`Dropped`].
        """
        try:
            return self._fit(row)
        except ValueError as error:
            if self.bad_rows == "error" or isinstance(error, Overlong):
                raise
            raise Dropped(str(error)) from error

    def _fit(self, row: dict[str, Any]) -> CritiqueTask:
        # Empty responses are an error here, because otherwise training would reject them only after all critiques had been written
        responses = {side: response_of(row, side) for side in SIDES}
        needed = 0

        def encode(prompt: Any) -> "dict[str, EncodedPrefix]":
            return {side: self.critique_format.encode_prefix(*judged_chat(prompt, responses[side])) for side in SIDES}

        def length(prefixes: "dict[str, EncodedPrefix]") -> int:
            nonlocal needed
            needed = max(len(prefix.input_ids) for prefix in prefixes.values()) + self.options.max_new_tokens + 1
            return needed

        given = prompt_of(row)
        policy = self.options.overlong_policy
        prompt, prefixes = fit_to_context(given, encode, length, self.context, policy, self.critique_format)
        if prefixes is None:
            raise Dropped(f"{needed} tokens with its critique, but the context holds {self.context}")
        return CritiqueTask(row, prompt, prompt is not given, responses, prefixes)

    def lengths(self, row: dict[str, Any]) -> tuple[int, ...] | None:
        """
        Count the tokens before each side's critique. Returns `None` if the row is dropped, for example because it is too long. Raises
        `ValueError` as [`fit`] does.
        """
        try:
            return tuple(len(prefix.input_ids) for prefix in self.fit(row).prefixes.values())
        except Dropped:
            return None

    def needed(self, lengths: tuple[int, ...] | None) -> int | None:
        """Return the number of tokens that a row needs, including its critique, given the row's [`lengths`]."""
        return None if lengths is None else max(lengths) + self.options.max_new_tokens + 1

    def has_room(self, prefix_length: int, max_new_tokens: int) -> bool:
        """Return whether the context has room for a critique of `max_new_tokens` tokens after a prefix of `prefix_length` tokens."""
        return self.context is None or prefix_length + max_new_tokens + 1 <= self.context

    def token_limits(self, prefix_length: int) -> list[int]:
        """Return the token limits of the first try and of the retries for which the context has room; each is twice the one before."""
        tries = range(self.options.most_longer_tries + 1)
        first, *longer = (self.options.max_new_tokens * 2**number for number in tries)
        return [first, *(limit for limit in longer if self.has_room(prefix_length, limit))]

    async def build(self, row: dict[str, Any], ask: Ask) -> list[dict[str, Any]]:
        """
        Return a list with one row: `row`, with a shortened prompt if necessary, plus `{side}_feedback`, `{side}_feedback_ids` and
        `{side}_finish_reason` for both sides.

        Raises [`Dropped`] if all critiques of a response are still truncated after all tries and are not kept. Also raises the exceptions
        of [`CritiqueBuilder.fit`].
        """
        task = self.fit(row)
        counts = self._counts[row["id"]] = _Counts(
            prompts_shortened=int(task.is_shortened),
            responses_changed=sum(prefix.response_changed for prefix in task.prefixes.values()),
        )
        numbers = range(self.options.num_critiques)
        critiques = await all_of(
            *(self._write(task, side, number, ask, counts) for side in SIDES for number in numbers)
        )
        written = {"chosen": critiques[: len(numbers)], "rejected": critiques[len(numbers) :]}
        kept = self._keep(written, counts)
        new = {**row, "prompt": prompt_column(task.prompt, row)}
        several = self.options.num_critiques > 1
        for side, critiques in kept.items():
            values = {
                "feedback": [self.critique_format.decode(list(critique.ids)) for critique in critiques],
                "feedback_ids": [list(critique.ids) for critique in critiques],
                "finish_reason": [critique.finish_reason for critique in critiques],
            }
            new |= {f"{side}_{name}": value if several else value[0] for name, value in values.items()}
        return [new]

    def counts(self) -> dict[str, int]:
        """
        Return the numbers of critiques and tokens, including truncated critiques, over all rows built so far. A [`ScorerCritic`] writes more
        than the builder asks for; its `tokens` count that.
        """
        names = [each.name for each in fields(_Counts)]
        return {name: sum(getattr(counts, name) for counts in self._counts.values()) for name in names}

    async def _write(self, task: CritiqueTask, side: str, number: int, ask: Ask, counts: "_Counts") -> Critique:
        """Request a critique, and retry with more tokens as long as it is truncated."""
        prefix_length = len(task.prefixes[side].input_ids)
        for tries, max_new_tokens in enumerate(self.token_limits(prefix_length)):
            critique = await ask(task, side, number, max_new_tokens)
            counts.prompt_tokens += prefix_length
            counts.critique_tokens += len(critique.ids) + 1  # including the end token
            counts.critiques_written_longer += tries == 1
            if critique.finish_reason != "length":
                break
        return critique

    def _keep(self, written: dict[str, list[Critique]], counts: "_Counts") -> dict[str, list[Critique]]:
        """
        Select the critiques for the dataset: all of them if truncated critiques are kept, and otherwise an equal number of complete
        critiques for each side.
        """
        kept = written
        if self.options.truncated != "keep":
            complete = {
                side: [critique for critique in critiques if critique.finish_reason != "length"]
                for side, critiques in written.items()
            }
            number = min(map(len, complete.values()))  # training pairs the critiques of the two sides
            kept = {side: critiques[:number] for side, critiques in complete.items()}
            cut = sum(critique.finish_reason == "length" for critiques in written.values() for critique in critiques)
            counts.critiques_dropped_as_cut += cut
            if number == 0:
                longest = max(len(critique.ids) for critiques in written.values() for critique in critiques)
                raise Dropped(f"the critique is truncated at {longest} tokens")
        for critique in (critique for critiques in kept.values() for critique in critiques):
            counts.critiques += 1
            counts.critiques_cut += critique.finish_reason == "length"
        return kept


@dataclass(slots=True)
class _Counts:
    """Counts for one row."""

    critiques: int = 0
    critiques_cut: int = 0
    critiques_dropped_as_cut: int = 0
    critiques_written_longer: int = 0
    prompts_shortened: int = 0
    responses_changed: int = 0
    prompt_tokens: int = 0
    critique_tokens: int = 0


def features_with_critiques(features: Features, num_critiques: int) -> Features:
    """Return the columns that rows have once critiques have been added."""
    kinds = {"feedback": Value("string"), "feedback_ids": List(Value("int64")), "finish_reason": Value("string")}
    several = num_critiques > 1
    new = {
        f"{side}_{name}": List(kind) if several else kind for side in SIDES for name, kind in kinds.items()
    }  # fmt: skip
    return Features({**features, **new})


def write_rows(
    builder: CritiqueBuilder,
    ask: Ask,
    rows: Dataset,
    folder: DatasetFolder,
    journal: Journal,
    failures: dict[int, str] | None = None,
) -> dict[str, Any]:
    """
    Write the dataset from a journal that contains all critiques, and return the counts. `failures` maps the positions of failed rows to the
    reasons.
    """
    run = Run(rows, lambda row: builder.build(row, ask), [], 1, failures or {})
    counts = {"rows_read": len(rows), "answers": len(journal), "answers_of_earlier_runs": journal.kept, "retries": 0}
    features = features_with_critiques(rows.features, builder.options.num_critiques)
    return asyncio.run(folder.write(run.results(), features, counts))


# ---------------------------------------------------------------------------------------------- from a scorer


class ScorerCritic:
    """
    Critic that runs a [`Scorer`] on chunks of responses. Each response's critiques form one journal entry, so a killed run loses at most
    the chunk in progress. Chunk boundaries do not affect the critiques, because sampling depends only on the seed and the text.
    """

    def __init__(self, builder: CritiqueBuilder, journal: Journal):
        self.builder = builder
        self.journal = journal
        # Counted here, because a retry rewrites all critiques of a response, and the builder reads only those that were truncated
        self.tokens = {"prompt_tokens": 0, "critique_tokens": 0}

    async def ask(self, task: CritiqueTask, side: str, number: int, max_new_tokens: int) -> Critique:
        """Read a critique from the journal; see [`Ask`]."""
        # The token limit is part of the key, so a retry with more tokens is a separate entry
        ids, finish_reason = self.journal[key_of(task.row["id"], side, max_new_tokens)][number]
        return Critique(tuple(ids), finish_reason)

    def write_all(self, scorer: "Scorer", rows: Rows, chunk_size: int, longest_first: bool):
        """
        Write all critiques that are missing from the journal, then retry truncated critiques with more tokens. A retry writes all
        critiques of the response again. `tokens` then counts everything that this run and earlier ones have written.

        A chunk is the set of responses passed to one scorer call. `longest_first` sorts responses by length, so that batches need little
        padding. Otherwise, the two responses to a prompt stay together, so that the second can reuse the cached prefix of the first.

        All rows are checked before anything is computed. If rows are unusable and the builder does not drop them, raises a `ValueError`
        that lists them by kind of problem, or recommends limits if they are over-long. After the first Ctrl-C, the chunk in progress is
        finished before `KeyboardInterrupt` is raised.
        """
        options = self.builder.options
        jobs = self._jobs(rows)
        if longest_first:
            jobs.sort(key=lambda job: -job.prefix_length)
        for tries in range(options.most_longer_tries + 1):
            max_new_tokens = options.max_new_tokens * 2**tries
            jobs = [job for job in jobs if self.builder.has_room(job.prefix_length, max_new_tokens)]
            waiting = [job for job in jobs if key_of(job.id, job.side, max_new_tokens) not in self.journal]
            title = "Critiques" if tries == 0 else f"Truncated critiques again, up to {max_new_tokens} tokens"
            with (
                tqdm(total=len(waiting), desc=title, unit=" responses", disable=not waiting) as progress,
                _without_scoring_warnings(),
                deferred_interrupts() as interrupts,
            ):
                for start in range(0, len(waiting), chunk_size):
                    interrupts.check()
                    chunk = waiting[start : start + chunk_size]
                    self._write_chunk(scorer, rows, chunk, max_new_tokens)
                    progress.update(len(chunk))
            cut = []
            for job in jobs:
                critiques = self.journal[key_of(job.id, job.side, max_new_tokens)]
                self.tokens["prompt_tokens"] += len(critiques) * job.prefix_length
                self.tokens["critique_tokens"] += sum(len(ids) + 1 for ids, _ in critiques)  # with the end token
                if any(finish_reason == "length" for _, finish_reason in critiques):
                    cut.append(job)
            jobs = cut

    def _jobs(self, rows: Rows) -> list["_Job"]:
        """Return a job for each response in the rows that fit in the context."""
        measured: list[tuple[Any, tuple[int, ...] | None]] = []

        def measure(row: dict[str, Any]) -> int | None:
            measured.append((row["id"], self.builder.lengths(row)))
            return self.builder.needed(measured[-1][1])

        check_rows(rows, measure)
        return [
            _Job(index, name, side, length)
            for index, (name, lengths) in enumerate(measured)
            if lengths is not None
            for side, length in zip(SIDES, lengths, strict=True)
        ]

    def _write_chunk(self, scorer: "Scorer", rows: Rows, chunk: list["_Job"], max_new_tokens: int):
        options = self.builder.options
        tasks = [self.builder.fit(rows[job.index]) for job in chunk]

        def keep(index: int, score: "Score"):
            critiques = list(zip(map(list, score.critique_ids), score.finish_reasons, strict=True))
            self.journal.add(key_of(chunk[index].id, chunk[index].side, max_new_tokens), critiques)

        chats = [judged_chat(task.prompt, task.responses[job.side]) for task, job in zip(tasks, chunk, strict=True)]
        scorer.score(
            [prompt for prompt, _ in chats],
            [response for _, response in chats],
            num_critiques=options.num_critiques,
            temperature=options.temperature,
            max_new_tokens=max_new_tokens,
            seed=options.seed,
            on_score=keep,
        )


@dataclass(frozen=True, slots=True)
class _Job:
    """A response to critique: the position and id of its row, its side, and the number of tokens before its critique."""

    index: int
    id: Any
    side: str
    prefix_length: int


@contextmanager
def _without_scoring_warnings():
    """Silence the warnings that the scorer logs for each chunk, because [`CritiqueBuilder.counts`] reports the totals."""
    logger = logging.getLogger("cloud_hf.scoring")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


# --------------------------------------------------------------------------------------------- from a server


class ServedCritic:
    """
    Critic on vLLM's OpenAI-compatible server: a language model that receives one request per critique.

    Prompts are sent as token ids, so the server adds no tokens and does not parse control tokens that are spelled out in the text.
    """

    def __init__(
        self,
        client: JournaledClient,
        critique_format: "CritiqueFormat",
        config: "CLoudConfig",
        options: CritiqueOptions,
    ):
        self.client, self.options = client, options
        self.repetition_penalty = critique_format.repetition_penalty
        self.stop_ids = (critique_format.end_token_id, *critique_format.stop_ids(config))
        self.banned_ids = critique_format.banned_ids(config)
        self.vocab_size = config.text_config.vocab_size  # including padding rows

    async def ask(self, task: CritiqueTask, side: str, number: int, max_new_tokens: int) -> Critique:
        """Request a critique; see [`Ask`]."""
        prefix_ids = task.prefixes[side].input_ids
        sampling = self._sampling(number, prefix_ids)
        # Allow one extra token, so that a critique of maximum length can still end
        answer = await self.client.complete(
            [task.row["id"], side, number], prefix_ids, max_tokens=max_new_tokens + 1, **sampling
        )
        return self._critique(answer, max_new_tokens)

    def _sampling(self, number: int, prefix_ids: Sequence[int]) -> dict[str, Any]:
        from ..generation import row_seed  # loads torch

        sampling: dict[str, Any] = {
            **NEUTRAL_SAMPLING,
            "temperature": self.options.temperature,
            "repetition_penalty": self.repetition_penalty,
            # Only these tokens end a critique
            "stop_token_ids": list(self.stop_ids),
            "ignore_eos": True,
            "return_token_ids": True,
        }
        if self.banned_ids:
            sampling["logit_bias"] = {str(token_id): -100.0 for token_id in self.banned_ids}
        if self.options.temperature > 0:
            # vLLM's seeds are signed 64-bit integers
            sampling["seed"] = row_seed(self.options.seed, number, tuple(prefix_ids)) % 2**62
        return sampling

    def _critique(self, answer: Answer, max_new_tokens: int) -> Critique:
        if answer.finish_reason not in ("stop", "length"):
            raise Dropped(f"the server ended the critique with the finish reason {answer.finish_reason!r}")
        ids = answer.token_ids or ()
        if any(token_id >= self.vocab_size for token_id in ids):
            raise RowRefused(
                f"the server returned token id {max(ids)}, but the model's largest token id is {self.vocab_size - 1}"
            )
        if ids and ids[-1] in self.stop_ids:
            return Critique(ids[:-1], "stop")
        return Critique(ids[:max_new_tokens], answer.finish_reason)
