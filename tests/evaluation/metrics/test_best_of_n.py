import itertools
import random
import statistics

import pytest
from datasets import Dataset
from table_scorer import TableScorer
from tokenizers_for_tests import make_tokenizer

from cloud_hf import CritiqueFormat
from cloud_hf.evaluation import evaluate_best_of_n
from cloud_hf.evaluation.metrics.best_of_n import expected_best_of
from cloud_hf.evaluation.report.plots import plot_accuracy_by_group, plot_best_of_n, plot_reward_distributions


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


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "p", "responses": ["a"], "correct": [True, False]}, "Row 0: `correct` is"),
        ({"prompt": "p", "responses": None, "correct": [True]}, "Row 0: `responses` is None"),
        ({"prompt": "p", "responses": ["a", "b"], "correct": [1.0, float("nan")]}, "Row 0: a candidate is worth nan"),
        ({"prompt": "p", "correct": [True]}, "needs the column.* responses"),
    ],
)
def test_bad_rows_are_named(row, says):
    with pytest.raises(ValueError, match=says):
        evaluate_best_of_n(TableScorer({}), Dataset.from_list([row]), CritiqueFormat(make_tokenizer("llama3")))


def test_plots_are_pictures(tmp_path):
    groups = {"3": {"accuracy": 0.5, "ci95": (0.4, 0.6)}, "4": {"accuracy": 1.0, "ci95": (0.9, 1.0)}}
    plot_accuracy_by_group({"classic": groups, "cloud": groups}, "swaps", tmp_path / "a.png")
    plot_reward_distributions({"classic": ([0.0, 1.0], [0.0, -1.0]), "cloud": ([1.0], [1.0])}, tmp_path / "b.png")
    curve = {"rates": {1: 0.25, 2: 0.5}, "standard_errors": {1: 0.1, 2: 0.1}, "oracle": {1: 0.25, 2: 1.0}}
    plot_best_of_n({"classic": curve, "cloud": curve}, tmp_path / "c.png")
    for name in "abc":
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
