"""Estimates with 95 % intervals (shares, weighted means, bootstraps over rows), and the class for a benchmark's scores."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..share_interval import Interval, wilson


if TYPE_CHECKING:
    from .rows import BenchmarkRow, RowRewards


RESAMPLES = 2000
# In a subset with fewer rows, resamples vary too little
FEW_ROWS = 10
# Fewer resamples for statistics of weighted rows, which are slow: many sort or bin the rows in every resample
RESAMPLES_OF_ROWS = 1000
_AT_ONCE = 100  # resamples per call, to bound memory: a set may have 100,000 rows
_ENDS = (0.025, 0.975)
_ROUNDING = 1e-12  # statistics that should be equal may differ by up to this relative rounding error


class Summarised:
    """Base class for dataclasses whose summary consists of their fields."""

    def summary(self) -> dict[str, Any]:
        """Return the fields in JSON form; NaN becomes `None`."""
        return json_safe(self)


@dataclass(frozen=True)
class Estimate(Summarised):
    """A number with its uncertainty."""

    value: float  # a share from 0 to 1 unless stated otherwise; NaN if rows are missing
    n: int  # number of rows behind the estimate
    # Wilson's interval for a share of right rows, otherwise from a bootstrap within subsets; None if resamples cannot differ
    ci95: Interval | None = None


NO_ROWS = Estimate(math.nan, 0)
Figure = Estimate  # its name in version 0.1


def powers_of_two(last: int) -> list[int]:
    """Return 1, 2, 4, … up to `last`."""
    return [1 << power for power in range(last.bit_length())]


def json_safe(value: Any) -> Any:
    """Convert dataclasses and tuples to JSON types; NaN, which JSON lacks, becomes `None`."""
    if is_dataclass(value):
        return {field.name: json_safe(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: json_safe(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value


# --------------------------------------------------------------------------------------------------------- bootstrap


def percentile_interval(
    sizes: Sequence[int], statistic: Callable[..., np.ndarray], resamples: int = RESAMPLES
) -> Interval | None:
    """
    Compute the 95 % percentile interval of any statistic of resampled rows. The result is deterministic.

    Each stratum is resampled with replacement at its own size (`sizes`). `statistic` receives the sampled indices of each stratum, shape
    (resamples, size), and returns one value per resample, or NaN where it is undefined. Returns `None` if a stratum has fewer than two
    rows, or if all values are equal, because an interval of zero width would claim certainty.
    """
    if min(sizes) < 2:
        return None
    # The seed is fixed, because the same scores must give the same report on any machine
    rng = np.random.default_rng(0)
    counts = [min(_AT_ONCE, resamples - start) for start in range(0, resamples, _AT_ONCE)]
    values = [statistic(*(rng.integers(size, size=(count, size)) for size in sizes)) for count in counts]
    low, high = np.nanquantile(np.concatenate(values), _ENDS)
    return None if high - low <= _ROUNDING * max(1.0, abs(high)) else (float(low), float(high))


def interval_over_rows(num_rows: int, statistic: Callable[[np.ndarray], np.ndarray]) -> Interval | None:
    """Apply [`percentile_interval`] to a statistic that receives how many times each row was sampled, shape (resamples, num_rows)."""

    def of_counts(places: np.ndarray) -> np.ndarray:
        return statistic(np.stack([np.bincount(drawn, minlength=num_rows) for drawn in places]))

    return percentile_interval([num_rows], of_counts, RESAMPLES_OF_ROWS)


def bootstrap_interval(samples: Sequence[np.ndarray], statistic: Callable[..., Any]) -> Interval | None:
    """Apply [`percentile_interval`] to a statistic that accepts samples and `axis`, as `np.mean` does."""

    def of_places(*places: np.ndarray) -> np.ndarray:
        return statistic(*(sample[drawn] for sample, drawn in zip(samples, places, strict=True)), axis=-1)

    return percentile_interval([len(sample) for sample in samples], of_places)


# ------------------------------------------------------------------------------------------------- shares and means


def share(outcomes: Sequence[float]) -> Estimate:
    """Return the mean outcome (0 to 1) of rows, with Wilson's interval if each is 0 or 1, otherwise with a bootstrap interval."""
    n = len(outcomes)
    if n == 0:
        return NO_ROWS
    # Rows with several pairs, or with tied best responses, may have fractional outcomes
    if all(outcome in (0, 1) for outcome in outcomes):
        value = round(sum(outcomes)) / n
        return Estimate(value, n, wilson(value, n))
    return weighted_mean({"": outcomes}, {"": 1.0})


def row_outcome(rewards: Sequence[float], num_chosen: int) -> float:
    """Return the share of a row's right/wrong pairs in the right order; ties count as wrong."""
    right, wrong = np.array(rewards[:num_chosen]), np.array(rewards[num_chosen:])
    return float((right[:, None] > wrong).mean())


