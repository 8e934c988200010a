"""Bootstrap over rows of statistics that take weights: many at once, by matrix products."""

from collections.abc import Callable, Iterator

import numpy as np


RESAMPLES = 1000
_AT_ONCE = 100  # bounds memory: a set may have 100,000 rows


def row_counts(num_rows: int, seed: int = 0) -> Iterator[np.ndarray]:
    """How often each row is drawn in each resample: integer arrays of shape (resamples, num_rows), in parts."""
    rng = np.random.default_rng(seed)
    for _ in range(RESAMPLES // _AT_ONCE):
        drawn = rng.integers(num_rows, size=(_AT_ONCE, num_rows))
        yield np.stack([np.bincount(places, minlength=num_rows) for places in drawn])


def interval_over_rows(num_rows: int, statistic: Callable[[np.ndarray], np.ndarray]) -> np.ndarray | None:
    """
    95 % percentile interval of a statistic of weighted rows; the same in every run.

    Args:
        num_rows (`int`):
            Rows to draw from.
        statistic (`Callable`):
            Takes the rows' counts, shape (resamples, num_rows), and gives values of shape (resamples, …). NaN where a resample
            has none.

    Returns:
        `np.ndarray` or `None`: Lower and upper ends, shape (2, …); `None` for fewer than two rows.
    """
    if num_rows < 2:
        return None
    values = np.concatenate([statistic(counts) for counts in row_counts(num_rows)])
    return np.nanquantile(values, (0.025, 0.975), axis=0)
