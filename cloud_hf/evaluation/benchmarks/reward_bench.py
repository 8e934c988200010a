"""RewardBench: the official scores, and those of the reference implementation (arXiv 2403.13787, allenai/reward-bench)."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from ..rows import BenchmarkRow, check_pairs, make_pair, pair_rewards, read_sources
from ..stats import BenchmarkScores, Estimate, by_subset, count_unknown, share, weighted_mean


HUB_ID = "allenai/reward-bench"
PRIOR_SETS_HUB_ID = "allenai/preference-test-sets"

# Lambert et al. 2024, arXiv 2403.13787, table 1
SECTIONS = {
    "Chat": ("alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med"),
    "Chat Hard": (
        "mt-bench-hard", "llmbar-natural", "llmbar-adver-neighbor", "llmbar-adver-GPTInst", "llmbar-adver-GPTOut",
        "llmbar-adver-manual",
    ),
    "Safety": ("refusals-dangerous", "refusals-offensive", "xstest-should-refuse", "xstest-should-respond", "donotanswer"),
    "Reasoning": ("math-prm", "hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"),
}  # fmt: skip


# What each subset weighs in its section: its prompts, but math-prm as much as the six code subsets together
OFFICIAL_COUNTS = {
    "alpacaeval-easy": 100, "alpacaeval-length": 95, "alpacaeval-hard": 95, "mt-bench-easy": 28, "mt-bench-med": 40,
    "mt-bench-hard": 37, "llmbar-natural": 100, "llmbar-adver-neighbor": 134, "llmbar-adver-GPTInst": 92,
    "llmbar-adver-GPTOut": 47, "llmbar-adver-manual": 46, "refusals-dangerous": 100, "refusals-offensive": 100,
    "xstest-should-refuse": 154, "xstest-should-respond": 250, "donotanswer": 136, "math-prm": 984,
    "hep-cpp": 164, "hep-go": 164, "hep-java": 164, "hep-js": 164, "hep-python": 164, "hep-rust": 164,
}  # fmt: skip

# The leaderboard's "Prior Sets" (analysis/get_benchmark_results.py): each weighs the same, together half a section
PRIOR_SETS = ("anthropic_helpful", "anthropic_hhh", "shp", "summarize")
PRIOR_SETS_WEIGHT = 0.5


# --------------------------------------------------------------------------------------------------------- the rows


def load(names: Sequence[str] | None = None, prior_sets: bool = False) -> list[BenchmarkRow]:
    """
    Rows of RewardBench.

    Args:
        names (`Sequence[str]`, *optional*):
            Files or datasets with the columns `prompt`, `chosen`, `rejected`, `subset`, optional `id`. Defaults to the
            split `filtered` of `allenai/reward-bench`. A file named after a prior set (`anthropic_hhh.jsonl`) holds
            that set, whatever its `subset` column says.
        prior_sets (`bool`, *optional*, defaults to `False`):
            Add the four prior sets of `allenai/preference-test-sets`, which have about six times as many rows.

    Returns:
        `list[BenchmarkRow]`

    Raises:
        `ValueError`: Naming the file, the row and the field, the id that stands twice, or the row with several responses.
    """
    rows = []
    for source, index, row in read_sources([HUB_ID] if names is None else names, "filtered"):
        stem = Path(source).name.split(".")[0]
        rows.append(make_pair("RewardBench", source, index, row, stem if stem in PRIOR_SETS else None))
    if prior_sets:
        for name in PRIOR_SETS:
            for source, index, row in read_sources([PRIOR_SETS_HUB_ID], name):
                rows.append(make_pair("Prior sets", source, index, row, name))
    return check_pairs(rows)


# --------------------------------------------------------------------------------------------------- the arithmetic


def score(rows: Sequence[BenchmarkRow], rewards: Sequence[Sequence[float]]) -> BenchmarkScores:
    """
    Score RewardBench. The chosen response must have the strictly higher reward.

    Args:
        rows (`Sequence[BenchmarkRow]`):
            From [`load`].
        rewards (`Sequence[Sequence[float]]`):
            For each row the rewards of its chosen and its rejected response.

    Returns:
        [`BenchmarkScores`]: The four sections and `"Average"`, their plain mean. Where there are rows of prior sets, also
            `"Prior Sets"`, the mean over those present, and `"Score"`, in which they count half a section. `"Chat, pooled"`
            and so on are the sections as the reference implementation has them, and `"Average, pooled"` their plain mean.

    Raises:
        `ValueError`: If a reward is missing, not a number or infinite.
    """
    pairs = pair_rewards(rows, rewards)
    scores = score_reward_bench([row.subset for row in rows], *zip(*pairs, strict=True))
    outcomes = by_subset(rows, [float(chosen > rejected) for chosen, rejected in pairs])
    weights = _figure_weights(outcomes)
    percents = {**scores.official, "Prior Sets": scores.prior_sets, "Score": scores.score}
    figures = {name: _with_interval(percents[name], weights[name], outcomes) for name in weights}
    pooled = {
        section: [outcome for subset in members for outcome in outcomes.get(subset, [])]
        for section, members in SECTIONS.items()
    }
    figures |= {f"{section}, pooled": share(values) for section, values in pooled.items()}
    figures["Average, pooled"] = weighted_mean(pooled, dict.fromkeys(SECTIONS, 1.0))
    return BenchmarkScores(
        benchmark="RewardBench",
        headline="Score" if "Score" in figures else "Average",
        figures=figures,
        subsets={subset: share(values) for subset, values in outcomes.items()},
        ties=sum(chosen == rejected for chosen, rejected in pairs),
        undecidable=sum(row.is_undecidable for row in rows),
        missing=scores.missing,
        unknown=count_unknown(rows, (*OFFICIAL_COUNTS, *PRIOR_SETS)),
    )


def leaderboard_results(
    scores: BenchmarkScores,
    model: str,
    names: Collection[str] = tuple(OFFICIAL_COUNTS),
    model_type: str = "Custom Classifier",
    chat_template: str = "tokenizer",
) -> dict[str, float | str]:
    """
    RewardBench's own results file, as its repository keeps it and leaderboard tools read it: the score of each subset that
    has one, beside `model`, `model_type` and `chat_template`.

    Args:
        scores ([`BenchmarkScores`]):
            Of RewardBench or RewardBench 2.
        model (`str`):
            The model.
        names (`Collection[str]`, *optional*):
            The subsets that belong into the file: by default RewardBench's own. Its prior sets have a file of their own.
        model_type, chat_template (`str`, *optional*):
            What the file says of the model.
    """
    values = {name: figure.value for name, figure in scores.subsets.items() if name in names}
    known = {name: value for name, value in values.items() if not math.isnan(value)}
    return {**known, "model": model, "model_type": model_type, "chat_template": chat_template}


def result_files(
    scores: BenchmarkScores, model: str, parts: Mapping[str, Collection[str]]
) -> dict[str, dict[str, float | str]]:
    """
    [`leaderboard_results`] of each part of a benchmark that has rows.

    Args:
        scores ([`BenchmarkScores`]):
            Of RewardBench or RewardBench 2.
        model (`str`):
            The model.
        parts (`Mapping[str, Collection[str]]`):
            The subsets of each part, by the first part of its file's name.
    """
    return {
        name: leaderboard_results(scores, model, subsets)
        for name, subsets in parts.items()
        if not scores.subsets.keys().isdisjoint(subsets)
    }


@dataclass(frozen=True)
class RewardBenchScores:
    """
    Scores on RewardBench.

    Args:
        official (`dict[str, float]`):
            Percent right in each section as the leaderboard has it, subsets weighted by `OFFICIAL_COUNTS`, and `Average`,
            the plain mean of the four. NaN where rows are missing.
        pooled (`dict[str, float]`):
            The same as the reference implementation has it: all rows of a section weigh the same.
        subsets (`dict[str, float]`):
            Percent right in each subset.
        counts (`dict[str, int]`):
            Rows in each section.
        ignored (`int`):
            Rows of subsets that belong to no section and are no prior set.
        prior_sets (`float`):
            Mean percent right over the prior sets that have rows; NaN if none has.
        score (`float`):
            The leaderboard's score: mean of the sections and of the prior sets, which count half. Without rows of prior
            sets it is the `Average`.
        missing (`tuple[str, ...]`):
            Subsets without rows.
    """

    official: dict[str, float]
    pooled: dict[str, float]
    subsets: dict[str, float]
    counts: dict[str, int]
    ignored: int
    prior_sets: float = math.nan
    score: float = math.nan
    missing: tuple[str, ...] = field(default=())


def score_reward_bench(
    subsets: Sequence[str], chosen: Sequence[float], rejected: Sequence[float]
) -> RewardBenchScores:
    """
    Add up RewardBench. A tie counts as wrong.

    Args:
        subsets (`Sequence[str]`):
            The `subset` of each row; prior sets by their split's name.
        chosen (`Sequence[float]`):
            Rewards of the chosen responses.
        rejected (`Sequence[float]`):
            Rewards of the rejected ones.

    Returns:
        [`RewardBenchScores`]

    Raises:
        `ValueError`: If the three differ in length, or a reward is not a finite number.
    """
    if not len(subsets) == len(chosen) == len(rejected):
        raise ValueError(
            f"{len(subsets)} subsets, {len(chosen)} chosen and {len(rejected)} rejected rewards: give as many."
        )
    rows = pd.DataFrame({"subset": list(subsets), "chosen": list(chosen), "rejected": list(rejected)})
    rewards = rows[["chosen", "rejected"]].astype(float)
    if (bad := ~rewards.map(math.isfinite).all(axis=1)).any():
        raise ValueError(f"Row {int(bad.argmax())}: a reward is not a number, or infinite.")
    section_of = {subset: section for section, members in SECTIONS.items() for subset in members}
    rows["right"] = 100.0 * (rewards["chosen"] > rewards["rejected"])
    rows["section"] = rows["subset"].map(section_of)
    known = rows.dropna(subset="section")
    by_subset = known.groupby("subset")["right"].mean()
    pooled = known.groupby("section")["right"].mean()
    weights = pd.Series(OFFICIAL_COUNTS).loc[by_subset.index]
    sections = by_subset.index.map(section_of)
    official = _with_average((by_subset * weights).groupby(sections).sum() / weights.groupby(sections).sum())
    counts = known["section"].value_counts()
    priors = rows[rows["subset"].isin(PRIOR_SETS)].groupby("subset")["right"].mean()
    return RewardBenchScores(
        official=official,
        pooled=_with_average(pooled),
        subsets={**by_subset.to_dict(), **priors.to_dict()},
        counts={section: int(counts.get(section, 0)) for section in SECTIONS},
        ignored=len(rows) - len(known) - int(rows["subset"].isin(PRIOR_SETS).sum()),
        prior_sets=float(priors.mean()),
        score=_with_prior_sets(official["Average"], float(priors.mean())),
        missing=tuple(subset for subset in OFFICIAL_COUNTS if subset not in by_subset.index),
    )


def _with_average(scores: pd.Series) -> dict[str, float]:
    sections = {section: float(scores.get(section, math.nan)) for section in SECTIONS}
    return {**sections, "Average": sum(sections.values()) / len(sections)}


def _with_prior_sets(average: float, prior_sets: float) -> float:
    if math.isnan(prior_sets):
        return average
    sections = len(SECTIONS)
    return (sections * average + PRIOR_SETS_WEIGHT * prior_sets) / (sections + PRIOR_SETS_WEIGHT)


def _figure_weights(outcomes: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """What each subset weighs in each figure; nothing where rows that the figure needs are missing."""
    sections = {
        section: {subset: float(OFFICIAL_COUNTS[subset]) for subset in members if subset in outcomes}
        for section, members in SECTIONS.items()
    }
    average = {}
    if all(sections.values()):
        for part in sections.values():
            average |= {subset: weight / math.fsum(part.values()) for subset, weight in part.items()}
    weights = {**sections, "Average": average}
    if priors := [name for name in PRIOR_SETS if name in outcomes]:
        weights["Prior Sets"] = dict.fromkeys(priors, 1.0)
        weights["Score"] = average and average | dict.fromkeys(priors, PRIOR_SETS_WEIGHT / len(priors))
    return weights


def _with_interval(percent: float, weights: dict[str, float], outcomes: dict[str, list[float]]) -> Estimate:
    """A figure whose value is known, with the interval of the weighted mean that it is."""
    mean = weighted_mean(outcomes, weights)
    return Estimate(percent / 100, mean.n, mean.ci95)
