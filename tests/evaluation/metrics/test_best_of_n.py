"""Best-of-N: the arithmetic by hand and by enumeration, and the published values of recorded sets."""

import itertools
import json
import math
import random
import statistics

import pytest
from benchmark_files import write_rows
from datasets import Dataset
from shared_data import shared_data
from table_scorer import TableScorer
from tokenizers_for_tests import make_tokenizer

from cloud_hf import CritiqueFormat
from cloud_hf.evaluation import evaluate_best_of_n
from cloud_hf.evaluation.metrics.best_of_n import (
    Problem,
    baselines,
    best_of_n_curve,
    best_of_the_first,
    candidate_counts,
    choice_probabilities,
    expected_best_of,
    load_problems,
    ratio,
    sizes_of,
)


def enumerate_best_of(rewards, correct, n):
    """All draws one by one; equal rewards share the choice."""
    values = []
    for draw in itertools.combinations(range(len(rewards)), n):
        best = max(rewards[i] for i in draw)
        values.append(statistics.fmean(correct[i] for i in draw if rewards[i] == best))
    return statistics.fmean(values)


@pytest.mark.parametrize("seed", range(20))
def test_closed_form_is_the_enumeration(seed):
    rng = random.Random(seed)
    rewards = [float(rng.randrange(4)) for _ in range(6)]
    correct = [float(rng.randrange(2)) for _ in range(6)]
    for n in range(1, 7):
        assert expected_best_of(rewards, correct, n) == pytest.approx(enumerate_best_of(rewards, correct, n))


def test_rates_chance_and_oracle():
    rows = [
        {"prompt": "p", "responses": ["a", "b", "c", "d"], "correct": [i == k for i in range(4)]} for k in range(4)
    ]
    scorer = TableScorer({"a": 3.0, "b": 2.0, "c": 1.0, "d": 0.0})
    result = evaluate_best_of_n(scorer, Dataset.from_list(rows), CritiqueFormat(make_tokenizer("llama3")))
    assert result.rates == {1: 0.25, 2: 0.25, 3: 0.25, 4: 0.25}
    assert result.oracle == {1: 0.25, 2: 0.5, 3: 0.75, 4: 1.0}
    assert result.standard_errors[4] == pytest.approx(0.25)


def test_all_bad_problems_are_counted():
    """Those whose prompt cannot be read, and those whose candidates cannot."""
    problem = {"prompt": "p", "responses": ["a"], "correct": [1.0]}
    rows = [problem, {**problem, "prompt": None}, {**problem, "correct": []}]
    critique_format = CritiqueFormat(make_tokenizer("llama3"))
    result = evaluate_best_of_n(TableScorer({"a": 1.0}), Dataset.from_list(rows), critique_format, bad_rows="drop")
    assert (result.problems, result.bad) == (1, 2)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "p", "responses": ["a"], "correct": [True, False]}, "row 0: `correct` is"),
        ({"prompt": "p", "responses": None, "correct": [True]}, "row 0: `responses` is None"),
        (
            {"prompt": "p", "responses": ["a", "b"], "correct": [1.0, float("nan")]},
            "row 0: a candidate's value is nan",
        ),
        ({"prompt": "p", "correct": [True]}, "needs the column.* responses"),
    ],
)
def test_bad_rows_are_named(row, says):
    with pytest.raises(ValueError, match=says):
        evaluate_best_of_n(TableScorer({}), Dataset.from_list([row]), CritiqueFormat(make_tokenizer("llama3")))


def test_problems_are_numbered_by_their_position_in_the_file(tmp_path):
    problem = {"prompt": "p", "responses": ["a"], "correct": [1.0]}
    rows = [{**problem, "prompt": None}, problem, {**problem, "correct": []}, problem]
    problems = load_problems(write_rows(tmp_path / "rows.jsonl", rows), bad_rows="drop")
    assert [problem.id for problem in problems] == ["1", "3"]


# ----------------------------------------------------------------------------------------------------------- curves


def problems_of(*worth):
    return [
        Problem(str(place), "p", tuple("x" * (number + 1) for number in range(len(values))), tuple(values))
        for place, values in enumerate(worth)
    ]


@pytest.mark.parametrize("seed", range(10))
def test_probabilities_are_those_of_all_draws(seed):
    rng = random.Random(seed)
    rewards = [float(rng.randrange(4)) for _ in range(6)]
    for n in range(1, 7):
        counts = [0.0] * 6
        draws = list(itertools.combinations(range(6), n))
        for draw in draws:
            best = [place for place in draw if rewards[place] == max(rewards[one] for one in draw)]
            for place in best:
                counts[place] += 1 / len(best) / len(draws)
        assert choice_probabilities(rewards, n) == pytest.approx(counts)


def test_curve_by_hand():
    """Two problems of two candidates: one is chosen rightly, the other wrongly."""
    curve = best_of_n_curve([[[2.0, 1.0], [2.0, 1.0]]], [[1.0, 0.0], [0.0, 1.0]], [1, 2])
    assert curve.values == {1: 0.5, 2: 0.5}
    # At N = 1 both problems are worth 1/2; at N = 2 they are worth 1 and 0, whose deviation is √½, over √2
    assert curve.standard_errors == {1: 0.0, 2: pytest.approx(0.5)}
    assert curve.of_all == (0.5, pytest.approx(0.5))
    assert all(math.isnan(error) for error in curve.standard_errors_over_seeds.values())


