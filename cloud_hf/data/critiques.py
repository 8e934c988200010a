"""Critiques that a model writes of both responses of a pair: what it is asked for, again if need be, and what is kept."""

import logging
import math
from collections.abc import Awaitable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from datasets import Features, List, Value
from tqdm import tqdm

from ..critique_format import CritiqueFormat, EncodedPrefix
from ..generation import row_seed
from ..scoring import Score, Scorer
from .completions import Answer
from .journal import Journal, key_of
from .rows import check_policy, fit, prompt_column, prompt_of, response_of
from .run import Dropped, JournaledClient, RowRefused, all_of, check_rows


SIDES = ("chosen", "rejected")
TRUNCATED = ("drop", "keep")


@dataclass(frozen=True)
class Critique:
    """Generated token ids without the end token, and how they ended: `"stop"`, or `"length"` if they were cut."""

    ids: tuple[int, ...]
    finish_reason: str


@dataclass(frozen=True)
class CritiqueOptions:
    """
    What critiques are asked for.

    Args:
        num_critiques (`int`):
            Critiques per response.
        temperature (`float`):
            Sampling temperature; 0 is greedy.
        max_new_tokens (`int`):
            Longest critique in tokens.
        longer_tries (`int`):
            How often a critique that was cut is written again, with twice the tokens each time.
        truncated (`str`):
            What becomes of critiques that are cut even then: `"drop"` or `"keep"`.
        overlong_policy (`str`):
            What becomes of rows that do not fit the context: `"error"`, `"drop"` or `"truncate_prompt"`.
        seed (`int`):
            Seed of the sampling.

    Raises:
        `ValueError`: If a value makes no sense.
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
            raise ValueError(f"`temperature` is {self.temperature}; it must be a finite number from 0 up.")
        if self.num_critiques > 1 and self.temperature == 0.0:
            raise ValueError("`num_critiques` above 1 needs a `temperature` above 0, or all are the same.")
        if self.truncated not in TRUNCATED:
            raise ValueError(f"`truncated` is {self.truncated!r}; use {' or '.join(TRUNCATED)}.")
        check_policy(self.overlong_policy)


@dataclass(frozen=True)
class FittedRow:
    """A row that fits the context; `prompt` may be shortened. Prefixes and responses are by side."""

    row: dict[str, Any]
    prompt: Any
    is_shortened: bool
    responses: dict[str, str]
    prefixes: dict[str, EncodedPrefix]


class Ask(Protocol):
    """Where critiques come from: critique `number` of a response, with at most `max_new_tokens`."""

    def __call__(self, row: FittedRow, side: str, number: int, max_new_tokens: int) -> Awaitable[Critique]: ...


@dataclass
class CritiqueBuilder:
    """
    Makes rows with critiques out of rows.

    Args:
        critique_format ([`CritiqueFormat`]):
            The model's format.
        context (`int`, *optional*):
            Tokens that the model may read, a critique included.
        options ([`CritiqueOptions`]):
            What is asked for.
    """

    critique_format: CritiqueFormat
    context: int | None
    options: CritiqueOptions
    _tallies: dict[Any, tuple[int, ...]] = field(default_factory=dict)

    def fit(self, row: dict[str, Any]) -> FittedRow:
        """
        Encode a row, its prompt shortened if that is the policy.

        Raises:
            `ValueError`: If a text is not usable, or the row is too long and the policy is `"error"`.
            `Dropped`: If it is too long otherwise.
        """
        # Empty responses are refused here: training would refuse them after all critiques are paid for
        responses = {side: response_of(row, side) for side in SIDES}
        needed = 0

        def encode(prompt: Any) -> dict[str, EncodedPrefix]:
            return {side: self.critique_format.encode_prefix(prompt, responses[side]) for side in SIDES}

        def length(prefixes: dict[str, EncodedPrefix]) -> int:
            nonlocal needed
            needed = max(len(prefix.input_ids) for prefix in prefixes.values()) + self.options.max_new_tokens + 1
            return needed

        given = prompt_of(row)
        policy = self.options.overlong_policy
        prompt, prefixes = fit(given, encode, length, self.context, policy, self.critique_format)
        if prefixes is None:
            raise Dropped(f"{needed} tokens with its critique, but {self.context} fit")
        return FittedRow(row, prompt, prompt is not given, responses, prefixes)

    def lengths(self, row: dict[str, Any]) -> tuple[int, ...] | None:
        """Tokens of a row's prefixes, by side; `None` if it is too long. Raises `ValueError` if it cannot be used."""
        try:
            return tuple(len(prefix.input_ids) for prefix in self.fit(row).prefixes.values())
        except Dropped:
            return None

    def has_room(self, prefix_length: int, max_new_tokens: int) -> bool:
        """Whether the context holds a critique of so many tokens."""
        return self.context is None or prefix_length + max_new_tokens + 1 <= self.context

    async def build(self, row: dict[str, Any], ask: Ask) -> list[dict[str, Any]]:
        """
        The row with new critiques: `{side}_feedback`, `{side}_feedback_ids` and `{side}_finish_reason` of both responses.

        Raises:
            `Dropped`: If it is too long, or a critique stays cut.
        """
        fitted = self.fit(row)
        counts = _Counts(
            prompts_shortened=int(fitted.is_shortened),
            responses_changed=sum(prefix.response_changed for prefix in fitted.prefixes.values()),
        )
        try:
            numbers = range(self.options.num_critiques)
            critiques = await all_of(
                *(self._write(fitted, side, number, ask, counts) for side in SIDES for number in numbers)
            )
            written = dict(zip(SIDES, (critiques[: len(numbers)], critiques[len(numbers) :]), strict=True))
            kept = self._keep(written, counts)
        finally:
            # By id: a row is built twice where answers are first asked for and then read from the journal
            self._tallies[row["id"]] = counts.as_tuple()
        new = {**row, "prompt": prompt_column(fitted.prompt, row)}
        for side, critiques in kept.items():
            values = {
                f"{side}_feedback": [self.critique_format.decode(list(critique.ids)) for critique in critiques],
                f"{side}_feedback_ids": [list(critique.ids) for critique in critiques],
                f"{side}_finish_reason": [critique.finish_reason for critique in critiques],
            }
            several = self.options.num_critiques > 1
            new |= values if several else {name: value[0] for name, value in values.items()}
        return [new]

    def counts(self) -> dict[str, int]:
        """Critiques in all rows built so far, and tokens read and written for them, cut ones included."""
        totals = map(sum, zip(*self._tallies.values(), strict=True))
        return dict(zip(_Counts.__dataclass_fields__, totals, strict=True))

    async def _write(self, row: FittedRow, side: str, number: int, ask: Ask, counts: "_Counts") -> Critique:
        """A critique, written again with more tokens if it was cut and the context holds more."""
        prefix_length = len(row.prefixes[side].input_ids)
        max_new_tokens = self.options.max_new_tokens
        for tries in range(self.options.longer_tries + 1):
            critique = await ask(row, side, number, max_new_tokens)
            counts.prompt_tokens += prefix_length
            counts.critique_tokens += len(critique.ids) + 1
            counts.critiques_written_longer += tries == 1
            if critique.finish_reason != "length" or not self.has_room(prefix_length, 2 * max_new_tokens):
                break
            max_new_tokens *= 2
        return critique

    def _keep(self, written: dict[str, list[Critique]], counts: "_Counts") -> dict[str, list[Critique]]:
        """The critiques that go into the dataset: whole ones, equally many of both responses, unless cut ones may stay."""
        kept = written
        if self.options.truncated == "drop":
            whole = {
                side: [critique for critique in critiques if critique.finish_reason != "length"]
                for side, critiques in written.items()
            }
            number = min(map(len, whole.values()))
            kept = {side: critiques[:number] for side, critiques in whole.items()}
            cut = sum(critique.finish_reason == "length" for critiques in written.values() for critique in critiques)
            counts.critiques_dropped_as_cut += cut
            if number == 0:
                longest = max(len(critique.ids) for critiques in written.values() for critique in critiques)
                raise Dropped(f"the critique is cut at {longest} tokens")
        for critique in (critique for critiques in kept.values() for critique in critiques):
            counts.critiques += 1
            counts.critiques_cut += critique.finish_reason == "length"
        return kept


