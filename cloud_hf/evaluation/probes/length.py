"""Length bias: whether the longer response gets the higher reward, right or wrong."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import spearmanr

from ..stats import Estimate, percentile_interval
from .probe import CORRELATION, SHARE, Measure, Probe, ProbedRow, share_of_rows


_RESAMPLES = 300


def _measure(rows: Sequence[ProbedRow]) -> list[Measure]:
    kinds = {"shorter": [], "longer": [], "as long": []}
    preferred, is_right = [], []
    for row in rows:
        texts, rewards = row.row.row.responses, row.row.rewards
        found = {name: [] for name in kinds}
        longer_preferred, longer_right = [], []
        for right, wrong in row.row.pairs():
            excess = len(texts[right]) - len(texts[wrong])
            kind = "longer" if excess > 0 else "shorter" if excess < 0 else "as long"
            margin = rewards[right] - rewards[wrong]
            found[kind].append(float(margin > 0))
            if excess:
                longer_preferred.append(float(margin * excess > 0))
                longer_right.append(float(excess > 0))
        for name, outcomes in found.items():
            kinds[name].append(outcomes)
        preferred.append(longer_preferred)
        is_right.append(longer_right)
    return [
        Measure(
            "rank correlation of reward and length, within rows", CORRELATION, correlation(rows, within_rows=True)
        ),
        Measure("rank correlation of reward and length, all responses", CORRELATION, correlation(rows)),
        Measure("longer response has the higher reward", SHARE, share_of_rows(preferred)),
        Measure("longer response is right", SHARE, share_of_rows(is_right)),
        *(Measure(f"accuracy, right response {name}", SHARE, share_of_rows(found)) for name, found in kinds.items()),
    ]


def correlation(rows: Sequence[ProbedRow], within_rows: bool = False) -> Estimate:
    """
    Spearman's correlation of rewards and lengths in characters, with a bootstrap over rows. It is NaN if either is the same
    for all responses.

    Args:
        rows (`Sequence[ProbedRow]`):
            The rows.
        within_rows (`bool`, *optional*, defaults to `False`):
            Take each reward and each length as its difference from the mean of its row, so that prompts which call for long
            answers, or get low rewards, do not count.
    """
    if not rows:
        return Estimate(float("nan"), 0)
    parts = [np.array([[len(text) for text in row.row.row.responses], row.row.rewards], dtype=float) for row in rows]
    if within_rows:
        parts = [part - part.mean(1, keepdims=True) for part in parts]
    value = _spearman(parts)
    if np.isnan(value):
        return Estimate(value, len(parts))

    def of_places(places: np.ndarray) -> np.ndarray:
        return np.array([_spearman([parts[place] for place in drawn]) for drawn in places])

    interval = percentile_interval([len(parts)], of_places, _RESAMPLES)
    return Estimate(value, len(parts), None if interval is None else (float(interval[0]), float(interval[1])))


def _spearman(parts: list[np.ndarray]) -> float:
    lengths, rewards = np.concatenate(parts, axis=1)
    if np.ptp(lengths) == 0 or np.ptp(rewards) == 0:
        return float("nan")
    return float(spearmanr(lengths, rewards).statistic)


LENGTH = Probe(
    title="Length",
    about=(
        "All rows as they are; lengths in characters. A model without a bias prefers the longer response about as often as "
        "the longer one is right, and is as accurate where the right response is the shorter one."
    ),
    measure=_measure,
)
