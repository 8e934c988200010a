"""Bootstrap over rows of statistics that take weights: many at once, by matrix products. Figures of a benchmark with their 95 % intervals, and the form in which every benchmark gives its scores."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import binomtest, bootstrap

from .rows import BenchmarkRow


RESAMPLES = 1000
_AT_ONCE = 100  # bounds memory: a set may have 100,000 rows


def row_counts(num_rows: int, seed: int = 0) -> Iterator[np.ndarray]:
    """How often each row is drawn in each resample: integer arrays of shape (resamples, num_rows), in parts."""
    rng = np.random.default_rng(seed)
    for _ in range(RESAMPLES // _AT_ONCE):
        drawn = rng.integers(num_rows, size=(_AT_ONCE, num_rows))
        yield np.stack([np.bincount(places, minlength=num_rows) for places in drawn])


def interval_over_rows(num_rows: int, statistic: Callable[[np.ndarray], np.ndarray]) -> np.ndarray | None:
    """
    95 % percentile interval of a statistic of weighted rows; the same in every run.

    Args:
        num_rows (`int`):
            Rows to draw from.
        statistic (`Callable`):
            Takes the rows' counts, shape (resamples, num_rows), and gives values of shape (resamples, …). NaN where a resample
            has none.

    Returns:
        `np.ndarray` or `None`: Lower and upper ends, shape (2, …); `None` for fewer than two rows.
    """
    if num_rows < 2:
        return None
    values = np.concatenate([statistic(counts) for counts in row_counts(num_rows)])
    return np.nanquantile(values, (0.025, 0.975), axis=0)


_RESAMPLES = 2000


@dataclass(frozen=True)
class Figure:
    """
    A number with its uncertainty.

    Args:
        value (`float`):
            A share from 0 to 1 unless said otherwise; NaN where rows are missing.
        n (`int`):
            Rows it rests on.
        ci95 (`tuple[float, float]`, *optional*):
            95 % interval over rows: Wilson's for a share of right rows, else percentiles of a bootstrap with a fixed
            seed that draws rows within each subset. `None` where a subset has fewer than two rows, or where all rows of each
            subset are alike, so that all draws are.
    """

    value: float
    n: int
    ci95: tuple[float, float] | None = None

    def summary(self) -> dict[str, Any]:
        """For JSON, which has no NaN: an unknown value is `None`."""
        return {"value": None if math.isnan(self.value) else self.value, "n": self.n, "ci95": self.ci95}


@dataclass(frozen=True)
class BenchmarkScores:
    """
    What a model reached on a benchmark.

    Args:
        benchmark (`str`):
            Its name.
        headline (`str`):
            Which of `figures` is the one to quote.
        figures (`dict[str, Figure]`):
            The official figures.
        subsets (`dict[str, Figure]`):
            Shares of right rows by subset, unknown subsets included.
        ties (`int`):
            Rows in which the best right and the best wrong response have equal rewards.
        undecidable (`int`):
            Rows in which a right and a wrong response are the same text.
        missing (`tuple[str, ...]`):
            Subsets of the benchmark without rows. A section rests on those that have rows; a mean that lacks a whole part is
            not given.
        unknown (`dict[str, int]`):
            Rows of subsets that do not belong to the benchmark; they are in no figure of it.
        details (`dict[str, Any]`):
            What is particular to the benchmark, ready for JSON.
    """

    benchmark: str
    headline: str
    figures: dict[str, Figure]
    subsets: dict[str, Figure]
    ties: int
    undecidable: int
    missing: tuple[str, ...] = ()
    unknown: dict[str, int] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def value(self) -> float:
        """The headline figure's value."""
        return self.figures[self.headline].value

    def notes(self) -> list[str]:
        """What a reader must know beside the figures, as sentences."""
        notes = []
        if self.missing:
            notes.append(
                f"No rows of {', '.join(self.missing)}: figures over several subsets rest on those with rows, or are not given."
            )
        if self.unknown:
            parts = ", ".join(f"{name} ({count})" for name, count in self.unknown.items())
            notes.append(
                f"Rows of subsets that are not part of the benchmark, counted in none of its figures: {parts}."
            )
        if self.undecidable:
            notes.append(f"Rows whose right and wrong responses are the same text: {self.undecidable}.")
        if self.ties:
            notes.append(f"Rows whose best right and best wrong responses have equal rewards: {self.ties}.")
        return notes

    def summary(self) -> dict[str, Any]:
        """The scores for JSON."""
        return {
            "benchmark": self.benchmark,
            "headline": self.headline,
            "figures": {name: figure.summary() for name, figure in self.figures.items()},
            "subsets": {name: figure.summary() for name, figure in self.subsets.items()},
            "ties": self.ties,
            "undecidable": self.undecidable,
            "missing": list(self.missing),
            "unknown": self.unknown,
            "notes": self.notes(),
            "details": self.details,
        }


