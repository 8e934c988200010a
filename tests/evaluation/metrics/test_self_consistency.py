"""Curves over critiques, against all subsets counted out."""

from itertools import combinations, product
from statistics import fmean

import numpy as np
import pytest
from scipy.stats import binomtest

from cloud_hf.evaluation.metrics.self_consistency import compare_combinations, length_buckets, self_consistency, wilson
from cloud_hf.evaluation.stats import interval_over_rows


OPTIONS = {"temperature": 0.5, "length_of": "tokens"}


def counted_out(row: list[list[float]], k: int) -> float:
    """A pair's accuracy over all choices of k critiques for each of both responses."""
    return fmean(sum(right) > sum(wrong) for right, wrong in product(combinations(row[0], k), combinations(row[1], k)))


def test_every_k_is_the_mean_over_subsets():
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(30, 2, 5)) + np.array([0.5, 0.0])[:, None]).tolist()
    found = self_consistency(rows, [1] * 30, [1.0] * 30, **OPTIONS)
    for k, value in enumerate(found.everything.accuracy, 1):
        assert value == pytest.approx(fmean(counted_out(row, k) for row in rows), abs=0.01)
    assert found.everything.accuracy[-1] == pytest.approx(fmean(fmean(row[0]) > fmean(row[1]) for row in rows))
    assert found.num_critiques == 5


def test_the_standard_error_is_that_of_the_mean():
    """
    Of one pair, one critique in two wins. A resample of the two has 0, 1 or 2 winners, which gives a deviation of √(1/8); both win in
    one resample of four, which gives √(3/16). New critiques vary by a factor of √2 more.
    """
    found = self_consistency([[[2.0, 0.0], [1.0, 1.0]]], [1], [1], **OPTIONS).everything
    assert found.accuracy == (0.5, 0.0)  # 2 + 0 against 1 + 1 is a tie
    assert found.standard_errors == pytest.approx((np.sqrt(1 / 4), np.sqrt(3 / 8)), abs=0.1)
    low, high = found.intervals[1]
    assert low == 0 and high == pytest.approx(0.7935, abs=1e-4)


def test_ties_stay_ties_in_any_order():
    """Also those of rewards with more digits than float32 has, whose sums depend on the order."""
    values = np.random.default_rng(0).normal(size=16).tolist()
    found = self_consistency([[values, values[::-1]]] * 3, [1] * 3, [1] * 3, **OPTIONS).everything
    assert found.accuracy[-1] == 0.0 and 0.2 < found.accuracy[0] < 0.8


def test_the_standard_error_is_what_other_critiques_change():
    """At the first and the last k: as large as the spread of the figure over critiques that were sampled again."""
    rng = np.random.default_rng(0)
    truth = rng.normal((0.5, 0.0), size=(40, 2))
    runs = [
        self_consistency((truth[..., None] + rng.normal(size=(40, 2, 8))).tolist(), [1] * 40, [1] * 40, **OPTIONS)
        for _ in range(25)
    ]
    spread = np.std([run.everything.accuracy for run in runs], axis=0, ddof=1)
    said = np.mean([run.everything.standard_errors for run in runs], axis=0)
    assert said[[0, 7]] == pytest.approx(spread[[0, 7]], rel=0.35)


def test_rows_of_several_responses_count_their_share():
    """Two right against two wrong responses: three of four pairs are in order."""
    row = [[3.0, 3.0], [1.0, 1.0], [2.0, 2.0], [0.0, 0.0]]
    found = self_consistency([row, [[1.0, 1.0], [0.0, 0.0]]], [2, 1], [1, 2], **OPTIONS)
    assert found.everything.accuracy == (0.875, 0.875)
    assert [(curve.label, curve.rows, curve.accuracy[0]) for curve in found.buckets] == [("1", 1, 0.75), ("2", 1, 1.0)]


def test_buckets_are_values_or_quarters():
    few = length_buckets([3, 1, 3, 2])
    assert [(label, places.tolist()) for label, places in few] == [("1", [1]), ("2", [3]), ("3", [0, 2])]
    many = length_buckets(list(range(100)))
    assert [len(places) for _, places in many] == [25] * 4 and many[0][0] == "0 to 24"
    skewed = length_buckets([1] * 90 + list(range(2, 12)))
    assert sum(len(places) for _, places in skewed) == 100
    assert sorted(np.concatenate([places for _, places in skewed])) == list(range(100))


def test_the_same_seed_gives_the_same_curve():
    rows = np.random.default_rng(0).normal(size=(10, 2, 4)).tolist()
    first, again, other = (self_consistency(rows, [1] * 10, range(10), seed=seed, **OPTIONS) for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("rows", [[], [[[1.0], [1.0, 2.0]]]])
def test_what_cannot_be_averaged(rows):
    with pytest.raises(ValueError, match="the same number of critiques"):
        self_consistency(rows, [1] * len(rows), [1] * len(rows), **OPTIONS)


def test_wilson_of_whole_and_of_broken_numbers():
    interval = binomtest(7, 9).proportion_ci(0.95, method="wilson")
    assert wilson(7 / 9, 9) == pytest.approx((interval.low, interval.high))
    assert wilson(6.9 / 9, 9) < wilson(7 / 9, 9) and wilson(1.0, 9)[0] < 1.0 == wilson(1.0, 9)[1]


def test_intervals_over_rows():
    """Of a mean, the normal approximation; none of one row."""
    values = np.random.default_rng(0).normal(size=400)
    low, high = interval_over_rows(400, lambda counts: counts @ values / 400)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)
    assert interval_over_rows(1, lambda counts: counts[:, 0]) is None


def test_combinations_are_compared_on_the_same_rows():
    """One of four critiques is far off: the mean follows it, the others do not; likelihood does if it says so."""
    row = [[1.0, 1.0, 1.0, -9.0], [0.0, 0.0, 0.0, 0.0]]
    likelihoods = [[[0.0, 0.0, 0.0, -50.0], [0.0] * 4]] * 3
    found = {part.combination: part for part in compare_combinations([row] * 3, [1] * 3, likelihoods)}
    assert {name: part.accuracy.value for name, part in found.items()} == {
        "mean": 0.0, "median": 1.0, "trimmed_mean": 1.0, "vote": 1.0, "likelihood": 1.0,
    }  # fmt: skip
    assert found["median"].minus_mean.value == 1.0 and found["median"].accuracy.ci95 == wilson(1.0, 3)
    assert "likelihood" not in {part.combination for part in compare_combinations([row], [1])}
