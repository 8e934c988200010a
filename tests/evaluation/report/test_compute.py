"""Points of accuracy against compute, on sets small enough to count by hand."""

import json
from dataclasses import replace

import pytest

from cloud_hf.evaluation.analysis import Robustness
from cloud_hf.evaluation.benchmarks import preference_pairs
from cloud_hf.evaluation.compute import Cost
from cloud_hf.evaluation.context_fitting import FittedRow, FittedRows
from cloud_hf.evaluation.generative_judges import JudgeReport, RatingReport
from cloud_hf.evaluation.metrics.best_of_n import summarize_best_of_n
from cloud_hf.evaluation.report.compute import compute_points, compute_sections
from cloud_hf.evaluation.rows import BenchmarkRow
from cloud_hf.evaluation.scored_sets import ModelResults
from cloud_hf.evaluation.set_results import Evaluation
from cloud_hf.scores import Sample, Score


def results(kind, rows, scores, evaluations=(), costs=True):
    key = (kind, "set")
    part = (FittedRows([FittedRow(n, *row, []) for n, row in enumerate(rows)], 0, 0), scores)
    cost = Cost([[[7]] * len(row) for row in scores], 1.0)
    return ModelResults(
        list(evaluations), {}, {}, Robustness({}), parts={key: part}, costs={key: cost} if costs else {}
    )


def test_best_of_n_has_one_value_when_rewards_tie():
    """Three of the four candidates tie for the highest reward, and the right one is among them."""
    rows = [({"correct": [1.0, 0.0, 0.0, 0.0]}, "Which?", list("abcd"))] * 2
    scores = [[Score.of([Sample(reward)]) for reward in (2.0, 2.0, 1.0, 2.0)]] * 2
    found = results("problems", rows, scores)
    table = summarize_best_of_n(found.parts["problems", "set"][0], scores)
    [point] = compute_points({"m": found}, {"m": "m", "set": "set"})
    assert point.accuracy.value == table.rates[4] == pytest.approx(1 / 3) and point.tokens == 28


def pairs_of(*texts):
    rows = [BenchmarkRow(str(n), "all", prompt, (right, wrong)) for n, (prompt, right, wrong) in enumerate(texts)]
    scores = [[Score.of([Sample(1.0, "c", (4, 5))]), Score.of([Sample(0.0, "d", (4,))])] for _ in rows]
    rewards = [[score.reward for score in row] for row in scores]
    return Evaluation("set", "set", preference_pairs.score(rows, rewards), rows, scores, 0, 0)


@pytest.mark.parametrize(
    ("report", "verdicts"),
    [
        # One pair occurs twice, and one has identical responses: two pairs in two orders
        (JudgeReport(2, 1, 0, 0, None, None, tokens_per_verdict=100.0), 4),
        # A rating for each text, also for the two that differ in a space
        (RatingReport(6, 0, 5.0, 1.0, 3, tokens_per_verdict=100.0), 6),
    ],
)
def test_a_judge_is_charged_for_what_it_judged(report, verdicts):
    evaluation = pairs_of(("p", "a", "b"), ("p", "a", "b"), ("q", "c", "c "), ("r", "d", "c"))
    found = ModelResults([evaluation], {}, {})
    [point] = compute_points({"j": found}, {"j": "j"}, judged=report)
    assert point.tokens == 100 * verdicts / 4


def test_estimated_tokens_are_said():
    evaluation = pairs_of(("p", "a", "b"), ("q", "c", "d"))
    old = [[replace(score, critique_ids=(), critique_tokens=()) for score in row] for row in evaluation.row_scores]
    for scores, count in ((evaluation.row_scores, 0), (old, 1)):
        one = replace(evaluation, row_scores=scores)
        rows = [({}, row.prompt, list(row.responses)) for row in one.rows]
        points = compute_points({"m": results("pairs", rows, scores, [one])}, {"m": "m"})
        [section] = compute_sections(points, [])
        assert len(section.notes) == count == json.dumps(points[0].summary()).count("estimated")
    assert "that involve m are estimates" in section.notes[0]