def count_unknown(rows: Iterable[BenchmarkRow], known: Iterable[str]) -> dict[str, int]:
    """How many rows each subset has that is not among the `known` ones."""
    known = set(known)
    return dict(Counter(row.subset for row in rows if row.subset not in known))


def by_subset(rows: Sequence[BenchmarkRow], values: Sequence[Any]) -> dict[str, list]:
    """Values of rows, gathered by subset in order of appearance."""
    gathered: dict[str, list] = {}
    for row, value in zip(rows, values, strict=True):
        gathered.setdefault(row.subset, []).append(value)
    return gathered


def share(outcomes: Sequence[float]) -> Figure:
    """
    Mean outcome of rows.

    Args:
        outcomes (`Sequence[float]`):
            From 0 (wrong) to 1 (right).

    Returns:
        [`Figure`]: With Wilson's interval if each outcome is 0 or 1, else a bootstrap's.
    """
    n = len(outcomes)
    if n == 0:
        return Figure(math.nan, 0)
    if all(outcome in (0, 1) for outcome in outcomes):
        right = round(sum(outcomes))
        interval = binomtest(right, n).proportion_ci(0.95, method="wilson")
        return Figure(right / n, n, (float(interval.low), float(interval.high)))
    return weighted_mean({"": outcomes}, {"": 1.0})


def weighted_mean(strata: Mapping[str, Sequence[float]], weights: Mapping[str, float]) -> Figure:
    """
    Weighted mean of the means of strata.

    Args:
        strata (`Mapping[str, Sequence[float]]`):
            Outcomes of the rows of each stratum.
        weights (`Mapping[str, float]`):
            Weight of each stratum; those without rows leave the mean undefined.

    Returns:
        [`Figure`]: NaN if a stratum that `weights` names has no rows.
    """
    if not weights or any(not strata.get(name) for name in weights):
        return Figure(math.nan, sum(len(strata.get(name, ())) for name in weights))
    samples = [np.asarray(strata[name], dtype=float) for name in weights]
    shares = np.array([weights[name] for name in weights]) / math.fsum(weights.values())

    def mean(*samples, axis=-1):
        return sum(part * sample.mean(axis=axis) for part, sample in zip(shares, samples, strict=True))

    return Figure(float(mean(*samples)), sum(map(len, samples)), bootstrap_interval(samples, mean))


def bootstrap_interval(samples: Sequence[np.ndarray], statistic: Callable[..., Any]) -> tuple[float, float] | None:
    """
    95 % percentile interval of a statistic; the same in every run.

    Args:
        samples (`Sequence[np.ndarray]`):
            Rows are drawn from each sample on its own.
        statistic (`Callable`):
            Takes the samples and `axis`.

    Returns:
        `tuple[float, float]` or `None`: `None` if a sample has fewer than two rows, or no sample has rows that differ: an
            interval without width would say that the figure is certain.
    """
    if any(len(sample) < 2 for sample in samples) or not any(np.ptp(sample) for sample in samples):
        return None
    result = bootstrap(
        samples,
        statistic,
        n_resamples=_RESAMPLES,
        batch=100,  # bounds memory: a prior set of RewardBench has 9000 rows
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
