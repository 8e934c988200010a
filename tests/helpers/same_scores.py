"""Compare scores that were computed twice: processors, threads and the address of a weight change a reward's last digit."""

from dataclasses import replace

import pytest


def assert_same_scores(scores, expected, abs=1e-6):
    """Ids, texts and finish reasons are equal; rewards and likelihoods but for rounding."""
    for score, other in zip(scores, expected, strict=True):
        assert score.rewards == pytest.approx(other.rewards, abs=abs)
        assert (score.reward, score.reward_std) == pytest.approx((other.reward, other.reward_std), abs=abs)
        assert score.log_likelihoods == pytest.approx(other.log_likelihoods, abs=10 * abs)
        rounded = ("reward", "rewards", "reward_std", "log_likelihoods")
        assert replace(score, **{name: getattr(other, name) for name in rounded}) == other
