"""Probes by name, and how they are run."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...critique_format import CritiqueFormat
from ...scoring import Score
from ..journaled_scorer import JournaledScorer
from .answers import EMPTY_AND_REFUSALS, TRIVIAL_ANSWERS
from .batch import ABOUT, MOST_ROWS, TITLE, probe_batches
from .injection import FORGED_CRITIQUES, SPECIAL_TOKENS, stays_text
from .length import LENGTH
from .paraphrase import PARAPHRASES
from .probe import Measure, Probe, ProbedRow, ProbeRow, ScoredVariant, Variant
from .style import STYLE


BATCH = "batch"
PROBES = {
    "length": LENGTH,
    "style": STYLE,
    "special_tokens": SPECIAL_TOKENS,
    "forged_critiques": FORGED_CRITIQUES,
    "trivial_answers": TRIVIAL_ANSWERS,
    "empty_and_refusals": EMPTY_AND_REFUSALS,
    "paraphrases": PARAPHRASES,
}
NAMES = (*PROBES, BATCH)


@dataclass(frozen=True)
class ProbeResult:
    """
    What a probe found of a model.

    Args:
        name (`str`):
            The probe.
        title (`str`):
            Its name in reports.
        about (`str`):
            What was altered and counted.
        rows (`int`):
            Rows looked at.
        left_out (`int`):
            Altered chats that were not scored, because they do not fit the model's context or its format refuses them.
        measures (`list[Measure]`):
            Its figures over the rows of all sets.
        by_dataset (`dict[str, list[Measure]]`):
            The same for each set, if there are several.
        probed (`list[ProbedRow]`):
            The altered chats with their scores.
    """

    name: str
    title: str
    about: str
    rows: int
    left_out: int
    measures: list[Measure]
    by_dataset: dict[str, list[Measure]]
    probed: list[ProbedRow]

    def summary(self) -> dict[str, Any]:
        """The figures for JSON."""
        return {
            "probe": self.name,
            "rows": self.rows,
            "left_out": self.left_out,
            "measures": [measure.summary() for measure in self.measures],
            "by_dataset": {
                name: [measure.summary() for measure in measures] for name, measures in self.by_dataset.items()
            },
        }

    def table(self) -> Iterator[dict[str, Any]]:
        """One row for each altered chat."""
        for found in self.probed:
            for scored in found.variants.values():
                yield {
                    "probe": self.name,
                    "benchmark": found.row.dataset,
                    "row": found.row.row.id,
                    "altered": scored.variant.label,
                    "response": scored.variant.place,
                    "text": scored.variant.response,
                    "reward": scored.reward,
                    "critiques": scored.score.critiques,
                }


def check_probes(names: Sequence[str]) -> list[str]:
    """
    The names of probes, `"all"` spelt out.

    Raises:
        `ValueError`: Naming the one that does not exist.
    """
    for name in names:
        if name not in (*NAMES, "all"):
            close = difflib.get_close_matches(name, NAMES, n=1)
            hint = f"Did you mean {close[0]!r}? " if close else ""
            raise ValueError(f"There is no probe {name!r}. {hint}Known are {', '.join(NAMES)}, or all.")
    return [name for name in NAMES if name in names or "all" in names]


def draw_rows(rows: Sequence[ProbeRow], count: int, seed: int) -> list[ProbeRow]:
    """At most `count` rows of each set, drawn at random, in their order."""
    drawn = []
    for dataset in dict.fromkeys(row.dataset for row in rows):
        members = [row for row in rows if row.dataset == dataset]
        places = np.random.default_rng(seed).permutation(len(members))[:count]
        drawn += [members[place] for place in sorted(places)]
    return drawn


def run_probes(
    names: Sequence[str],
    rows: Sequence[ProbeRow],
    num_rows: int,
    scorer: JournaledScorer,
    critique_format: CritiqueFormat,
    *,
    context_length: int | None,
    max_new_tokens: int,
    batch_size: int,
    draw_seed: int = 0,
    sort_by_length: bool = False,
    **options,
) -> list[ProbeResult]:
    """
    Probe a model.

    Args:
        names (`Sequence[str]`):
            From [`check_probes`].
        rows (`Sequence[ProbeRow]`):
            Rows that the model has scored.
        num_rows (`int`):
            Rows of each set that are altered at most, drawn with `draw_seed`.
        scorer ([`JournaledScorer`]):
            The model.
        critique_format ([`CritiqueFormat`]):
            Its format.
        context_length (`int`, *optional*):
            Tokens the model may read, critique included. Altered chats that need more are left out and counted.
        max_new_tokens (`int`):
            Longest critique in tokens.
        batch_size (`int`):
            Chats in a batch of the probe `"batch"`.
        draw_seed (`int`, *optional*, defaults to `0`):
            Seed of the draw of rows.
        sort_by_length (`bool`, *optional*, defaults to `False`):
            Tell the scorer the chats' lengths; see [`JournaledScorer.score`].
        **options:
            Further options of [`Scorer`].

    Returns:
        `list[ProbeResult]`
    """
    drawn = draw_rows(rows, num_rows, draw_seed)
    options["max_new_tokens"] = max_new_tokens
    altering = {name: PROBES[name] for name in names if name != BATCH and PROBES[name].alter}
    reserve = max_new_tokens + 1 if critique_format.critique else 0
    limit = None if context_length is None else context_length - reserve
    made = {name: [_alter(probe, row, critique_format, limit) for row in drawn] for name, probe in altering.items()}
    chats = [(name, row, chat) for name, rows_of in made.items() for row in rows_of for chat in row.chats]
    scores = iter(
        scorer.score(
            [chat.variant.prompt for _, _, chat in chats],
            [chat.variant.response for _, _, chat in chats],
            lengths=[chat.length for _, _, chat in chats] if sort_by_length else None,
            names=[f"probe {name}, {row.row.dataset}, row {row.row.row.id!r}" for name, row, _ in chats],
            **options,
        )
        if chats
        else ()
    )
    results = []
    for name in names:
        if name == BATCH:
            few = _batch_rows(drawn, draw_seed)
            measures = probe_batches(few, scorer.scorer, scorer.journal, batch_size, draw_seed, options)
            results.append(ProbeResult(name, TITLE, ABOUT, len(few), 0, measures, {}, []))
            continue
        altered = made[name] if name in made else [_AlteredRow(row, [], 0) for row in rows]
        probed = [part.with_scores(scores) for part in altered]
        results.append(_result(name, PROBES[name], probed, sum(part.left_out for part in altered)))
    return results


def _batch_rows(drawn: Sequence[ProbeRow], seed: int) -> list[ProbeRow]:
    """At most `MOST_ROWS` rows, about equally many of each set."""
    num_sets = len({row.dataset for row in drawn})
    return draw_rows(drawn, MOST_ROWS // max(1, num_sets) or 1, seed)[:MOST_ROWS]


@dataclass(frozen=True)
class _Chat:
    """An altered chat that is to be scored, and its tokens."""

    variant: Variant
    length: int
    stays_text: bool


@dataclass(frozen=True)
class _AlteredRow:
    row: ProbeRow
    chats: list[_Chat]
    left_out: int

    def with_scores(self, scores: Iterator[Score]) -> ProbedRow:
        scored = [ScoredVariant(chat.variant, next(scores), chat.stays_text) for chat in self.chats]
        return ProbedRow(self.row, {(found.variant.label, found.variant.place): found for found in scored})


def _alter(probe: Probe, row: ProbeRow, critique_format: CritiqueFormat, limit: int | None) -> _AlteredRow:
    """The altered chats of a row that the model can read."""
    chats = []
    variants = probe.alter(row, critique_format)
    for variant in variants:
        try:
            ids = critique_format.encode_prefix(variant.prompt, variant.response).input_ids
        except ValueError:  # the format refuses what it cannot keep as text
            continue
        if limit is None or len(ids) <= limit:
            is_text = not probe.checks_text or stays_text(critique_format, variant.prompt, ids)
            chats.append(_Chat(variant, len(ids), is_text))
    return _AlteredRow(row, chats, len(variants) - len(chats))


def _result(name: str, probe: Probe, probed: list[ProbedRow], left_out: int) -> ProbeResult:
    datasets = dict.fromkeys(row.row.dataset for row in probed)
    by_dataset = {
        dataset: probe.measure([row for row in probed if row.row.dataset == dataset])
        for dataset in (datasets if len(datasets) > 1 else ())
    }
    return ProbeResult(
        name, probe.title, probe.about, len(probed), left_out, probe.measure(probed), by_dataset, probed
    )
