"""Self-consistency: accuracy by the number of averaged critiques, by reasoning length, and by how rewards are combined."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
from numpy.typing import ArrayLike

from ...combine_critiques import COMBINATIONS, combine_rewards
from ..stats import Estimate, Summarised, mean_estimate, row_outcome, share, wilson


ALL_ROWS = "all rows"
DRAWS = 200
RESAMPLES = 200
_BUCKETS = 4
_MOST_VALUES = 6  # up to this many distinct lengths, each length gets its own bucket


@dataclass(frozen=True)
class AccuracyCurve:
    """Accuracy over k = 1, 2, … critiques."""

    label: str  # "all rows", or the range of the rows' lengths
    rows: int
    accuracy: tuple[float, ...]  # mean over draws of k critiques per response, without replacement
    # Standard error of this mean due to the sampling of critiques, from a bootstrap over the critiques of each response
    standard_errors: tuple[float, ...]
    # Wilson intervals that treat each row as entirely right or wrong: conservative, and never of zero width, even if all rows are right
    intervals: tuple[tuple[float, float], ...]


Curve = AccuracyCurve  # its name in version 0.1


@dataclass(frozen=True)
class CombinedAccuracy:
    """Row accuracy with one way to combine all critiques of a response."""

    combination: str  # one of `COMBINATIONS`
    accuracy: Estimate
    minus_mean: Estimate  # difference from the accuracy of the combination "mean" on the same rows, with a paired bootstrap interval


@dataclass(frozen=True)
class SelfConsistency(Summarised):
    """Self-consistency of a model on a set."""

    temperature: float  # at which the critiques were sampled
    length_of: str  # describes the lengths by which rows are split
    everything: AccuracyCurve
    buckets: list[AccuracyCurve]  # rows by length, the shortest first
    combinations: list[CombinedAccuracy] = field(default_factory=list)  # accuracy of each way to combine all critiques

    @property
    def num_critiques(self) -> int:
        """Critiques per response, the largest k."""
        return len(self.everything.accuracy)


def self_consistency(
    rewards: Sequence[Sequence[Sequence[float]]],
    num_chosen: Sequence[int],
    lengths: Sequence[float],
    *,
    temperature: float,
    length_of: str,
    seed: int = 0,
    log_likelihoods: Sequence[Sequence[Sequence[float]]] | None = None,
) -> SelfConsistency:
    """
    Compute accuracy by the number of averaged critiques, from one set of sampled critiques.

    A row's outcome is the share of its right/wrong pairs in the right order; a tie counts as wrong. `rewards` is indexed by row, response
    and critique, with the same number of critiques for each response, and `lengths` contains the reasoning lengths of the rows.
    `temperature` and `length_of` only describe the result. If `log_likelihoods`, shaped like `rewards`, are given, critiques are also
    combined by likelihood. Raises `ValueError` if there are no rows, or if responses have different numbers of critiques.

    Examples:

    ```python
    >>> found = self_consistency([[[2.0, 0.0], [1.0, 1.0]]], [1], [40], temperature=0.5, length_of="tokens of a critique")
    >>> [round(value, 1) for value in found.everything.accuracy]  # one critique wins half the time; two tie
    [0.5, 0.0]
    ```
    """
    flat = [values for row in rewards for values in row]
    if not flat or len({len(values) for values in flat}) != 1:
        raise ValueError(
            "Self-consistency needs at least one row, and the same number of critiques for each response."
        )
    right, wrong, starts = _pair_places([len(row) for row in rewards], num_chosen)
    pairs_in_row = np.diff([*starts, len(right)])[:, None]

    # R responses of all rows, with K critiques each. Rescaled or parsed rewards have more digits than float32; round them to float32, whose
    # sums are exact in float64. Without rounding, the order of the critiques could change a sum, and ties would be broken at random
    rewards_RK = np.array(flat, dtype=np.float32).astype(float)
    num_critiques, rng = rewards_RK.shape[1], np.random.default_rng(seed)

    def draw(pool_RK: np.ndarray) -> np.ndarray:
        """Return each row's outcome for k = 1, 2, … (columns), as the mean over disjoint draws of k critiques from a pool."""
        # Compare sums instead of means: dividing by k would round
        sums = np.pad(rng.permuted(pool_RK, axis=1).cumsum(1), ((0, 0), (1, 0)))
        outcomes = []
        for k in range(1, num_critiques + 1):
            sums_of_k = np.diff(sums[:, ::k], axis=1)
            outcomes.append((sums_of_k[right] > sums_of_k[wrong]).mean(1))
        return np.add.reduceat(np.stack(outcomes, axis=1), starts) / pairs_in_row

    buckets = length_buckets(lengths)
    groups = [np.arange(len(rewards)), *(places for _, places in buckets)]
    total = np.zeros((len(rewards), num_critiques))
    for _ in range(DRAWS):
        total += draw(rewards_RK)
    expected = total / DRAWS
    errors = _standard_errors(rewards_RK, draw, groups, rng)
    labels = [ALL_ROWS, *(label for label, _ in buckets)]
    curves = [
        _curve(label, expected[places], error) for label, places, error in zip(labels, groups, errors, strict=True)
    ]
    combined = compare_combinations(rewards, num_chosen, log_likelihoods)
    return SelfConsistency(temperature, length_of, curves[0], curves[1:], combined)


