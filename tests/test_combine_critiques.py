"""Combined rewards, against brute force and the properties they promise."""

import math
from itertools import product

import numpy as np
import pytest
from scipy.stats import trim_mean

from cloud_hf.combine_critiques import COMBINATIONS, combine_rewards, combine_scores
from cloud_hf.scores import Sample, Score


RNG = np.random.default_rng(0)
ROW = RNG.integers(-3, 4, size=(3, 6)).astype(float)  # few values, so that some are equal
LIKELIHOODS = RNG.normal(-1, 0.5, size=(3, 6))


def test_combinations_are_those_of_numpy():
    weights = np.exp(LIKELIHOODS)
    expected = {
        "mean": ROW.mean(1),
        "median": np.median(ROW, axis=1),
        "trimmed_mean": trim_mean(ROW, 0.25, axis=1),
        "likelihood": (weights * ROW).sum(1) / weights.sum(1),
    }
    for how, values in expected.items():
        assert combine_rewards(ROW.tolist(), how, LIKELIHOODS.tolist()) == pytest.approx(values.tolist())


def test_a_vote_counts_pairs_of_critiques():
    for place, found in enumerate(combine_rewards(ROW.tolist(), "vote")):
        others = [row for number, row in enumerate(ROW) if number != place]
        wins = [(a > b) + (a == b) / 2 for other in others for a, b in product(ROW[place], other)]
        assert found == pytest.approx(np.mean(wins))
    first, second = combine_rewards(ROW[:2].tolist(), "vote")
    assert first + second == pytest.approx(1) and combine_rewards([[3.0]], "vote") == [0.5]


@pytest.mark.parametrize("how", COMBINATIONS)
def test_one_critique_decides_alone_and_order_does_not_matter(how):
    one = combine_rewards([[2.0], [-1.0]], how, [[-0.3], [-2.0]])
    assert one == ([1.0, 0.0] if how == "vote" else [2.0, -1.0])
    turned = combine_rewards(ROW[:, ::-1].tolist(), how, LIKELIHOODS[:, ::-1].tolist())
    assert turned == pytest.approx(combine_rewards(ROW.tolist(), how, LIKELIHOODS.tolist()))


def test_scores_keep_their_rewards():
    row = [
        Score.of([Sample(r, log_likelihood=x) for r, x in zip(*pair, strict=True)])
        for pair in zip(ROW, LIKELIHOODS, strict=True)
    ]
    found = combine_scores(row, "likelihood")
    assert [score.reward for score in found] == combine_rewards(ROW, "likelihood", LIKELIHOODS)
    assert [score.rewards for score in found] == [score.rewards for score in row]
    # Very unlikely critiques do not underflow
    assert combine_rewards([[1.0, 3.0]], "likelihood", [[-5000.0, -5000.0 - math.log(3)]]) == pytest.approx([1.5])


def test_what_cannot_be_combined():
    with pytest.raises(ValueError, match="'best'; it must be one of mean, median"):
        combine_rewards([[1.0]], "best")
    with pytest.raises(ValueError, match="needs the likelihoods"):
        combine_scores([Score.of([Sample(1.0), Sample(2.0)])], "likelihood")
