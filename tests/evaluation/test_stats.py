import json
import math

import numpy as np
import pytest

from cloud_hf.evaluation.rows import BenchmarkRow
from cloud_hf.evaluation.stats import BenchmarkScores, Estimate, by_subset, count_unknown, share, weighted_mean


def test_shares_have_wilsons_interval():
    figure = share([1, 0, 1, 0])
    assert (figure.value, figure.n) == (0.5, 4)
    assert figure.ci95 == pytest.approx((0.1500, 0.8500), abs=1e-4)
    assert math.isnan(share([]).value) and share([]).ci95 is None


def test_weighted_means_of_strata():
    figure = weighted_mean({"a": [1, 1, 0, 0], "b": [1, 1]}, {"a": 3.0, "b": 1.0})
    assert figure.value == pytest.approx((3 * 0.5 + 1) / 4) and figure.n == 6
    assert math.isnan(weighted_mean({"a": [1, 1]}, {"a": 1.0, "b": 1.0}).value)
    assert math.isnan(weighted_mean({"a": [1, 1]}, {}).value)
    assert weighted_mean({"a": [1.0]}, {"a": 1.0}) == Estimate(1.0, 1)  # one row tells nothing of its spread


def test_rows_that_are_all_alike_have_no_interval():
    """Draws of them are alike too: an interval from 100 % to 100 % would say that two rows make certain."""
    assert weighted_mean({"a": [1.0, 1.0], "b": [0.0, 0.0]}, {"a": 1.0, "b": 1.0}) == Estimate(0.5, 4)
    assert share([0.5, 0.5]) == Estimate(0.5, 2)
    assert weighted_mean({"a": [1.0, 0.0], "b": [0.0, 0.0]}, {"a": 1.0, "b": 1.0}).ci95 is not None


def test_the_bootstrap_interval_covers_and_repeats():
    """Of 100 draws of two strata, the interval must hold the true mean about 95 times, and it is the same each time."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(100):
        strata = {"a": rng.random(40) < 0.8, "b": rng.random(20) < 0.4}
        low, high = weighted_mean({name: list(map(float, x)) for name, x in strata.items()}, {"a": 1.0, "b": 1.0}).ci95
        covered += low <= 0.6 <= high
    assert 88 <= covered <= 100
    assert weighted_mean({"a": [0.1, 0.7, 0.3]}, {"a": 1.0}) == weighted_mean({"a": [0.1, 0.7, 0.3]}, {"a": 1.0})


def test_what_is_missing_unknown_or_undecidable_is_said():
    rows = [BenchmarkRow(str(i), subset, "p", ("a", "b")) for i, subset in enumerate("xyxz")]
    assert by_subset(rows, [1, 2, 3, 4]) == {"x": [1, 3], "y": [2], "z": [4]}
    assert count_unknown(rows, ["x"]) == {"y": 1, "z": 1}
    scores = BenchmarkScores(
        "B", "total", {"total": Estimate(math.nan, 4)}, {}, ties=1, undecidable=2, missing=("w",), unknown={"z": 1}
    )
    notes = " ".join(scores.notes())
    assert "No rows of w" in notes and "z (1)" in notes and "same text: 2" in notes and "equal rewards: 1" in notes
    summary = json.loads(json.dumps(scores.summary(), allow_nan=False))
    assert summary["figures"]["total"] == {"value": None, "n": 4, "ci95": None} and math.isnan(scores.value)
