"""Reliability of a model's certainty on a set: calibration and selective accuracy."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...scoring import Score
from ..rows import BenchmarkRow
from ..stats import Estimate, json_safe
from .calibration import Calibration, Statistic, calibrate, ece, estimate, log_loss
from .selective_accuracy import SelectiveAccuracy, selective_accuracy


MARGIN, SPREAD = "margin", "spread"

# To add a metric of reward margins, write a module with a `Statistic` and list it here by its key in report.json, with its
# title: the calibration table and report.json show it with its interval.
METRICS: dict[str, tuple[str, Statistic]] = {
    "log_loss": ("log loss", log_loss),
    "ece": ("ECE", ece),
}


@dataclass(frozen=True)
class Uncertainty:
    """
    Certainty of a model on a set.

    Pairs are rejected by the size of their margin; if responses have several critiques, also by the spread of their rewards: a
    pair is more certain if the root of the sum of both rewards' variances over critiques is smaller.
    """

    critiques: str  # label of the rewards, such as "mean of 16, T = 0.5"
    metrics: dict[str, Estimate]  # `METRICS` over all pairs of a right and a wrong response
    calibration: Calibration
    selective_accuracy: SelectiveAccuracy

    def summary(self) -> dict[str, Any]:
        """Return the metrics for JSON; an unknown temperature is `None`."""
        return {
            "critiques": self.critiques,
            "calibration": json_safe(self.calibration) | json_safe(self.metrics),
            "rejection": self.selective_accuracy.summary(),
        }


def uncertainty(rows: Sequence[BenchmarkRow], row_scores: Sequence[Sequence[Score]], critiques: str) -> Uncertainty:
    """Measure the certainty of scored rows, over all pairs of a right and a wrong response. `critiques` labels the rewards."""
    margins, spreads, owners = [], [], []
    for place, (row, scores) in enumerate(zip(rows, row_scores, strict=True)):
        for right in scores[: row.num_chosen]:
            for wrong in scores[row.num_chosen :]:
                margins.append(right.reward - wrong.reward)
                # Standard deviation of the margin over critiques, which are sampled independently for both responses
                spreads.append(math.hypot(right.reward_std, wrong.reward_std))
                owners.append(place)
    certainty: dict[str, np.ndarray] = {MARGIN: np.abs(margins)}
    if any(len(score.rewards) > 1 for scores in row_scores for score in scores):
        certainty[SPREAD] = -np.array(spreads)
    metrics = {name: estimate(statistic, margins, owners) for name, (_, statistic) in METRICS.items()}
    selective = selective_accuracy(np.array(margins) > 0, certainty, owners)
    return Uncertainty(critiques, metrics, calibrate(margins), selective)
