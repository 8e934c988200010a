"""Selective accuracy (risk-coverage): accuracy on the remaining pairs after the least certain ones are rejected."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..stats import Estimate, interval_over_rows


FRACTIONS = tuple(step / 20 for step in range(20))


@dataclass(frozen=True)
class SelectiveCurve:
    """Accuracy as a function of the rejected fraction (1 - coverage)."""

    # At each of `FRACTIONS`, averaged over random orders of equally certain pairs
    accuracy: tuple[float, ...]
    # Area under the curve (1 - AURC), from rejecting no pair to rejecting almost all. It has no interval if all pairs are right or if all
    # are wrong
    area: Estimate


@dataclass(frozen=True)
class SelectiveAccuracy:
    """Selective accuracy for several ways to measure certainty."""

    curves: dict[str, SelectiveCurve]
    random: float  # area if pairs are rejected at random: the accuracy over all pairs
    oracle: SelectiveCurve  # the curve if all wrong pairs are rejected first

    def normalised_aurc(self, name: str) -> float | None:
        """Return the area on a scale from random rejection (0) to the oracle (1), or `None` if all pairs are right or all are wrong."""
        reach = self.oracle.area.value - self.random
        return None if reach < 1e-12 else (self.curves[name].area.value - self.random) / reach

    gain = normalised_aurc  # its name in version 0.1

    def summary(self) -> dict[str, Any]:
        """Return the curves in JSON form."""
        curves = {name: {**asdict(curve), "gain": self.normalised_aurc(name)} for name, curve in self.curves.items()}
        return {"fractions": FRACTIONS, "random": self.random, "oracle": asdict(self.oracle), "curves": curves}


def selective_accuracy(right: ArrayLike, certainty: Mapping[str, ArrayLike], rows: ArrayLike) -> SelectiveAccuracy:
    """
    Reject pairs by each measure of certainty, the least certain first.

    `right` contains 0 or 1 for each pair. `rows` contains the index of each pair's row; it is needed because the bootstrap intervals
    resample rows together with all their pairs.

    Examples:

    ```python
    >>> found = selective_accuracy([1, 0, 1, 1], {"margin": [2.0, 0.1, 1.0, 0.5]}, rows=range(4))
    >>> found.curves["margin"].accuracy[5], found.normalised_aurc("margin")  # a quarter rejected
    (1.0, 1.0)
    ```
    """
    right_P, rows_P = np.asarray(right, dtype=float), np.asarray(rows)
    curves = {name: _curve(right_P, np.asarray(values, dtype=float), rows_P) for name, values in certainty.items()}
    return SelectiveAccuracy(curves, float(right_P.mean()), _curve(right_P, right_P, rows_P))


def _curve(right: np.ndarray, certainty: np.ndarray, rows: np.ndarray) -> SelectiveCurve:
    order = np.argsort(-certainty, kind="stable")
    right, certainty, rows = right[order], certainty[order], rows[order]
    # Pairs of equal certainty form one step
    starts = np.flatnonzero(np.r_[True, certainty[1:] != certainty[:-1]])
    num_rows = int(rows.max()) + 1

    def area(counts_BR: np.ndarray) -> np.ndarray:
        # B resamples of R rows; each pair counts as often as its row was sampled
        weights = counts_BR[:, rows].astype(float)
        kept = np.add.reduceat(weights, starts, axis=1)
        kept_right = np.add.reduceat(weights * right, starts, axis=1)
        return _area(kept, kept_right)

    value = float(area(np.ones((1, num_rows)))[0])
    # If all pairs are right (or wrong), all resamples are the same
    interval = interval_over_rows(num_rows, area) if np.ptp(right) else None
    # Within a step, the number of right pairs kept, averaged over random orders of its pairs, grows linearly with the number of pairs kept
    sizes, rights = np.r_[0, np.add.reduceat(np.ones_like(right), starts)], np.r_[0, np.add.reduceat(right, starts)]
    kept = len(right) * (1 - np.array(FRACTIONS))
    accuracy = np.interp(kept, sizes.cumsum(), rights.cumsum()) / kept
    return SelectiveCurve(tuple(accuracy.tolist()), Estimate(value, len(right), interval))


def _area(kept: np.ndarray, kept_right: np.ndarray) -> np.ndarray:
    """
    Integrate accuracy over the kept fraction, for each resample. Rows are resamples and columns are steps, the most certain first.

    Suppose that `a` of the first `c` pairs are right, and that the next step adds `d` pairs, `b` of which are right. Within the step,
    accuracy is `(a + t * b) / (c + t * d)` for `t` from 0 to 1; the integral of this, times `d`, is
    `b + (a * d - b * c) / d * ln((c + d) / c)`.
    """
    before = kept.cumsum(1) - kept
    right_before = kept_right.cumsum(1) - kept_right
    with np.errstate(divide="ignore", invalid="ignore"):
        bend = (right_before - kept_right * before / kept) * np.log1p(kept / before)
    # `bend` is undefined, and counts as 0, in the first step and in steps that have no pairs in a resample
    inner = np.where((before > 0) & (kept > 0), bend, 0.0)
    return (kept_right + inner).sum(1) / kept.sum(1)


# Their names in version 0.1
RejectionCurve, Rejection, rejection = SelectiveCurve, SelectiveAccuracy, selective_accuracy
