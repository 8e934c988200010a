"""Areas under rejection curves, by hand and by numerical integration."""

import math

import numpy as np
import pytest

from cloud_hf.evaluation.metrics.selective_accuracy import FRACTIONS, selective_accuracy


def test_a_right_and_a_wrong_pair():
    """Up to a half of the pairs kept all are right; then accuracy is 1 / (1 + t) for the half that follows."""
    found = selective_accuracy([1, 0], {"good": [2.0, 1.0], "bad": [1.0, 2.0]}, rows=[0, 1])
    good = (1 + math.log(2)) / 2
    assert found.curves["good"].area.value == pytest.approx(good) == pytest.approx(found.oracle.area.value)
    assert found.curves["bad"].area.value == pytest.approx(1 - good)
    assert (
        found.random == 0.5
        and found.normalised_aurc("good") == pytest.approx(1)
        and found.normalised_aurc("bad") == pytest.approx(-1)
    )
    curve = dict(zip(FRACTIONS, found.curves["good"].accuracy, strict=True))
    assert curve[0.0] == 0.5 and curve[0.5] == pytest.approx(1.0) and curve[0.25] == pytest.approx(1 / 1.5)


def test_equal_certainty_is_random_rejection():
    found = selective_accuracy([1, 0, 1, 1], {"none": [0.0] * 4}, rows=range(4))
    assert found.curves["none"].area.value == pytest.approx(0.75) and found.normalised_aurc("none") == pytest.approx(0)
    assert found.curves["none"].accuracy == pytest.approx([0.75] * len(FRACTIONS))


def test_areas_are_integrals():
    rng = np.random.default_rng(0)
    right = rng.random(60) < 0.7
    certainty = rng.integers(0, 12, 60)  # with ties
    found = selective_accuracy(right, {"c": certainty}, rows=np.arange(60) // 2).curves["c"]
    order = np.argsort(-certainty, kind="stable")
    groups = [np.flatnonzero(certainty[order] == value) for value in sorted(set(certainty.tolist()), reverse=True)]
    kept = np.r_[0, np.cumsum([len(group) for group in groups])]
    rights = np.r_[0, np.cumsum([right[order][group].sum() for group in groups])]
    grid = np.linspace(1e-9, 60, 200_001)
    values = np.interp(grid, kept, rights) / grid
    assert found.area.value == pytest.approx(np.trapezoid(values, grid) / 60, abs=1e-4)
    low, high = found.area.ci95
    assert low < found.area.value < high and found.area.n == 60


def test_all_right_leaves_nothing_to_gain():
    found = selective_accuracy([1, 1], {"c": [1.0, 2.0]}, rows=[0, 1])
    assert found.normalised_aurc("c") is None and found.curves["c"].area.value == 1.0
    assert found.summary()["curves"]["c"]["gain"] is None


def test_pairs_of_one_row_are_drawn_together():
    """The same pairs have a narrower interval when each is its own row."""
    rng = np.random.default_rng(0)
    right = np.repeat(rng.random(20) < 0.6, 9)
    certainty = np.repeat(rng.random(20), 9)
    together = selective_accuracy(right, {"c": certainty}, np.repeat(np.arange(20), 9)).curves["c"].area.ci95
    apart = selective_accuracy(right, {"c": certainty}, np.arange(180)).curves["c"].area.ci95
    assert together[1] - together[0] > 1.5 * (apart[1] - apart[0])
    assert selective_accuracy([1], {"c": [1.0]}, [0]).curves["c"].area.ci95 is None
