"""Halving on recorded critiques, against the live one and the full choice."""

from dataclasses import replace

import numpy as np
import pytest

from cloud_hf.evaluation.candidates import ScoredSet
from cloud_hf.evaluation.halving_results import Halving, compare_halving, halve_recorded, read_halvings
from cloud_hf.evaluation.metrics.best_of_n import Problem
from cloud_hf.evaluation.report.compute import halving_section
from cloud_hf.scores import Sample, Score


def scored(rng, problems=30, candidates=8, critiques=4):
    worth = np.tile(np.arange(candidates) == 2, (problems, 1))
    rewards = rng.normal(size=(problems, candidates, critiques)) + 3 * worth[..., None]
    rows = [
        Problem(str(n), "p", tuple(map(str, range(candidates))), tuple(map(float, row))) for n, row in enumerate(worth)
    ]
    scores = {
        "full": [[[Score.of([Sample(x, "c") for x in of_one]) for of_one in row] for row in rewards]],
        "cheap": [[[Score.of([Sample(value + place / 100)]) for place, value in enumerate(row)] for row in worth]],
        "equal": [[[Score.of([Sample(0.5, "c", (7,))] * critiques) for _ in row] for row in worth]],
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


@pytest.mark.parametrize("cheap", [None, "equal"])
def test_candidates_that_tie_are_equally_likely_to_be_chosen(cheap):
    """The right candidate is the third in all problems, but neither the choice nor the full choice knows."""
    found, _ = scored(np.random.default_rng(0))
    tokens = [np.tile(np.arange(1, 9)[:, None], (30, 1, 4)).tolist()]
    result = compare_halving(Halving("equal", cheap), found, tokens)
    assert result.worth.value == result.full_worth.value == 1 / 8 and result.difference.value == 0
    # 16 critiques are written for 8 candidates, or 6 after a cheap model, with 4.5 tokens on average
    assert result.tokens.value == pytest.approx((6 if cheap else 16) * 4.5)


def test_values_outside_0_to_1_are_not_shares():
    """The choices' mean is between 0 and 1 all the same."""
    found, rewards = scored(np.random.default_rng(0))
    tokens = [np.full(rewards.shape, 10).tolist()]
    assert "%" in halving_section([compare_halving(Halving("full"), found, tokens)]).tables[0].rows[0][3]
    problems = [replace(one, worth=(1.5, *one.worth[1:])) for one in found.problems]
    result = compare_halving(Halving("equal"), replace(found, problems=problems), tokens)
    assert 0 <= result.worth.value <= 1 and not result.is_share
    assert not any("%" in cell or "points" in cell for cell in halving_section([result]).tables[0].rows[0][3:6])


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
