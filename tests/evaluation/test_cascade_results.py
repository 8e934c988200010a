"""Cascades of scored models, without scoring any."""

import numpy as np
import pytest

from cloud_hf.evaluation.cascade_results import Cascade, StagePart, worth_of
from cloud_hf.evaluation.compute import Cost
from cloud_hf.evaluation.context_fitting import FittedRow, FittedRows
from cloud_hf.evaluation.metrics.best_of_n import summarize_best_of_n
from cloud_hf.evaluation.metrics.cascade import Goal
from cloud_hf.scores import Sample, Score


def stage_part(rewards, tokens=10):
    """A stage's rewards by row and candidate; the first candidate is the right one."""
    rows = [
        FittedRow(
            n, {"correct": [float(place == 0) for place in range(len(row))]}, "Which?", list("abcd")[: len(row)], []
        )
        for n, row in enumerate(rewards)
    ]
    scores = [[Score.of([Sample(float(reward))]) for reward in row] for row in rewards]
    return StagePart(FittedRows(rows, 0, 0), scores, Cost([[[tokens]] * len(row) for row in rewards], 1.0))


def combined(kind, *stages, **goal):
    cascade = Cascade(tuple((f"s{number}", None) for number in range(len(stages))), Goal(**goal or {"loss": 0.01}))
    return cascade.combine(kind, "set", list(map(stage_part, stages)))


def test_the_last_stage_alone_has_the_accuracy_of_its_rewards():
    """A model below chance gets the slope 0, but its rewards are still right on some rows."""
    rng = np.random.default_rng(0)
    cheap = rng.normal(size=(80, 2)) + np.array([2, 0])
    below_chance = rng.normal(size=(80, 2)) - np.array([1, 0])
    _, _, found = combined("pairs", cheap, below_chance)
    assert found.fit.stages[1].slope == 0.0
    assert found.last.accuracy.value == np.mean(below_chance[:, 0] > below_chance[:, 1]) > 0
    assert found.last.tokens_per_row.value == 20 and found.last.reached == (1.0,)


def test_tied_candidates_have_the_value_that_best_of_n_gives_them():
    rng = np.random.default_rng(0)
    cheap = np.round(rng.normal(size=(80, 4)) + np.array([1, 0, 0, 0]))
    rows, scores, found = combined("problems", cheap, np.round(cheap / 2), threshold=0.5)
    table = summarize_best_of_n(rows, scores)
    assert found.chosen.accuracy.value == pytest.approx(table.rates[4])
    assert any(0 < worth < 1 for worth in found.chosen.worth) and any(0 < worth < 1 for worth in found.last.worth)
    # Of pairs, a tie is never right
    _, _, of_pairs = combined("pairs", cheap[:, :2], np.round(cheap[:, :2] / 2), threshold=0.5)
    assert of_pairs.chosen.accuracy.value == np.mean(cheap[:, 0] > cheap[:, 1])


def test_a_cascade_without_weights_is_refused():
    """On the even rows both stages prefer the wrong response, so the odd rows would be decided by nothing."""
    rewards = np.where((np.arange(80) % 2)[:, None] == 0, [0.0, 1.0], [1.0, 0.0])
    with pytest.raises(
        ValueError, match=r"cascade\(s0,s1\) on set: No stage orders the pairs of the 40 dev rows better"
    ):
        combined("pairs", rewards, rewards)


@pytest.mark.parametrize(
    ("kind", "columns", "worth"),
    [
        ("problems", {"correct": [0, 1, 0.5]}, [0.0, 1.0, 0.5]),
        ("benchmark", {"num_chosen": 2}, [1.0, 1.0, 0.0]),
        # Columns of the user, which mean something else
        ("pairs", {"correct": "yes", "num_chosen": 7}, [1.0, 0.0, 0.0]),
    ],
)
def test_worth_depends_on_the_kind_of_set(kind, columns, worth):
    assert worth_of(kind, FittedRow(0, columns, "Which?", ["a", "b", "c"], [])) == worth
