"""Halving on recorded critiques, against the live one and the full choice."""

import numpy as np
import pytest

from cloud_hf.evaluation.candidates import ScoredSet
from cloud_hf.evaluation.halving_results import Halving, compare_halving, halve_recorded, read_halvings
from cloud_hf.evaluation.metrics.best_of_n import Problem
from cloud_hf.scores import Sample, Score


def scored(rng, problems=30, candidates=8, critiques=4):
    worth = np.tile(np.arange(candidates) == 2, (problems, 1))
    rewards = rng.normal(size=(problems, candidates, critiques)) + 3 * worth[..., None]
    rows = [
        Problem(str(n), "p", tuple(map(str, range(candidates))), tuple(map(float, row))) for n, row in enumerate(worth)
    ]
    scores = {
        "full": [[[Score.of([Sample(x, "c") for x in of_one]) for of_one in row] for row in rewards]],
        "cheap": [[[Score.of([Sample(float(value))]) for value in row] for row in worth]],
    }
    return ScoredSet("set", "set", rows, scores, [], {}), rewards


def test_halving_is_compared_with_the_full_choice():
    found, rewards = scored(np.random.default_rng(0))
    tokens = [np.full(rewards.shape, 10).tolist()]
    for halving, spent in ((Halving("full"), 8 + 4 + 2 * 2), (Halving("full", "cheap"), 4 + 2)):
        result = compare_halving(halving, found, tokens)
        choices, _ = halve_recorded(rewards, tokens[0], found.rewards("cheap")[0] if halving.cheap else None)
        assert result.worth.value == np.mean([choice == 2 for choice in choices])
        assert result.full_worth.value == np.mean(rewards.mean(2).argmax(1) == 2)
        assert result.difference.value == pytest.approx(result.worth.value - result.full_worth.value)
        assert result.full_tokens.value == 8 * 4 * 10 and result.num_critiques == 4
        assert result.tokens.value == 10 * spent and result.share < 0.51


@pytest.mark.parametrize(
    ("texts", "critiques", "says"),
    [
        (["c"], 4, "'c' is not one of `models`"),
        (["a,a"], 4, "name one model, or a cheap model and another one"),
        (["a"], 1, "leaves nothing to save"),
        (["a,b", "a,b"], 4, "twice"),
    ],
)
def test_unusable_halvings_are_refused(texts, critiques, says):
    with pytest.raises(ValueError, match=says):
        read_halvings(texts, ["runs/a", "b"], critiques)
    assert read_halvings(["runs/a,b", "a"], ["runs/a", "b"], 2) == [Halving("b", "a"), Halving("a")]
