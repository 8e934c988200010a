"""Margins and spreads of scored rows."""

import math

import numpy as np
import pytest
from tokenizers_for_tests import make_tokenizer

from cloud_hf.combine_critiques import COMBINATIONS, combine_scores
from cloud_hf.critique_format import CritiqueFormat
from cloud_hf.evaluation.analysis import assess_anytime, uncertainty
from cloud_hf.evaluation.benchmarks import preference_pairs
from cloud_hf.evaluation.rows import BenchmarkRow
from cloud_hf.evaluation.set_results import Evaluation
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


@pytest.mark.parametrize("combine", COMBINATIONS)
def test_complete_critiques_have_the_accuracy_of_the_headline(combine):
    """However critiques are combined, reading all of them gives the rewards of the report."""
    rng = np.random.default_rng(0)
    row_scores = [
        [
            Score.of(
                [Sample(float(x), "c", (1,) * 6, "stop", (0.0,), float(-y)) for x, y in rng.exponential(size=(5, 2))]
            )
            for _ in range(2)
        ]
        for _ in range(20)
    ]
    row_scores = [combine_scores(row, combine) for row in row_scores]
    rows = [BenchmarkRow(str(number), "all", "p", ("right", "wrong")) for number in range(20)]
    rewards = [[score.reward for score in row] for row in row_scores]
    evaluation = Evaluation("set", "set", preference_pairs.score(rows, rewards), rows, row_scores, 0, 0)
    found = assess_anytime([evaluation], CritiqueFormat(make_tokenizer("llama3")), 4, combine)["set"]
    assert found.points[-1].accuracy == evaluation.row_accuracy()
    assert found.points[-1].tokens.value == 5 * 6 and found.points[0].tokens.value == 5 * 4


def test_all_pairs_of_a_row_count():
    row = BenchmarkRow("0", "s", "p", ("a", "b", "c", "d"), num_chosen=1)
    found = uncertainty(
        [row, ROWS[0]], [[score(2.0), score(1.0), score(3.0), score(0.0)], [score(1.0), score(0.0)]], ""
    )
    assert found.metrics["ece"].n == 4 and found.selective_accuracy.random == 0.75
