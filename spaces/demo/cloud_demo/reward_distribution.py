"""Where a reward falls among the model's rewards."""

import math
import statistics
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field


@dataclass
class RewardDistribution:
    """
    The rewards that the model gave to both responses of some rows.

    Args:
        source (`str`):
            Where the rows are from, for people.
        wanted (`int`):
            How many rewards there will be: two of each row.
        rewards (`list[float]`):
            Those that are known, in ascending order.
        problem (`str`, *optional*):
            Why there will be no more of them.
    """

    source: str
    wanted: int
    rewards: list[float] = field(default_factory=list)
    problem: str | None = None

    # Fewer say little about where another one falls
    FEWEST = 8

    @property
    def is_usable(self) -> bool:
        """Whether there are enough rewards to compare with."""
        return len(self.rewards) >= self.FEWEST

    def add(self, reward: float):
        """Count a reward in."""
        self.rewards.insert(bisect_left(self.rewards, reward), reward)

    def percentile(self, reward: float) -> float:
        """Percent of the rewards that are lower; equal ones count half."""
        below, up_to = bisect_left(self.rewards, reward), bisect_right(self.rewards, reward)
        return 100 * (below + up_to) / 2 / len(self.rewards)

    def describe(self, reward: float) -> str:
        """Where `reward` falls, and among what, in a sentence."""
        if self.problem is not None:
            return self.problem
        if not self.is_usable:
            if not self.wanted:
                return "The rewards of this model are not known; name rows with --rows to compare with theirs."
            return f"This model's rewards are still being measured ({len(self.rewards)} of {self.wanted})."
        mean, std = statistics.fmean(self.rewards), statistics.pstdev(self.rewards)
        unfinished = f" ({self.wanted} in the end)" if len(self.rewards) < self.wanted else ""
        deviations = f", {(reward - mean) / std:+.1f} standard deviations from their mean" if std > 0 else ""
        return (
            f"Higher than {self.percentile(reward):.0f} % of {len(self.rewards)} rewards{unfinished} that this model gave "
            f"to right and wrong responses of {self.wanted // 2} rows of {self.source}{deviations}."
        )


def preference(reward: float, other: float) -> float:
    """Bradley-Terry probability that the response with `reward` is preferred to the one with `other`."""
    margin = reward - other
    return 1 / (1 + math.exp(-margin)) if margin >= 0 else math.exp(margin) / (1 + math.exp(margin))
