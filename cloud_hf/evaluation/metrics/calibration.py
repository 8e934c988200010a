"""Calibration of rewards when they are interpreted as Bradley-Terry log-odds."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from scipy.special import expit

from ..stats import Estimate, interval_over_rows


FEW_PAIRS = 5  # with fewer, a bin's accuracy is mostly noise


@dataclass(frozen=True)
class Calibration:
    """Bradley-Terry probabilities compared with outcomes."""

    log_loss: float  # mean of -ln sigmoid(margin), in nats; equal rewards contribute ln 2 = 0.693
    # Mean absolute difference between confidence and accuracy over bins of confidence, weighted by the number of pairs in each bin. It has
    # no interval: noise inflates absolute values, so even a calibrated model has a positive ECE, and bootstrap intervals would contain the
    # true value too rarely
    ece: float
    # Mean confidence, accuracy (ties count half) and number of pairs for each non-empty bin
    bins: tuple[tuple[float, float, int], ...]
    # The divisor of the margins that minimises the log loss; NaN if no pair is wrong or the mean margin is not positive
    temperature: float
    log_loss_at_temperature: float


def calibrate(margins: ArrayLike, num_bins: int = 10) -> Calibration:
    """
    Compare probabilities with outcomes; a margin is the reward of a pair's right response minus that of its wrong response.

    As in the two-class case of Guo et al. 2017 (arXiv 1706.04599), the confidence in a pair is the probability of the response with the
    higher reward. It ranges from 0.5 to 1 and does not depend on the order of the two responses. Bins have equal width. Raises
    `ValueError` if there are no margins or no bins.
    """
    margins = np.array(margins, dtype=float)
    if not len(margins):
        raise ValueError("There are no pairs to calibrate on.")
    if num_bins < 1:
        raise ValueError(f"`num_bins` is {num_bins}; it must be at least 1.")
    # For each pair: the probability of the preferred response, whether that response is right (ties count half), and the bin
    confidence = expit(np.abs(margins))
    right = np.where(margins == 0, 0.5, margins > 0)
    # A confidence of 1 belongs to the last bin
    bins = np.minimum((2 * num_bins * (confidence - 0.5)).astype(int), num_bins - 1)
    filled = [
        (float(confidence[bins == place].mean()), float(right[bins == place].mean()), int((bins == place).sum()))
        for place in np.unique(bins)
    ]
    distance = math.fsum(abs(confidence - accuracy) * count for confidence, accuracy, count in filled) / len(margins)
    temperature = _best_temperature(margins)
    at_temperature = math.nan if math.isnan(temperature) else _mean_loss(margins / temperature)
    return Calibration(_mean_loss(margins), distance, tuple(filled), temperature, at_temperature)


# Takes the margins of P pairs, and the weight of each pair in each of B resamples, shape (B, P). Returns one value per resample
Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]


def log_loss(margins: np.ndarray, weights_BP: np.ndarray) -> np.ndarray:
    """Compute the log loss of weighted pairs; see [`Calibration`]."""
    return weights_BP @ np.logaddexp(0.0, -margins) / weights_BP.sum(1)


def estimate(statistic: Statistic, margins: ArrayLike, rows: ArrayLike) -> Estimate:
    """
    Compute a metric of margins, for example [`log_loss`]. If there are at least two rows, the estimate has a 95 % bootstrap interval over
    rows. `rows` contains the index of each pair's row, because the bootstrap resamples rows together with all their pairs.
    """
    margins, rows = np.array(margins, dtype=float), np.array(rows)
    interval = interval_over_rows(int(rows.max()) + 1, lambda counts_BR: statistic(margins, counts_BR[:, rows]))
    value = float(statistic(margins, np.ones((1, len(margins))))[0])
    return Estimate(value, len(margins), interval)


def _mean_loss(margins: np.ndarray) -> float:
    return float(np.logaddexp(0.0, -margins).mean())


def _best_temperature(margins: np.ndarray) -> float:
    # The loss is convex in 1 / temperature. The best 1 / temperature is positive if the mean margin is positive, and finite if any pair is
    # wrong
    if not (margins < 0).any() or margins.mean() <= 0:
        return math.nan
    scale = np.abs(margins).mean()
    # Minimise over log(1 / temperature), relative to the mean absolute margin, so that rewards of any scale fit the bounds
    best = minimize_scalar(
        lambda power: _mean_loss(margins / scale * math.exp(power)), bounds=(-20, 20), method="bounded"
    )
    return float(scale * math.exp(-best.x))