def test_error_over_seeds_by_hand():
    """Three seeds choose rightly 2, 1 and 0 times of 2."""
    right, wrong = [1.0, 0.0], [0.0, 1.0]
    curve = best_of_n_curve([[right, right], [right, wrong], [wrong, wrong]], [right, right], [1, 2])
    assert curve.values[2] == pytest.approx(0.5)
    assert curve.standard_errors_over_seeds[2] == pytest.approx(0.5 / math.sqrt(3))
    # Over prompts: the problems are right in 2/3 and in 1/3 of the seeds
    assert curve.standard_errors[2] == pytest.approx(statistics.stdev([2 / 3, 1 / 3]) / math.sqrt(2))
    assert curve.standard_errors_over_seeds[1] == 0.0


def test_weights_make_a_ratio():
    """A candidate with three votes counts three times; the error is that of votes scattered around the mean."""
    curve = best_of_n_curve([[[1.0], [1.0]]], [[1.0], [0.0]], [1], weights=[[3.0], [1.0]])
    assert curve.values[1] == 0.75
    assert curve.standard_errors[1] == pytest.approx(math.sqrt(2 * (0.75**2 + 0.75**2)) / 4)
    assert ratio([(1.0, 1.0), (0.0, 1.0), (1.0, 1.0)]) == pytest.approx((2 / 3, statistics.stdev([1, 0, 1]) / 3**0.5))
    assert ratio([(1.0, 2.0)])[0] == 0.5 and math.isnan(ratio([(1.0, 2.0)])[1])
    with pytest.raises(ValueError, match="None of the chosen candidates was judged"):
        best_of_n_curve([[[1.0]]], [[1.0]], [1], weights=[[0.0]])


def test_best_of_the_first():
    assert best_of_the_first([1.0, 3.0, 3.0, 4.0], 3) == [0.0, 1.0, 0.0, 0.0]
    assert best_of_the_first([1.0, 3.0, 3.0, 4.0], 4) == [0.0, 0.0, 0.0, 1.0]


def test_unequal_and_repeated_candidates():
    problems = problems_of([0, 1, 0], [1, 0])
    assert sizes_of(problems, 16) == [1, 2] and sizes_of(problems, 1) == [1]
    rewards = [[[1.0, 0.0, 2.0], [1.0, 0.0]]]
    curve = best_of_n_curve(rewards, [problem.worth for problem in problems], [1, 2])
    assert curve.values == {1: pytest.approx((1 / 3 + 1 / 2) / 2), 2: pytest.approx(0.5)}
    assert curve.of_all[0] == 0.5
    same = Problem("z", "p", ("a", "a", "b"), (1.0, 1.0, 0.0))
    assert candidate_counts([*problems, same]) == {
        "problems": 3,
        "fewest_candidates": 2,
        "most_candidates": 3,
        "problems_with_more_than_the_fewest": 2,
        "repeated_candidates": 1,
    }


def test_baselines():
    found = baselines(problems_of([0, 1, 0], [1, 0, 0]), [1, 2, 3])
    assert found["random"].values == pytest.approx({1: 1 / 3, 2: 1 / 3, 3: 1 / 3})
    assert found["longest"].values[3] == 0.0 and found["perfect"].values == pytest.approx({1: 1 / 3, 2: 2 / 3, 3: 1})


@pytest.mark.parametrize(
    ("file", "known"),
    [
        ("eval/gsm8k_bon4.jsonl.gz", {"random": "45.8%", "longest": "54.5%", "perfect": "100.0%"}),
        ("arena/arenabench_v1_bon.jsonl.gz", {"random": "5.71", "longest": "7.10", "perfect": "9.69"}),
    ],
)
def test_recorded_sets(file, known):
    """Two files with other columns; what the data's README says of them, to its last digit."""
    problems = load_problems(str(shared_data() / file))
    found = baselines(problems, [1])
    shown = ".1%" if "%" in known["random"] else ".2f"
    assert {name: f"{curve.of_all[0]:{shown}}" for name, curve in found.items()} == known
    assert found["random"].values[1] == pytest.approx(found["perfect"].values[1])


# ------------------------------------------------------------------------------------------------------- problems

ROW = {"id": "a", "prompt": "p", "responses": ["x", "y"], "correct": [1.0, 0.5]}
CANDIDATES = [{"response": "x", "judge_score": 1.0}, {"response": "y", "judge_score": None}]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({**ROW, "responses": []}, r"row 0 \(id 'a'\): `responses` is \[\]; give a non-empty list"),
        ({**ROW, "responses": ["x", None]}, "`responses` is"),
        ({**ROW, "correct": [1.0]}, "give one value for each of the 2 responses"),
        ({**ROW, "correct": [1.0, None]}, "give booleans or numbers"),
        ({**ROW, "correct": [1.0, math.nan]}, "a candidate's value is nan; give finite numbers"),
        ({"id": "a", "prompt": "p", "candidates": CANDIDATES}, "`judge_score` of candidate 1 is missing"),
        (
            {"id": "a", "prompt": "p", "candidates": ["x", "y"]},
            r"`candidates` is \['x', 'y'\]; give a list of objects",
        ),
        (
            {"id": "a", "prompt": "p", "candidates": [{"text": "x"}]},
            "`candidates` is .*; give a list of objects with `resp",
        ),
        ({"id": "a", "prompt": "p", "candidates": []}, "`responses` is"),
        ({"id": "a", "prompt": "p", "responses": ["x"]}, "needs the column.* correct"),
    ],
)
def test_bad_problems_are_named(row, says, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=says):
        load_problems(str(path))


def test_ids_are_unique(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in (ROW, {**ROW, "id": "b"}, ROW)))
    with pytest.raises(ValueError, match="rows 0 and 2 have the same id 'a'"):
        load_problems(str(path))
    assert [problem.id for problem in load_problems(str(path), limit=2)] == ["a", "b"]
    assert load_problems(str(path), limit=1, judged=False)[0].worth is None
