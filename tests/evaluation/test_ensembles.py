"""Ensembles: standardised, combined on the rows that all members scored."""

import numpy as np
import pytest

from cloud_hf.evaluation.context_fitting import FittedRow, FittedRows
from cloud_hf.evaluation.ensembles import Ensemble, read_ensembles
from cloud_hf.scores import Sample, Score


def part(rewards, indices=None, dropped=0):
    """Rows with two responses each."""
    indices = range(len(rewards)) if indices is None else indices
    rows = [FittedRow(index, {}, "x", ["a", "b"], [1, 1]) for index in indices]
    scores = [[Score.of([Sample(reward)]) for reward in row] for row in rewards]
    return FittedRows(rows, dropped, 0), scores


def test_rewards_of_other_scales_weigh_the_same():
    small, large = np.array([[1.0, 0.0], [0.0, 0.5]]), np.array([[100.0, 300.0], [500.0, -100.0]])
    parts = {"a": part(small.tolist()), "b": part(large.tolist())}
    standard = [(values - values.mean()) / values.std() for values in (small, large)]
    for kind, expected in (("mean", np.mean(standard, axis=0)), ("lowest", np.min(standard, axis=0))):
        fitted, scores = Ensemble(kind, ("a", "b")).combine(parts)
        assert [[score.reward for score in row] for row in scores] == pytest.approx(expected, abs=1e-12)
        assert fitted.dropped == 0
    # Units do not matter
    scaled = {**parts, "b": part((large * 7 - 3).tolist())}
    again = Ensemble("mean", ("a", "b")).combine(scaled)[1]
    assert [score.reward for row in again for score in row] == pytest.approx(np.mean(standard, axis=0).ravel())


def test_only_rows_that_all_have_scored_count():
    parts = {
        "a": part([[1.0, 0.0], [0.0, 0.5], [2.0, 1.0]]),
        "b": part([[5.0, 4.0], [3.0, 6.0]], indices=[0, 2], dropped=1),
    }
    fitted, scores = Ensemble("mean", ("a", "b")).combine(parts)
    assert [row.index for row in fitted.rows] == [0, 2]
    assert fitted.dropped == 1 and len(scores) == 2
    with pytest.raises(ValueError, match="no row fits"):
        Ensemble("mean", ("a", "b")).combine({"a": part([[1.0, 2.0]], [0]), "b": part([[1.0, 2.0]], [1])})


def test_equal_rewards_leave_the_choice_to_the_others():
    parts = {"a": part([[1.0, 1.0]]), "b": part([[0.0, 2.0]])}
    scores = Ensemble("mean", ("a", "b")).combine(parts)[1]
    assert [score.reward for score in scores[0]] == pytest.approx([-0.5, 0.5])


def test_members_are_named_as_in_reports():
    assert read_ensembles(["mean:runs/a,b"], ["runs/a", "runs/b"]) == [Ensemble("mean", ("a", "b"))]
    assert read_ensembles(["lowest: a, b"], ["runs/a", "runs/b"])[0].name == "lowest(a,b)"


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["a,b"], "write a kind"),
        (["median:a,b"], "write a kind"),
        (["mean:"], "write a kind"),
        (["mean:a,c"], "'c' is not one of `models`"),
        (["mean:a"], "at least two different models"),
        (["mean:a,b,a"], "at least two different models"),
        (["mean:a,b", "mean:a,b"], "twice"),
    ],
)
def test_unusable_ensembles_are_refused(texts, says):
    with pytest.raises(ValueError, match=says):
        read_ensembles(texts, ["a", "b"])
