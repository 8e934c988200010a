"""Judged rows: which models get each row right, where a reward falls in the model's distribution, and scores loaded from an evaluation."""

import math
import statistics
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloud_hf.scores import Sample, Score


if TYPE_CHECKING:
    from cloud_hf.evaluation.rows import BenchmarkRow


# Scores of the chosen and the rejected response
Pair = tuple[Score, Score]


def is_right(scores: Sequence[Score]) -> bool:
    """Return whether the chosen response has a strictly higher reward."""
    return scores[0].reward > scores[1].reward


def is_tie(scores: Sequence[Score]) -> bool:
    """Return whether both responses have the same reward."""
    return scores[0].reward == scores[1].reward


@dataclass(frozen=True)
class Judgement:
    """Scores of a row's two responses by the demo's model and, if there is one, by the comparison model."""

    cloud: Pair
    classic: Pair | None = None


# Filters for the list of rows, by name; {0} and {1} stand for the models' names
FILTERS: dict[str, Callable[[Judgement], bool]] = {
    "{0} right, {1} wrong": lambda row: row.classic is not None and is_right(row.cloud) and not is_right(row.classic),
    "{1} right, {0} wrong": lambda row: row.classic is not None and is_right(row.classic) and not is_right(row.cloud),
    "Both wrong": lambda row: row.classic is not None and not is_right(row.cloud) and not is_right(row.classic),
    "Ties": lambda row: is_tie(row.cloud) or (row.classic is not None and is_tie(row.classic)),
}


@dataclass
class JudgedRows:
    """
    Judgements by row index, and the CLoud model's mean rewards in ascending order.

    `source` names the rows, and `wanted` counts those that will be judged in the background.
    """

    source: str = ""
    wanted: int = 0
    # Reason why there is no distribution, or why no more rows will be judged
    problem: str | None = None
    # The evaluation that the scores were loaded from
    evaluation: str | None = None
    found: dict[int, Judgement] = field(default_factory=dict)
    chosen: list[float] = field(default_factory=list)
    rejected: list[float] = field(default_factory=list)

    # With fewer rows, a percentile among their rewards means little
    FEWEST = 4

    @property
    def is_usable(self) -> bool:
        """Whether there are enough rewards to compare with."""
        return len(self.found) >= self.FEWEST

    @property
    def is_growing(self) -> bool:
        """Whether more rows are being judged."""
        return self.problem is None and len(self.found) < self.wanted

    def add(self, index: int, judgement: Judgement):
        """Store a judgement unless the row already has one."""
        if index not in self.found:
            self.found[index] = judgement
            # An evaluation's combined rewards, such as vote shares, need not be on the scale of the page's rewards, which are means
            insort(self.chosen, statistics.fmean(judgement.cloud[0].rewards))
            insort(self.rejected, statistics.fmean(judgement.cloud[1].rewards))

    def percentile(self, reward: float) -> float:
        """Return the percentage of rewards that are lower; equal rewards count half."""
        below = sum(
            find(side, reward) for side in (self.chosen, self.rejected) for find in (bisect_left, bisect_right)
        )
        return 100 * below / 2 / (2 * len(self.found))

    def describe(self, reward: float | None) -> str:
        """Describe in one sentence where `reward` falls among the model's rewards, or what a reward will be compared with."""
        if not self.is_usable:
            if self.problem is not None:
                return self.problem
            if not self.wanted:
                return "There are no rewards to compare this one with."
            return f"This model's rewards are still being measured ({len(self.found)} of {self.wanted} rows)."
        unfinished = f" (out of {self.wanted})" if self.is_growing else ""
        known = f"{2 * len(self.found)} rewards of right and wrong responses, from {len(self.found)} rows{unfinished} of {self.source}"
        if reward is None:
            return f"It will be compared with {known}."
        rewards = [*self.chosen, *self.rejected]
        std = statistics.pstdev(rewards)
        deviations = f", {(reward - statistics.fmean(rewards)) / std:+.1f} standard deviations" if std > 0 else ""
        return f"Higher than {self.percentile(reward):.0f} % of {known}{deviations}."

    def compared(self) -> "Comparison | None":
        """Compare the models on the rows that both judged."""
        pairs = [
            (is_right(row.cloud), is_right(row.classic)) for row in self.found.values() if row.classic is not None
        ]
        return Comparison(pairs) if pairs else None


@dataclass(frozen=True)
class Comparison:
    """For each row, whether each of the two models is right."""

    outcomes: Sequence[tuple[bool, bool]]

    def right(self, place: int) -> tuple[int, float, float]:
        """Return the number of rows in which model `place` (0 or 1) is right, and the bounds of the proportion's 95 % Wilson interval."""
        from cloud_hf.evaluation.stats import wilson  # imports numpy

        count = sum(outcome[place] for outcome in self.outcomes)
        return count, *wilson(count / len(self.outcomes), len(self.outcomes))

    @property
    def alone(self) -> tuple[int, int]:
        """Two counts: rows in which only the CLoud model is right, and rows in which only the classic one is."""
        only_ours = sum(ours and not theirs for ours, theirs in self.outcomes)
        only_theirs = sum(theirs and not ours for ours, theirs in self.outcomes)
        return only_ours, only_theirs

    @property
    def p_value(self) -> float:
        """p-value of the exact two-sided McNemar test. Null hypothesis: each model is equally likely to be the only one that is right."""
        ours, theirs = self.alone
        if not ours + theirs:
            return 1.0
        from scipy.stats import binomtest

        return float(binomtest(ours, ours + theirs).pvalue)


