"""Cascades on recorded rewards: weights, curves, and the threshold chosen on dev rows."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from cloud_hf.evaluation.metrics.cascade import (
    Goal,
    StageScores,
    cascade_curve,
    fit_cascade,
    fit_stages,
    run_recorded,
)


def world(rows=400, seed=0, one_at_a_time=False):
    """Easy pairs, which the cheap model knows, and hard ones, which only critiques of 30 tokens tell."""
    rng = np.random.default_rng(seed)
    easy = rng.random(rows) < 0.5
    correct = np.tile([1, 0], (rows, 1))
    cheap = rng.normal(size=(rows, 2)) + 4 * easy[:, None] * correct
    full = 10 * rng.normal(size=(rows, 2)) + 25 * correct
    stages = [
        StageScores("cheap", cheap.tolist(), np.zeros((rows, 2)).tolist()),
        StageScores("full", full.tolist(), np.full((rows, 2), 30).tolist(), one_at_a_time),
    ]
    return stages, correct.tolist()


def test_the_slope_has_the_least_smoothed_loss():
    [cheap, _], correct = world()
    [fit] = fit_stages([cheap], correct)
    margins = np.array([a - b for a, b in cheap.rewards])
    right = (len(margins) + 1) / (len(margins) + 2)

    def loss(slope):
        return (right * np.logaddexp(0, -slope * margins) + (1 - right) * np.logaddexp(0, slope * margins)).mean()

    assert fit.slope == pytest.approx(minimize_scalar(loss, bounds=(0, 20), method="bounded").x, rel=1e-3)


def test_units_do_not_matter_and_perfect_stages_have_finite_weights():
    stages, correct = world()
    scaled = [StageScores(one.name, (np.array(one.rewards) * 100 + 7).tolist(), one.tokens) for one in stages]
    for ours, theirs in zip(
        *(cascade_curve(s, fit_stages(s, correct), correct, (0.8, 0.95)) for s in (stages, scaled)), strict=True
    ):
        assert np.mean(ours.worth) == pytest.approx(np.mean(theirs.worth), abs=0.01)
        assert ours.tokens_per_row.value == pytest.approx(theirs.tokens_per_row.value, rel=0.03)
    perfect = StageScores("perfect", [[1.0, 0.0]] * 50, [[0, 0]] * 50)
    useless = StageScores("useless", [[0.0, 1.0]] * 50, [[0, 0]] * 50)
    [good], [bad] = (fit_stages([one], [[1, 0]] * 50) for one in (perfect, useless))
    assert good.slope == pytest.approx(np.log(51), rel=1e-3)  # the odds of 51 to 1 that 50 of 50 pairs allow
    assert bad.slope == 0.0 and np.isfinite(bad.one_center)


def test_the_ends_of_the_curve_are_the_cheap_and_the_full_model():
    stages, correct = world()
    curve = cascade_curve(stages, fit_stages(stages, correct), correct)
    cheap, full = (np.array(stage.rewards) for stage in stages)
    assert curve[0].accuracy.value == np.mean(cheap[:, 0] > cheap[:, 1]) and curve[0].tokens_per_row.value == 0
    assert curve[-1].tokens_per_row.value == 60 and curve[-1].reached == (1.0, 1.0)
    # With everything scored, the cheap reward still has its say
    assert curve[-1].accuracy.value >= np.mean(full[:, 0] > full[:, 1]) - 0.01
    tokens = [point.tokens_per_row.value for point in curve]
    assert tokens == sorted(tokens)


@pytest.mark.parametrize("one_at_a_time", [False, True])
def test_chosen_on_dev_it_holds_elsewhere(one_at_a_time):
    stages, correct = world(one_at_a_time=one_at_a_time)
    fit, _ = fit_cascade(stages, correct, Goal(loss=0.01))
    test_stages, test_correct = world(seed=1, one_at_a_time=one_at_a_time)
    point = run_recorded(test_stages, fit.stages, fit.thresholds[0], test_correct)
    full = cascade_curve(test_stages, fit.stages, test_correct, (1.0,))[0]
    assert point.accuracy.value > full.accuracy.value - 0.02
    assert point.tokens_per_row.value < (0.55 if one_at_a_time else 0.75) * full.tokens_per_row.value
    low, high = point.tokens_per_row.ci95
    assert low < point.tokens_per_row.value < high


def test_goals():
    stages, correct = world()
    fit, curve = fit_cascade(stages, correct, Goal(tokens=20))
    chosen = next(point for point in curve if point.threshold == fit.thresholds[0])
    affordable = [point for point in curve if np.mean(point.tokens) <= 20]
    assert chosen in affordable and chosen.accuracy.value == max(point.accuracy.value for point in affordable)
    fit, _ = fit_cascade(stages, correct, Goal(accuracy=0.9))
    assert run_recorded(stages, fit.stages, fit.thresholds[0], correct).accuracy.value >= 0.9
    assert fit_cascade(stages, correct, Goal(threshold=0.87))[0].thresholds == (0.87,)


def test_three_stages_and_many_candidates():
    rng = np.random.default_rng(0)
    correct = [[1, 0, 0, 0]] * 100
    stages = [
        StageScores(
            name, (rng.normal(size=(100, 4)) + power * np.array(correct)).tolist(), np.full((100, 4), cost).tolist()
        )
        for name, power, cost in (("cheap", 1, 0), ("one", 2, 10), ("eight", 4, 80))
    ]
    fit, _ = fit_cascade(stages, correct, Goal(loss=0.01))
    point = run_recorded(stages, fit.stages, fit.thresholds[0], correct)
    first, second, third = point.reached
    assert first == 1 and first >= second >= third > 0 and point.tokens_per_row.value < 4 * 90
    tokens = [
        sum(len(places) * cost for places, cost in zip(asked, (0, 10, 80), strict=True)) for asked in point.asked
    ]
    assert list(point.tokens) == tokens


@pytest.mark.parametrize(
    ("goal", "says"),
    [
        (
            {"accuracy": 1.0},
            "target is 1, but .* every stage scores every response, accuracy on the 400 dev rows is 0.9",
        ),
        ({"threshold": 0.9999999}, "full still scores every response of all 400 dev rows"),
        ({}, "0 fields; set exactly one of"),
        ({"accuracy": 0.9, "tokens": 3}, "2 fields; set exactly one of"),
        ({"accuracy": 90}, "accuracy is 90; it must be from 0 to 1"),
    ],
)
def test_goals_that_no_dev_data_supports(goal, says):
    with pytest.raises(ValueError, match=says):
        fit_cascade(*world(), Goal(**goal))


def test_budgets_and_rows_that_are_too_few():
    stages, correct = world()
    dear = StageScores("dear", stages[0].rewards, stages[1].tokens)
    with pytest.raises(ValueError, match="within 5 tokens per row: the lowest mean on the 400 dev rows is 60"):
        fit_cascade([dear, stages[1]], correct, Goal(tokens=5))
    with pytest.raises(ValueError, match="have 19 pairs of a right and a wrong response"):
        fit_cascade([one.part(range(19)) for one in stages], correct[:19], Goal(tokens=5))
    with pytest.raises(ValueError, match="at least two stages"):
        fit_cascade(stages[:1], correct, Goal(tokens=5))
