"""List all probes, and run them: alter rows, score the altered chats, and compute metrics."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...combine_critiques import combine_scores
from ...critique_format import CritiqueFormat
from ...scoring import Score
from ..journaled_scorer import JournaledScorer
from ..stats import group
from .batch_position import BATCH_POSITION
from .content_free_answers import EMPTY_AND_REFUSALS, TRIVIAL_ANSWERS
from .injection import FORGED_CRITIQUES, SPECIAL_TOKENS, stays_text
from .length import LENGTH
from .paraphrase import PARAPHRASES
from .probe import Measure, Probe, ProbedRow, ProbeRow, ScoredVariant, Variant, with_controls
from .style import STYLE


BATCH = "batch"
# To add a probe, write a module with a `Probe` and list it here: options, reports and files use this list
PROBES: dict[str, Probe] = {
    "length": LENGTH,
    "style": STYLE,
    "special_tokens": SPECIAL_TOKENS,
    "forged_critiques": FORGED_CRITIQUES,
    "trivial_answers": TRIVIAL_ANSWERS,
    "empty_and_refusals": EMPTY_AND_REFUSALS,
    "paraphrases": PARAPHRASES,
    BATCH: BATCH_POSITION,
}
NAMES = tuple(PROBES)


@dataclass(frozen=True)
class ProbeResult:
    """
    Results of a probe for one model.

    Args:
        name, title, about (`str`):
            Name of the probe, and its title and description in reports; see [`Probe`].
        rows, left_out (`int`):
            Number of probed rows, and number of altered chats that do not fit in the model's context or that its format rejects.
        measures (`list[Measure]`):
            Metrics over the rows of all sets.
        by_dataset (`dict[str, list[Measure]]`):
            Metrics for each set; empty if there is only one set.
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
        """Return the metrics in JSON form."""
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
        """Yield a row for each altered chat."""
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


def check_probes(names: Sequence[str], combine: str = "mean") -> list[str]:
    """
    Check the names of probes, and replace `"all"` with the names of all probes. `combine` is the way to combine the rewards of several
    critiques, one of [`~combine_critiques.COMBINATIONS`].

    Raises:
        `ValueError`: If a probe does not exist or does not work with `combine`; the message names it.
    """
    for name in names:
        if name not in (*NAMES, "all"):
            close = difflib.get_close_matches(name, NAMES, n=1)
            hint = f"Did you mean {close[0]!r}? " if close else ""
            raise ValueError(f"There is no probe {name!r}. {hint}Known probes: {', '.join(NAMES)}, or all.")
    names = [name for name in NAMES if name in names or "all" in names]
    _check_vote(names, combine)
    return names


def _check_vote(names: Sequence[str], combine: str):
    altering = [name for name in names if PROBES[name].alter]
    if combine == "vote" and altering:
        raise ValueError(
            "`combine` 'vote' compares the responses of a row, so an altered response has no reward of its own: omit the "
            f"probes {', '.join(altering)}, or choose another combination."
        )


def draw_rows(rows: Sequence[ProbeRow], count: int, seed: int) -> list[ProbeRow]:
    """Sample at most `count` rows from each set, keeping their order."""
    drawn = []
    for members in group([row.dataset for row in rows], rows).values():
        places = np.random.default_rng(seed).permutation(len(members))[:count]
        drawn += [members[place] for place in sorted(places)]
    return drawn


