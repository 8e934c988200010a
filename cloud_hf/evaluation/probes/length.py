"""Probe length bias: does the longer response get the higher reward, whether it is right or wrong?"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import spearmanr

from ..stats import Estimate, percentile_interval
from .probe import CORRELATION, SHARE, Measure, Probe, ProbedRow, share_of_rows


# Fewer resamples than elsewhere, because each one sorts all responses
_RESAMPLES = 300


def _measure(rows: Sequence[ProbedRow]) -> list[Measure]:
    pairs = [_pairs(row) for row in rows]

    def share_where(outcome: Callable[[float, int], bool], counts: Callable[[int], bool]):
        return share_of_rows([[float(outcome(*pair)) for pair in of_row if counts(pair[1])] for of_row in pairs])

    kinds = {
        "shorter": lambda excess: excess < 0,
        "longer": lambda excess: excess > 0,
        "as long": lambda excess: not excess,
    }
    return [
        Measure("rank correlation of reward and length, within rows", CORRELATION, correlation(rows, within_rows=True)),
        Measure("rank correlation of reward and length, all responses", CORRELATION, correlation(rows)),
        *(
            Measure(f"{name} response has the higher reward", SHARE, share_where(is_higher, bool))
            for name, is_higher in {
                "longer": lambda margin, excess: margin * excess > 0,
                "shorter": lambda margin, excess: margin * excess < 0,
            }.items()
        ),
        Measure("equal rewards, lengths differ", SHARE, share_where(lambda margin, excess: margin == 0, bool)),
        Measure("longer response is right", SHARE, share_where(lambda margin, excess: excess > 0, bool)),
        *(
            Measure(f"{label}, right response {name}", SHARE, share_where(outcome, is_kind))
            for label, outcome in {
                "accuracy": lambda margin, excess: margin > 0,
                "equal rewards": lambda margin, excess: margin == 0,
            }.items()
            for name, is_kind in kinds.items()
        ),
    ]  # fmt: skip


def _pairs(row: ProbedRow) -> list[tuple[float, int]]:
    """Return the reward margin and the excess length (in characters) of the right response, for each right/wrong pair."""
    texts, rewards = row.row.row.responses, row.row.rewards
    return [
        (rewards[right] - rewards[wrong], len(texts[right]) - len(texts[wrong])) for right, wrong in row.row.pairs()
    ]


def correlation(rows: Sequence[ProbedRow], within_rows: bool = False) -> Estimate:
    """
    Compute Spearman's correlation between rewards and lengths (in characters), with a bootstrap interval over rows. The result is NaN if
    all rewards or all lengths are equal. `within_rows` subtracts each row's means, which removes the effect of prompts that require long
    answers or get low rewards.
    """
    if not rows:
        return Estimate(math.nan, 0)
    parts = [np.array([[len(text) for text in row.row.row.responses], row.row.rewards], dtype=float) for row in rows]
    if within_rows:
        parts = [part - part.mean(1, keepdims=True) for part in parts]
    value = _spearman(parts)
    if math.isnan(value):
        return Estimate(value, len(parts))

    def of_places(places: np.ndarray) -> np.ndarray:
        return np.array([_spearman([parts[place] for place in drawn]) for drawn in places])

    return Estimate(value, len(parts), percentile_interval([len(parts)], of_places, _RESAMPLES))


def _spearman(parts: list[np.ndarray]) -> float:
    lengths, rewards = np.concatenate(parts, axis=1)
    if np.ptp(lengths) == 0 or np.ptp(rewards) == 0:
        return math.nan
    return float(spearmanr(lengths, rewards).statistic)  # pyright: ignore[reportAttributeAccessIssue] (scipy has no types)


LENGTH = Probe(
    title="Length",
    about=(
        "All rows, unaltered; lengths are in characters. An unbiased model prefers the longer response about as often as the "
        "longer one is right, and is equally accurate if the right response is the shorter one. Equal rewards prefer neither, and "
        "accuracy counts them as wrong. The intervals of the correlations use few resamples, and are a little too narrow."
    ),
    measure=_measure,
)
