import json
import math

import pytest
from benchmark_files import pair, write_rows

from cloud_hf.evaluation.benchmarks import preference_pairs
from cloud_hf.evaluation.benchmarks.preference_pairs import score_preferences


def test_accuracy_ties_and_margins():
    scores = score_preferences([1.0, 2.0, 3.0, 0.0], [0.0, 2.0, 5.0, -4.0], ["x", "x", "y", "y"])
    assert (scores.accuracy.value, scores.accuracy_ties_half, scores.ties) == (0.5, 0.625, 1)
    assert (scores.margin, scores.margin_median) == (0.75, 0.5)
    assert scores.margin_std == pytest.approx(math.sqrt((0.25**2 + 0.75**2 + 2.75**2 + 3.25**2) / 4))
    assert {name: figure.value for name, figure in scores.subsets.items()} == {"x": 0.5, "y": 0.5}
    losses = [math.log(1 + math.exp(-margin)) for margin in (1, 0, -2, 4)]
    assert scores.calibration.log_loss == pytest.approx(sum(losses) / 4)


def test_bad_rewards_are_named():
    with pytest.raises(ValueError, match="Row 1: a reward is not a finite number"):
        score_preferences([1.0, math.inf], [0.0, 0.0])
    with pytest.raises(ValueError, match="2 chosen and 1 rejected rewards and 2 subsets"):
        score_preferences([1.0, 2.0], [0.0])
    with pytest.raises(ValueError, match="no pairs"):
        score_preferences([], [])


def test_the_benchmark_gives_the_same_numbers(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [pair("x"), pair("y"), pair("y", 1, chosen="bad")])
    scores = preference_pairs.score(preference_pairs.load([path]), [(1, 0), (0, 2), (3, 3)])
    direct = score_preferences([1, 0, 3], [0, 2, 3], ["x", "y", "y"])
    assert scores.figures["accuracy"] == direct.accuracy and scores.subsets == direct.subsets
    assert scores.details == direct.details() and scores.details["temperature"] is None
    assert (scores.ties, scores.undecidable) == (1, 1)
    json.dumps(scores.summary(), allow_nan=False)
