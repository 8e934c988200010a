"""Calibration of rewards read as Bradley-Terry log-odds."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from scipy.special import expit

from ..stats import interval_over_rows


@dataclass(frozen=True)
class Calibration:
    """
    Bradley-Terry probabilities compared with outcomes.

    Args:
        log_loss (`float`):
            Mean of -ln sigmoid(reward of the right response - reward of the wrong one), in nats. Equal rewards cost ln 2 =
            0.693.
        ece (`float`):
            Expected calibration error: mean distance, over bins of confidence, between confidence and accuracy, weighted by
            the pairs in a bin.
        bins (`tuple[tuple[float, float, int], ...]`):
            Mean confidence, accuracy (ties count half) and number of pairs of each bin that is not empty.
        temperature (`float`):
            Divisor of reward differences that minimises the log loss; below 1 for an underconfident model. NaN if there is no
            minimum: no pair is wrong, or the mean margin is not positive.
        log_loss_at_temperature (`float`):
            Log loss with that divisor.
    """

    log_loss: float
    ece: float
    bins: tuple[tuple[float, float, int], ...]
    temperature: float
    log_loss_at_temperature: float


def calibrate(margins: ArrayLike, num_bins: int = 10) -> Calibration:
    """
    Compare probabilities with outcomes.

    The confidence of a pair is the probability of the response with the higher reward, from 0.5 to 1, so that the order
    of a pair does not matter (Guo et al. 2017, arXiv 1706.04599, for two classes).

    Args:
        margins (`Sequence[float]`):
            For each pair the reward of the right response minus that of the wrong one.
        num_bins (`int`, *optional*, defaults to `10`):
            Bins of equal width between 0.5 and 1.

    Returns:
        [`Calibration`]

    Raises:
        `ValueError`: If there are no margins, or no bins.
    """
    margins = np.array(margins, dtype=float)
    if not len(margins):
        raise ValueError("There are no pairs to calibrate on.")
    if num_bins < 1:
        raise ValueError(f"`num_bins` is {num_bins}; it must be at least 1.")
    confidence, right, bins = _confidence(margins, num_bins)
    filled = [
        (float(confidence[bins == place].mean()), float(right[bins == place].mean()), int((bins == place).sum()))
        for place in np.unique(bins)
    ]
    ece = math.fsum(abs(confidence - accuracy) * count for confidence, accuracy, count in filled) / len(margins)
    temperature = _best_temperature(margins)
    at_temperature = math.nan if math.isnan(temperature) else _log_loss(margins / temperature)
    return Calibration(_log_loss(margins), ece, tuple(filled), temperature, at_temperature)


def calibration_intervals(
    margins: ArrayLike, rows: ArrayLike, num_bins: int = 10
) -> dict[str, tuple[float, float] | None]:
    """
    Compute 95 % intervals of `log_loss` and `ece` by a bootstrap over rows.

    Args:
        margins (`Sequence[float]`):
            See [`calibrate`].
        rows (`Sequence[int]`):
            For each pair the number of its row, from 0: pairs of a row are drawn together.
        num_bins (`int`, *optional*, defaults to `10`):
            See [`calibrate`].

    Returns:
        `dict`: `None` for fewer than two rows.
    """
    margins, rows = np.array(margins, dtype=float), np.array(rows)
    confidence, right, bins = _confidence(margins, num_bins)
    losses = np.logaddexp(0.0, -margins)
    # A bin's share of the error is the distance between its sums of confidence and of outcomes
    excess_PC = (confidence - right)[:, None] * (bins[:, None] == np.arange(num_bins))

    def statistics(counts_BR: np.ndarray) -> np.ndarray:
        weights = counts_BR[:, rows].astype(float)
        total = weights.sum(1)
        return np.stack([weights @ losses / total, np.abs(weights @ excess_PC).sum(1) / total], axis=1)

    interval = interval_over_rows(int(rows.max()) + 1, statistics)
    return {
        name: None if interval is None else (float(interval[0, place]), float(interval[1, place]))
        for place, name in enumerate(("log_loss", "ece"))
    }


def _confidence(margins: np.ndarray, num_bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for each pair the probability of the preferred response, whether it is right, and its bin."""
    confidence = expit(np.abs(margins))
    right = np.where(margins == 0, 0.5, margins > 0)
    bins = np.minimum((2 * num_bins * (confidence - 0.5)).astype(int), num_bins - 1)
    return confidence, right, bins


def _log_loss(margins: np.ndarray) -> float:
    return float(np.logaddexp(0.0, -margins).mean())


def _best_temperature(margins: np.ndarray) -> float:
    # The loss is convex in 1 / temperature; its minimum is positive if the mean margin is, and finite if a pair is wrong
    if not (margins < 0).any() or margins.mean() <= 0:
        return math.nan
    scale = np.abs(margins).mean()
    best = minimize_scalar(
        lambda power: _log_loss(margins / scale * math.exp(power)), bounds=(-20, 20), method="bounded"
    )
    return float(scale * math.exp(-best.x))
