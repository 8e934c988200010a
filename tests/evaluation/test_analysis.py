"""Margins and spreads of scored rows."""

import math

import pytest

from cloud_hf.evaluation.analysis import uncertainty
from cloud_hf.evaluation.rows import BenchmarkRow
from cloud_hf.generation import Sample
from cloud_hf.scoring import Score


def score(*rewards: float) -> Score:
    return Score.of([Sample(reward, "Fine.") for reward in rewards])


ROWS = [BenchmarkRow(str(number), "s", "p", ("right", "wrong")) for number in range(2)]


def test_the_pair_that_spreads_most_is_rejected_first():
    """By margin the wrong pair is the more certain one; its critiques disagree."""
    scores = [[score(1.0, 1.0), score(0.5, 0.5)], [score(0.0, 4.0), score(3.0, 7.0)]]
    found = uncertainty(ROWS, scores, "mean of 2")
    assert found.selective_accuracy.normalised_aurc("spread") == pytest.approx(
        1
    ) and found.selective_accuracy.normalised_aurc("margin") == pytest.approx(-1)
    assert found.metrics["log_loss"].value == pytest.approx((math.log1p(math.exp(-0.5)) + math.log1p(math.exp(3))) / 2)
    assert found.critiques == "mean of 2"
    # Noise adds to the ECE, so no bootstrap of it holds a calibrated model's
    assert found.metrics["ece"].n == 2 and found.metrics["ece"].ci95 is None and found.metrics["log_loss"].ci95


def test_one_critique_has_no_spread():
    found = uncertainty(ROWS, [[score(1.0), score(0.0)]] * 2, "as scored")
    assert set(found.selective_accuracy.curves) == {"margin"}
    page = found.summary()
    assert page["calibration"]["temperature"] is None and page["rejection"]["random"] == 1.0


def test_all_pairs_of_a_row_count():
    row = BenchmarkRow("0", "s", "p", ("a", "b", "c", "d"), num_chosen=1)
    found = uncertainty(
        [row, ROWS[0]], [[score(2.0), score(1.0), score(3.0), score(0.0)], [score(1.0), score(0.0)]], ""
    )
    assert found.metrics["ece"].n == 4 and found.selective_accuracy.random == 0.75