# ------------------------------------------------------------------------------------------------ preference and rank


def preference(reward: float, other: float) -> float:
    """Return the Bradley-Terry probability that the response with `reward` is preferred to the one with `other`."""
    margin = reward - other
    return 1 / (1 + math.exp(-margin)) if margin >= 0 else math.exp(margin) / (1 + math.exp(margin))


def rank_of(rewards: Sequence[float], index: int) -> int:
    """Return a reward's rank (from 1) after rounding to the three decimals that the page shows; equal rewards share a rank."""
    shown = [round(reward, 3) for reward in rewards]
    return 1 + sum(reward > shown[index] for reward in shown)


# ------------------------------------------------------------------------------------------------- read an evaluation


def read_results(
    folder: str, rows: "Sequence[BenchmarkRow]", models: Sequence[str]
) -> tuple[tuple[str, str], dict[int, Judgement], bool]:
    """
    Load the scores of `rows` from an output folder of `examples/evaluate_rewards.py`. Returns the names of the CLoud and the classic model,
    the judgements by row index, and whether the demo's `models` are known to be the evaluated ones.

    Raises:
        `ValueError`: Unless the folder contains scores of some of these rows, from exactly one model with critiques and one without; or if
            other models, or other versions of them, were evaluated.
    """
    from pyarrow import parquet

    from cloud_hf.data.journal import key_of
    from cloud_hf.data.rows import short_names
    from cloud_hf.evaluation.formatting import file_name
    from cloud_hf.evaluation.report.comparison import read_results

    places = {key_of(row.prompt, row.responses): index for index, row in enumerate(rows)}
    pages = read_results(folder, "results").pages
    if "report.json" not in pages:
        raise ValueError(
            "The results come from best_of_n.py; set `results` to an output folder of evaluate_rewards.py."
        )
    names = list(short_names(pages["report.json"]["arguments"]["models"]).values())
    are_compared = _compare_versions(names, list(pages["report.json"]["environment"]["models"].values()), models)
    found: dict[bool, tuple[str, dict[int, dict[int, Score]]]] = {}
    for name in names:
        table = parquet.read_table(Path(folder) / file_name("scores", name, "parquet")).to_pylist()
        writes = any(critique for line in table for critique in line["critiques"])
        if writes in found:
            kind = "with critiques" if writes else "without critiques"
            raise ValueError(
                f"The results contain several models {kind}: {found[writes][0]} and {name}. Evaluate one model with critiques and "
                "one without."
            )
        scores: dict[int, dict[int, Score]] = {}
        for line in table:
            if (index := places.get(line["row_hash"])) is not None:
                scores.setdefault(index, {}).setdefault(line["response"], _read_score(line))
        found[writes] = name, scores
    if len(found) < 2:
        raise ValueError("The results must contain a CLoud and a classic model; evaluate both in one run.")
    (cloud, ours), (classic, theirs) = found[True], found[False]
    common = [index for index in sorted(ours) if index in theirs]
    if not common:
        raise ValueError(
            "The results contain no scores for the demo's rows; set `rows` to the pairs that were evaluated."
        )
    judgements = {
        index: Judgement((ours[index][0], ours[index][1]), (theirs[index][0], theirs[index][1])) for index in common
    }
    return (cloud, classic), judgements, are_compared


def _compare_versions(names: Sequence[str], evaluated: Sequence[str | None], models: Sequence[str]) -> bool:
    """
    Return whether `models`, the demo's, are known to be among the evaluated models, whose names and versions are given. Raises `ValueError`
    if one of them is another model, or another version.
    """
    from cloud_hf.model_identity import identify_model

    versions = {model: identify_model(model)["model_version"] for model in models}
    for model, version in versions.items():
        # Commits on the Hub, which also change with the card, are longer
        are_folders = Path(model).is_dir() and all(len(other or "") == len(version) for other in evaluated)
        if are_folders and version not in evaluated:
            raise ValueError(
                f"The results come from {' and '.join(names)}, whose versions are {', '.join(map(str, evaluated))}, but the demo's {model} has "
                f"version {version}. Evaluate the demo's models, or open those that were evaluated."
            )
    return bool(versions) and set(versions.values()) <= set(evaluated)


def _read_score(line: dict[str, Any]) -> Score:
    parts = zip(line["rewards"], line["critiques"], line["finish_reasons"], strict=True)
    score = Score.of([Sample(reward, critique, finish_reason=reason) for reward, critique, reason in parts])
    return replace(score, reward=line["reward"])  # the evaluation's `combine` need not be the mean
