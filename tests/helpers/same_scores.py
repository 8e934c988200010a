"""Compare scores that were computed twice: processors, threads and the address of a weight change a reward's last digit."""

from dataclasses import replace

import pytest


def assert_same_scores(scores, expected, abs=1e-6):
    """Ids, texts and finish reasons are equal; rewards but for rounding."""
    for score, other in zip(scores, expected, strict=True):
        assert score.rewards == pytest.approx(other.rewards, abs=abs)
        assert (score.reward, score.reward_std) == pytest.approx((other.reward, other.reward_std), abs=abs)
        rewards = {name: getattr(other, name) for name in ("reward", "rewards", "reward_std")}
        assert replace(score, **rewards) == other