@dataclass
class _Counts:
    """Of one row."""

    critiques: int = 0
    critiques_cut: int = 0
    critiques_dropped_as_cut: int = 0
    critiques_written_longer: int = 0
    prompts_shortened: int = 0
    responses_changed: int = 0
    prompt_tokens: int = 0
    critique_tokens: int = 0

    def as_tuple(self) -> tuple[int, ...]:
        return tuple(vars(self).values())


def features_with_critiques(features: Features, num_critiques: int) -> Features:
    """The columns of the new rows."""
    kinds = {"feedback": Value("string"), "feedback_ids": List(Value("int64")), "finish_reason": Value("string")}
    several = num_critiques > 1
    new = {
        f"{side}_{name}": List(kind) if several else kind for side in SIDES for name, kind in kinds.items()
    }  # fmt: skip
    return Features({**features, **new})


# ---------------------------------------------------------------------------------------------- from a scorer


class JournaledScorer:
    """
    Critiques of a [`Scorer`], which judges many responses at a time; each one's critiques are journaled by themselves.

    A killed run loses no more than the chunk under way. Which critiques a response gets does not depend on the chunks:
    scorers sample by seed and text.

    Args:
        builder ([`CritiqueBuilder`]):
            What is asked for.
        journal ([`Journal`]):
            Where the critiques are kept.
    """

    def __init__(self, builder: CritiqueBuilder, journal: Journal):
        self.builder = builder
        self.journal = journal

    async def ask(self, row: FittedRow, side: str, number: int, max_new_tokens: int) -> Critique:
        """A critique from the journal; see [`Ask`]."""
        ids, finish_reason = self.journal[self._key(row.row["id"], side, max_new_tokens)][number]
        return Critique(tuple(ids), finish_reason)

    def write_all(self, scorer: Scorer, rows: Sequence[dict[str, Any]], chunk_size: int, longest_first: bool):
        """
        Let the scorer write all critiques that are not in the journal, longer ones for those that were cut.

        Args:
            scorer ([`Scorer`]):
                Any backend.
            rows (`Sequence[dict]`):
                The rows.
            chunk_size (`int`):
                Responses it judges in one call.
            longest_first (`bool`):
                Sort by length, so that what is computed together is of one length. Else both responses to one prompt stay
                together.

        Raises:
            `ValueError`: Before anything is computed, naming the first row that cannot be used.
        """
        options = self.builder.options
        jobs = self._jobs(rows)
        if longest_first:
            jobs.sort(key=lambda job: -job.prefix_length)
        max_new_tokens = options.max_new_tokens
        for tries in range(options.longer_tries + 1):
            if tries > 0:
                jobs = [job for job in jobs if self._is_cut(job, max_new_tokens)]
                max_new_tokens *= 2
                jobs = [job for job in jobs if self.builder.has_room(job.prefix_length, max_new_tokens)]
            waiting = [job for job in jobs if self._key(job.id, job.side, max_new_tokens) not in self.journal]
            title = "Critiques" if tries == 0 else f"Cut critiques again, up to {max_new_tokens} tokens"
            with (
                tqdm(total=len(waiting), desc=title, unit=" responses", disable=not waiting) as progress,
                _no_warnings_of_scoring(),
            ):
                for start in range(0, len(waiting), chunk_size):
                    chunk = waiting[start : start + chunk_size]
                    self._write_chunk(scorer, rows, chunk, max_new_tokens)
                    progress.update(len(chunk))

    def _jobs(self, rows: Sequence[dict[str, Any]]) -> list["_Job"]:
        """The responses of all rows that fit."""
        measured: list[tuple[Any, tuple[int, ...] | None]] = []
        check_rows(rows, lambda row: measured.append((row["id"], self.builder.lengths(row))))
        return [
            _Job(index, name, side, length)
            for index, (name, lengths) in enumerate(measured)
            if lengths is not None
            for side, length in zip(SIDES, lengths, strict=True)
        ]

    def _write_chunk(self, scorer: Scorer, rows: Sequence[dict[str, Any]], chunk: list["_Job"], max_new_tokens: int):
        options = self.builder.options
        fitted = [self.builder.fit(rows[job.index]) for job in chunk]

        def keep(index: int, score: Score):
            critiques = list(zip(map(list, score.critique_ids), score.finish_reasons, strict=True))
            self.journal.add(self._key(chunk[index].id, chunk[index].side, max_new_tokens), critiques)

        scorer.score(
            [row.prompt for row in fitted],
            [row.responses[job.side] for row, job in zip(fitted, chunk, strict=True)],
            num_critiques=options.num_critiques,
            temperature=options.temperature,
            max_new_tokens=max_new_tokens,
            seed=options.seed,
            on_score=keep,
        )

    def _is_cut(self, job: "_Job", max_new_tokens: int) -> bool:
        critiques = self.journal[self._key(job.id, job.side, max_new_tokens)]
        return any(finish_reason == "length" for _, finish_reason in critiques)

    @staticmethod
    def _key(name: Any, side: str, max_new_tokens: int) -> str:
        return key_of(name, side, max_new_tokens)