def compare_combinations(
    rewards: Sequence[Sequence[Sequence[float]]],
    num_chosen: Sequence[int],
    log_likelihoods: Sequence[Sequence[Sequence[float]]] | None = None,
) -> list[CombinedAccuracy]:
    """
    Compute the row accuracy of each way to combine all critiques of a response; see [`~combine_critiques.combine_rewards`].

    `rewards` and `log_likelihoods` are indexed by row, response and critique; without `log_likelihoods`, `"likelihood"` is left out.
    """
    likelihoods = [None] * len(rewards) if log_likelihoods is None else log_likelihoods
    names = [name for name in COMBINATIONS if name != "likelihood" or log_likelihoods is not None]
    outcomes = {
        name: [
            row_outcome(combine_rewards(row, name, known), count)
            for row, known, count in zip(rewards, likelihoods, num_chosen, strict=True)
        ]
        for name in names
    }
    return [
        CombinedAccuracy(name, share(found), mean_estimate(np.subtract(found, outcomes["mean"]).tolist()))
        for name, found in outcomes.items()
    ]


def _standard_errors(
    rewards_RK: np.ndarray, draw: Callable[[np.ndarray], np.ndarray], groups: Sequence[np.ndarray], rng: np.random.Generator
) -> np.ndarray:  # fmt: skip
    """Return bootstrap standard errors (over critiques) of each group's accuracy for every k, shape (groups, K)."""
    num_critiques, twice = rewards_RK.shape[1], []
    for _ in range(RESAMPLES):
        resampled = rng.integers(num_critiques, size=rewards_RK.shape)
        pool = np.take_along_axis(rewards_RK, resampled, axis=1)
        twice.append([[outcomes[places].mean(0) for places in groups] for outcomes in (draw(pool), draw(pool))])
    # Two draws from one pool share the pool's deviation, but their own noise is independent, so their covariance is the variance over
    # pools alone
    one, other = np.moveaxis(np.array(twice), 1, 0)
    variance = ((one - one.mean(0)) * (other - other.mean(0))).sum(0) / (RESAMPLES - 1)
    # A resample of K critiques varies less than K new ones do, by a factor of (K - 1) / K (Bessel's correction)
    return np.sqrt(np.maximum(variance, 0.0) * num_critiques / max(1, num_critiques - 1))


def _pair_places(sizes: Sequence[int], num_chosen: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """Return the indices of each pair's right and wrong response among all responses, and the index of each row's first pair."""
    right, wrong, starts, first = [], [], [], 0
    for size, count in zip(sizes, num_chosen, strict=True):
        starts.append(len(right))
        for better, worse in product(range(first, first + count), range(first + count, first + size)):
            right.append(better)
            wrong.append(worse)
        first += size
    return right, wrong, starts


def length_buckets(lengths: ArrayLike) -> list[tuple[str, np.ndarray]]:
    """
    Split rows by length into one bucket per value, or into quarters if there are many values. Returns each bucket's range and rows,
    shortest first.
    """
    lengths = np.array(lengths, dtype=float)
    values = np.unique(lengths)
    if len(values) <= _MOST_VALUES:
        return [(f"{value:g}", np.flatnonzero(lengths == value)) for value in values]
    edges = np.unique(np.quantile(lengths, np.arange(1, _BUCKETS) / _BUCKETS))
    bucket = np.searchsorted(edges, lengths)
    return [
        (
            f"{lengths[bucket == place].min():.4g} to {lengths[bucket == place].max():.4g}",
            np.flatnonzero(bucket == place),
        )
        for place in np.unique(bucket)
    ]


def _curve(label: str, outcomes_NK: np.ndarray, errors_K: np.ndarray) -> AccuracyCurve:
    accuracies = outcomes_NK.mean(0).tolist()
    intervals = tuple(wilson(accuracy, len(outcomes_NK)) for accuracy in accuracies)
    return AccuracyCurve(label, len(outcomes_NK), tuple(accuracies), tuple(errors_K.tolist()), intervals)