def draw_few(rows: Sequence[ProbeRow], count: int, seed: int) -> list[ProbeRow]:
    """Sample at most `count` rows in total, about the same number from each set."""
    num_sets = len({row.dataset for row in rows})
    return draw_rows(rows, count // max(1, num_sets) or 1, seed)[:count]


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
    combine: str = "mean",
    **options,
) -> list[ProbeResult]:
    """
    Probe a model. The altered chats of all probes are scored in a single call.

    Args:
        names (`Sequence[str]`):
            Keys of `PROBES`; see [`check_probes`].
        rows (`Sequence[ProbeRow]`):
            Rows that the model has scored.
        num_rows (`int`):
            Maximum number of altered rows per set, sampled with `draw_seed`.
        scorer ([`JournaledScorer`]):
            The model.
        critique_format ([`CritiqueFormat`]):
            The model's format.
        context_length (`int`, *optional*):
            Context length of the model in tokens, critique included. Altered chats that need more are left out and counted.
        max_new_tokens (`int`):
            Token limit of a critique.
        batch_size (`int`):
            Chats per batch for probes that score in batches.
        draw_seed (`int`, *optional*, defaults to `0`):
            Seed for sampling rows.
        sort_by_length (`bool`, *optional*, defaults to `False`):
            Whether to pass the lengths of the chats to the scorer; see [`JournaledScorer.score`].
        combine (`str`, *optional*, defaults to `"mean"`):
            How the rewards of several critiques were combined in the scores of `rows`; the altered chats' are combined in the same way.
        **options:
            Further options of [`Scorer`].

    Raises:
        `ValueError`: If `combine` is `"vote"`, which gives single altered chats no rewards, and a probe alters rows.
    """
    _check_vote(names, combine)
    drawn = draw_rows(rows, num_rows, draw_seed)
    options["max_new_tokens"] = max_new_tokens
    # Room for the critique and the end of turn, where the reward is read
    reserve = max_new_tokens + 1 if critique_format.critique else 0
    limit = None if context_length is None else context_length - reserve
    altered = {
        name: [_alter(PROBES[name], row, critique_format, limit) for row in drawn]
        for name in names
        if PROBES[name].alter
    }
    scores = _score(altered, scorer, sort_by_length, combine, options)
    results = []
    for name in names:
        probe = PROBES[name]
        if probe.rescore:
            few = draw_few(drawn, probe.most_rows or len(drawn), draw_seed)
            measures = probe.rescore(few, scorer.scorer, scorer.journal, batch_size, draw_seed, options)
            results.append(ProbeResult(name, probe.title, probe.about, len(few), 0, measures, {}, []))
        else:
            parts = altered[name] if probe.alter else [_AlteredRow(row, [], 0) for row in rows]
            results.append(_measure(name, probe, parts, scores))
    return results


@dataclass(frozen=True)
class _AlteredChat:
    """An altered chat to be scored, and its length in tokens."""

    variant: Variant
    length: int
    stays_text: bool


@dataclass(frozen=True)
class _AlteredRow:
    row: ProbeRow
    chats: list[_AlteredChat]
    left_out: int


def _alter(probe: Probe, row: ProbeRow, critique_format: CritiqueFormat, limit: int | None) -> _AlteredRow:
    """Alter a row, and leave out chats that are too long for the model or that its format rejects."""
    assert probe.alter is not None
    chats, variants = [], probe.alter(row, critique_format)
    if probe.controls:
        variants = with_controls(row, variants)
    for variant in variants:
        try:
            ids = critique_format.encode_prefix(variant.prompt, variant.response).input_ids
        except ValueError:  # the format rejects text that would be read as control tokens
            continue
        if limit is None or len(ids) <= limit:
            is_text = not probe.checks_text or stays_text(critique_format, variant.prompt, ids)
            chats.append(_AlteredChat(variant, len(ids), is_text))
    return _AlteredRow(row, chats, len(variants) - len(chats))


def _score(
    altered: dict[str, list[_AlteredRow]],
    scorer: JournaledScorer,
    sort_by_length: bool,
    combine: str,
    options: dict[str, Any],
) -> Iterator[Score]:
    """Score the altered chats of all probes, and return the scores in the order of the chats."""
    found = [(name, part.row, chat) for name, parts in altered.items() for part in parts for chat in part.chats]
    if not found:
        return iter(())
    scores = scorer.score(
        [chat.variant.prompt for _, _, chat in found],
        [chat.variant.response for _, _, chat in found],
        lengths=[chat.length for _, _, chat in found] if sort_by_length else None,
        names=[f"probe {name}, {row.dataset}, row {row.row.id!r}" for name, row, _ in found],
        **options,
    )
    return iter(combine_scores(scores, combine))


def _measure(name: str, probe: Probe, parts: Sequence[_AlteredRow], scores: Iterator[Score]) -> ProbeResult:
    """Compute a probe's metrics, taking the scores of the altered chats from the iterator `scores`."""
    probed = []
    for part in parts:
        scored = [ScoredVariant(chat.variant, next(scores), chat.stays_text) for chat in part.chats]
        probed.append(ProbedRow(part.row, {(found.variant.label, found.variant.place): found for found in scored}))
    by_dataset = group([row.row.dataset for row in probed], probed)
    if len(by_dataset) == 1:
        by_dataset = {}
    return ProbeResult(
        name,
        probe.title,
        probe.about,
        len(probed),
        sum(part.left_out for part in parts),
        probe.measure(probed),
        {dataset: probe.measure(members) for dataset, members in by_dataset.items()},
        probed,
    )
