"""Accuracy against tokens read: accuracy of a model when its critiques are read only up to some length."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from ...combine_critiques import combine_rewards
from ..stats import Estimate, Summarised, mean_estimate, powers_of_two, row_outcome, share


@dataclass(frozen=True)
class Reading:
    """
    A critique with `tokens` tokens, and its rewards after every `read_every` tokens and then at its end.

    Examples:

    ```python
    >>> reading = Reading((0.5, 1.0, 2.0), tokens=40)
    >>> reading.at(32, read_every=16), reading.at(100, read_every=16)
    ((1.0, 32), (2.0, 40))
    ```
    """

    rewards: tuple[float, ...]
    tokens: int

    def at(self, limit: int | None, read_every: int) -> tuple[float, int]:
        """Return the last reward within `limit` tokens (`None`: the complete critique), and the number of tokens read to get it."""
        inner = len(self.rewards) - 1
        if limit is None or limit // read_every > inner:
            # The number of readings bounds the number of tokens, which may be an estimate (see `compute.token_counts`)
            return self.rewards[-1], min(max(self.tokens, inner * read_every), (inner + 1) * read_every - 1)
        return self.rewards[limit // read_every - 1], limit // read_every * read_every


@dataclass(frozen=True)
class AnytimePoint:
    """Accuracy if at most `limit` tokens of each critique are read (`None`: all)."""

    limit: int | None
    accuracy: Estimate  # share of a row's right/wrong pairs in the right order; ties count as wrong
    tokens: Estimate  # read per response


@dataclass(frozen=True)
class Anytime(Summarised):
    """A model's accuracy on a set against the number of tokens read."""

    read_every: int
    points: list[AnytimePoint]  # limits start at `read_every` and double; the last point uses complete critiques


# The critiques of each response of a row
RowReadings = Sequence[Sequence[Reading]]


def accuracy_against_tokens(
    rows: Sequence[RowReadings],
    num_chosen: Sequence[int],
    read_every: int,
    combine: str = "mean",
    log_likelihoods: Sequence[Sequence[Sequence[float]]] | None = None,
) -> Anytime:
    """
    Compute pair accuracy when at most 1, 2, 4, … times `read_every` tokens of each critique are read (up to the longest critique), and
    when complete critiques are read.

    `rows` contains the critiques of each row's responses; a row's first `num_chosen` responses are the right ones. `combine` is the way to
    combine the rewards of a response's critiques; see [`~combine_critiques.combine_rewards`]. `"likelihood"` needs `log_likelihoods`, those
    of the complete critiques, shaped like `rows`.
    """
    likelihoods = [None] * len(rows) if log_likelihoods is None else log_likelihoods
    steps = max(len(reading.rewards) - 1 for row in rows for readings in row for reading in readings)

    def point(limit: int | None) -> AnytimePoint:
        outcomes, tokens = [], []
        for row, known, count in zip(rows, likelihoods, num_chosen, strict=True):
            found = [[reading.at(limit, read_every) for reading in readings] for readings in row]
            rewards = combine_rewards([[reward for reward, _ in readings] for readings in found], combine, known)
            outcomes.append(row_outcome(rewards, count))
            tokens.append(fmean(sum(read for _, read in readings) for readings in found))
        return AnytimePoint(limit, share(outcomes), mean_estimate(tokens))

    limits = (*(read_every * power for power in powers_of_two(steps)), None)
    return Anytime(read_every, list(map(point, limits)))