@dataclass(frozen=True, slots=True)
class _Job:
    """A response to judge: its row's position and id, its side, and the tokens before its critique."""

    index: int
    id: Any
    side: str
    prefix_length: int


@contextmanager
def _no_warnings_of_scoring():
    """It would say of each chunk what [`CritiqueBuilder.counts`] says of all."""
    logger = logging.getLogger("cloud_hf.scoring")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


# --------------------------------------------------------------------------------------------- from a server


@dataclass(frozen=True)
class ServedCritic:
    """
    Critiques of a language model behind vLLM's OpenAI-compatible server, one request each.

    Prompts are sent as token ids, so that the server adds nothing to them and what they spell stays text.

    Args:
        client ([`JournaledClient`]):
            Asks the server.
        critique_format ([`CritiqueFormat`]):
            The model's format.
        stop_ids (`tuple[int, ...]`):
            Tokens that end a critique.
        banned_ids (`tuple[int, ...]`):
            Tokens that are not written.
        vocab_size (`int`):
            Tokens that the model has, padding rows included.
        temperature (`float`):
            Sampling temperature; 0 is greedy.
        seed (`int`):
            Seed of the sampling.
    """

    client: JournaledClient
    critique_format: CritiqueFormat
    stop_ids: tuple[int, ...]
    banned_ids: tuple[int, ...]
    vocab_size: int
    temperature: float
    seed: int

    @classmethod
    def of(cls, client: JournaledClient, critique_format: CritiqueFormat, config, options: CritiqueOptions):
        """The critic of a model with this config."""
        return cls(
            client,
            critique_format,
            (critique_format.end_token_id, *critique_format.stop_ids(config)),
            tuple(critique_format.banned_ids(config)),
            config.text_config.vocab_size,
            options.temperature,
            options.seed,
        )

    async def ask(self, row: FittedRow, side: str, number: int, max_new_tokens: int) -> Critique:
        """See [`Ask`]."""
        prefix_ids = row.prefixes[side].input_ids
        sampling = self._sampling(number, prefix_ids)
        # One more, so that a critique of full length can end
        answer = await self.client.complete(
            [row.row["id"], side, number], prefix_ids, max_tokens=max_new_tokens + 1, **sampling
        )
        return self._critique(answer, max_new_tokens)

    def _sampling(self, number: int, prefix_ids: Sequence[int]) -> dict[str, Any]:
        sampling = {
            "temperature": self.temperature,
            # Said because the server would else take them from the model's generation config
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": self.critique_format.repetition_penalty,
            # Only these tokens end a critique
            "stop_token_ids": list(self.stop_ids),
            "ignore_eos": True,
            "return_token_ids": True,
        }
        if self.banned_ids:
            sampling["logit_bias"] = {str(token_id): -100.0 for token_id in self.banned_ids}
        if self.temperature > 0:
            sampling["seed"] = row_seed(self.seed, number, tuple(prefix_ids)) % 2**62
        return sampling

    def _critique(self, answer: Answer, max_new_tokens: int) -> Critique:
        if answer.finish_reason not in ("stop", "length"):
            raise Dropped(f"the server ended the critique with {answer.finish_reason!r}")
        ids = answer.token_ids
        if any(token_id >= self.vocab_size for token_id in ids):
            raise RowRefused(f"the server gave token {max(ids)}, but the model's last is {self.vocab_size - 1}")
        if ids and ids[-1] in self.stop_ids:
            return Critique(ids[:-1], "stop")
        return Critique(ids[:max_new_tokens], answer.finish_reason)