def mean_estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of one number per row, with a bootstrap interval."""
    if not len(values):
        return NO_ROWS
    sample = np.asarray(values, dtype=float)
    return Estimate(float(sample.mean()), len(sample), bootstrap_interval([sample], np.mean))


def weighted_mean(strata: Mapping[str, Sequence[float]], weights: Mapping[str, float]) -> Estimate:
    """Return the weighted mean of the means of strata, or NaN if a stratum that `weights` names has no rows."""
    if not weights or any(not strata.get(name) for name in weights):
        return Estimate(math.nan, sum(len(strata.get(name, ())) for name in weights))
    samples = [np.asarray(strata[name], dtype=float) for name in weights]
    shares = np.array([weights[name] for name in weights]) / math.fsum(weights.values())

    def mean(*samples, axis=-1):
        return sum(part * sample.mean(axis=axis) for part, sample in zip(shares, samples, strict=True))

    return Estimate(float(mean(*samples)), sum(map(len, samples)), bootstrap_interval(samples, mean))


# ----------------------------------------------------------------------------------------- the scores of a benchmark


@dataclass(frozen=True)
class BenchmarkScores:
    """Scores of a model on a benchmark."""

    benchmark: str
    headline: str  # key of the estimate to quote
    figures: dict[str, Estimate]  # the official metrics
    subsets: dict[str, Estimate]  # share of right rows, unknown subsets included
    ties: int  # rows whose best right and best wrong response have equal rewards
    undecidable: int  # rows in which a right and a wrong response are the same text
    # Subsets without rows. A section uses the subsets that have rows; a mean that lacks an entire section is not reported
    missing: tuple[str, ...] = ()
    # Rows of subsets that are not part of the benchmark; no metric includes them
    unknown: dict[str, int] = field(default_factory=dict)
    # Subsets with fewer than `FEW_ROWS` rows, if some metrics are means over subsets
    few: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)  # specific to the benchmark; JSON-serialisable

    @property
    def value(self) -> float:
        """Value of the headline estimate."""
        return self.figures[self.headline].value

    def notes(self) -> list[str]:
        """Return caveats for readers of the scores, as sentences."""
        missing, few = ", ".join(self.missing), ", ".join(self.few)
        unknown = ", ".join(f"{name} ({count})" for name, count in self.unknown.items())
        notes = {
            f"No rows of {missing}: metrics over several subsets use only those with rows, or are omitted.": self.missing,
            f"Rows of subsets that are not part of the benchmark, which no metric includes: {unknown}.": self.unknown,
            f"Fewer than {FEW_ROWS} rows of {few}: intervals of means over several subsets, and of means of fractions, are too "
            "narrow.": self.few,
            f"Rows whose right and wrong responses are the same text: {self.undecidable}.": self.undecidable,
            f"Rows whose best right and best wrong responses have equal rewards: {self.ties}.": self.ties,
        }
        return [note for note, applies in notes.items() if applies]

    def summary(self) -> dict[str, Any]:
        """Return the scores in JSON form."""
        summary = json_safe(self)
        details = summary.pop("details")
        return {**summary, "notes": self.notes(), "details": details}


def count_unknown(rows: "Iterable[BenchmarkRow]", known: Iterable[str]) -> dict[str, int]:
    """Count the rows of each subset that is not among the `known` subsets."""
    known = set(known)
    return dict(Counter(row.subset for row in rows if row.subset not in known))


def by_subset(rows: "Sequence[BenchmarkRow]", values: Sequence[Any]) -> dict[str, list]:
    """Group the values of rows by subset, in order of appearance."""
    return group([row.subset for row in rows], values)


def group(names: Iterable[str], values: Iterable[Any]) -> dict[str, list]:
    """Group values by name, in order of appearance."""
    gathered: dict[str, list] = {}
    for name, value in zip(names, values, strict=True):
        gathered.setdefault(name, []).append(value)
    return gathered


def collect_scores(
    rows: "Sequence[BenchmarkRow]",
    rewards: "Sequence[RowRewards]",
    outcomes: Mapping[str, Sequence[float]],
    parts: Iterable[str],
    other_parts: Iterable[str] = (),
    averages_subsets: bool = True,
    **scores: Any,
) -> BenchmarkScores:
    """
    Build [`BenchmarkScores`] from `outcomes`, which are keyed by subset and lie between 0 (wrong) and 1 (right). Also count ties,
    undecidable rows, and missing and unknown subsets, which every benchmark reports.

    `parts` are the subsets of the benchmark, and `other_parts` are further subsets that may be absent. Set `averages_subsets` if some
    metrics are means over subsets. `scores` contains the remaining fields.
    """
    parts, other_parts, present = tuple(parts), tuple(other_parts), Counter(row.subset for row in rows)
    return BenchmarkScores(
        subsets={name: share(values) for name, values in outcomes.items()},
        ties=sum(max(chosen) == max(rejected) for chosen, rejected in rewards),
        undecidable=sum(row.is_undecidable for row in rows),
        missing=tuple(name for name in parts if name not in present),
        unknown=count_unknown(rows, (*parts, *other_parts)),
        few=tuple(name for name in (*parts, *other_parts) if averages_subsets and 0 < present[name] < FEW_ROWS),
        **scores,
    )
