"""Choices of several models on the same problems, with rewards made by hand."""

from dataclasses import replace

import pytest

from cloud_hf.evaluation.arena_hard.judge import Judged
from cloud_hf.evaluation.arena_hard.win_rate import Question, Votes
from cloud_hf.evaluation.candidates import ScoredSet, arena_results, replay_result
from cloud_hf.evaluation.metrics.best_of_n import Problem
from cloud_hf.evaluation.report import best_of_n_section, render
from cloud_hf.generation import Sample
from cloud_hf.scoring import Score


def scored(problems, rewards) -> ScoredSet:
    scores = {
        model: [[[Score.of([Sample(reward)]) for reward in row] for row in rows]] for model, rows in rewards.items()
    }
    return ScoredSet("set", "set", problems, scores, [], dict.fromkeys(rewards, 0))


def test_win_rates_of_models_rest_on_the_same_questions():
    """The first model's choice in q1 has no verdict: q1 counts for nobody, and the notes say so."""
    problems = [Problem(f"q{n}", "?", ("a", "b")) for n in range(3)]
    found = scored(problems, {"one": [[1.0, 0.0]] * 3, "two": [[0.0, 1.0]] * 3})
    won, lost = Votes.of("B>A", "A>B"), Votes.of("A>B", "B>A")
    votes = {("q0", "a"): won, ("q0", "b"): lost, ("q1", "b"): won, ("q2", "a"): won, ("q2", "b"): lost}
    questions = {problem.id: Question(problem.id, "?") for problem in problems}
    [result], _ = arena_results(found, questions, Judged(votes, {}), 2, False, [])
    assert {name: (rate.questions, rate.value) for name, rate in result.win_rates.items()} == {
        "one": (2, 1.0), "two": (2, 0.0),
    }  # fmt: skip
    assert result.first_candidates.questions == 2
    assert any("a model's choice has no verdict: 1." in note for note in result.notes)


def test_choices_are_compared_problem_by_problem():
    problems = [Problem(str(n), "?", ("a", "b"), (1.0, 0.0)) for n in range(20)]
    tie = [[0.0, 0.0]]
    found = scored(problems, {"one": [[1.0, 0.0]] * 20, "two": [[0.0, 1.0]] * 10 + [[1.0, 0.0]] * 9 + tie})
    result = replay_result(found, 2)
    difference = result.differences["one", "two"]
    assert difference.value == pytest.approx((10 + 0.5) / 20) and difference.n == 20
    assert difference.ci95[0] > 0.2 and difference.ci95[1] < 0.8
    assert "| one − two | +52.5 points (" in render([best_of_n_section(result)])
    assert result.summaries({"one": "runs/one"})[0]["differences"][0]["models"] == ("one", "two")


def test_problems_left_out_while_loading_are_counted():
    problems = [Problem("1", "?", ("a", "b"), (1.0, 0.0))]
    found = replace(scored(problems, {"one": [[1.0, 0.0]]}), bad=2)
    assert "Problems left out because they cannot be used: 2." in found.notes(2) and found.counts()["bad"] == 2
