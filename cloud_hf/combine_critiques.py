"""Combine the rewards of several critiques into one reward per response. Does not import torch."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace

from .scores import Score


TRIMMED = 0.25  # fraction of the rewards that the trimmed mean drops at each end, rounded down to whole rewards


def trimmed_mean(rewards: Sequence[float]) -> float:
    """Return the mean of the rewards after dropping the lowest and the highest quarter."""
    cut = int(TRIMMED * len(rewards))
    return statistics.fmean(sorted(rewards)[cut : len(rewards) - cut])


def likelihood_mean(rewards: Sequence[float], log_likelihoods: Sequence[float]) -> float:
    """
    Return the mean of the rewards, weighted by how likely the model found each critique. The weight is the geometric mean of the critique's
    token probabilities; its logarithm is in [`Score.log_likelihoods`].
    """
    most = max(log_likelihoods)
    weights = [math.exp(one - most) for one in log_likelihoods]
    return math.fsum(weight * reward for weight, reward in zip(weights, rewards, strict=True)) / math.fsum(weights)


def vote_share(rewards: Sequence[float], others: Sequence[float]) -> float:
    """
    Compare each critique of one response with each critique of another, and return the share of comparisons that `rewards` wins against
    `others`. A tie counts as half a win.
    """
    wins = sum((ours > theirs) + 0.5 * (ours == theirs) for ours in rewards for theirs in others)
    return wins / (len(rewards) * len(others))


# Combinations that need only the rewards of one response
_ALONE: dict[str, Callable[[Sequence[float]], float]] = {
    "mean": statistics.fmean,
    "median": statistics.median,
    "trimmed_mean": trimmed_mean,
}
COMBINATIONS = (*_ALONE, "vote", "likelihood")


def check_combination(name: str):
    """Raise `ValueError` if `name` is not one of `COMBINATIONS`."""
    if name not in COMBINATIONS:
        raise ValueError(f"`combine` is {name!r}; it must be one of {', '.join(COMBINATIONS)}.")


def combine_rewards(
    row: Sequence[Sequence[float]], how: str, log_likelihoods: Sequence[Sequence[float]] | None = None
) -> list[float]:
    """
    Combine the rewards of each response's critiques, for all responses to one prompt.

    Args:
        row (`Sequence[Sequence[float]]`):
            The rewards of each response's critiques.
        how (`str`):
            `"mean"`, `"median"`, `"trimmed_mean"` (without the lowest and the highest quarter), `"vote"` or `"likelihood"`. A vote compares
            responses: a response's reward is its mean [`vote_share`] against the other responses, from 0 to 1, or 0.5 if there are none.
        log_likelihoods (`Sequence[Sequence[float]]`, *optional*):
            Mean log-probability of each critique's tokens, with the same shape as `row`. Required for `"likelihood"`.

    Returns:
        `list[float]`: One reward per response.

    Raises:
        `ValueError`: If `how` is unknown, or if log-likelihoods are needed but missing.

    Examples:

    ```python
    >>> combine_rewards([[0.0, 1.0, 5.0], [2.0, 2.0, 2.0]], "median")
    [1.0, 2.0]
    >>> combine_rewards([[0.0, 1.0, 5.0], [2.0, 2.0, 2.0]], "vote")
    [0.3333333333333333, 0.6666666666666666]
    ```
    """
    check_combination(how)
    if how in _ALONE:
        return [_ALONE[how](rewards) for rewards in row]
    if how == "vote":
        return [_mean_vote(row, place) for place in range(len(row))]
    if log_likelihoods is None or any(
        len(known) != len(rewards) for known, rewards in zip(log_likelihoods, row, strict=True)
    ):
        raise ValueError(
            "`combine` 'likelihood' needs the likelihoods of sampled critiques, which only transformers and vLLM record, and "
            "only if `temperature` is above 0; choose another combination."
        )  # fmt: skip
    return [likelihood_mean(*pair) for pair in zip(row, log_likelihoods, strict=True)]


def _mean_vote(row: Sequence[Sequence[float]], place: int) -> float:
    others = [rewards for number, rewards in enumerate(row) if number != place]
    return statistics.fmean(vote_share(row[place], rewards) for rewards in others) if others else 0.5


def combine_scores(row: Sequence[Score], how: str) -> list[Score]:
    """Return new scores for the responses to one prompt: `reward` comes from [`combine_rewards`], and `rewards` is unchanged."""
    if how == "mean":  # the default reward of a score
        return list(row)
    combined = combine_rewards([score.rewards for score in row], how, [score.log_likelihoods for score in row])
    return [replace(score, reward=reward) for score, reward in zip(row, combined, strict=True)]
