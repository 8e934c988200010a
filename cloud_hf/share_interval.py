"""Confidence interval of a proportion. Imports no other module of the package, because cards and all kinds of reports need it."""

import math
from statistics import NormalDist


Interval = tuple[float, float]


def wilson(share: float, n: int) -> Interval:
    """Return the 95 % Wilson interval for a proportion (`share`) of `n` rows; `share * n` need not be an integer."""
    # Unlike the normal approximation, this interval has a nonzero width if all rows are correct or all are wrong
    z = NormalDist().inv_cdf(0.975)
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, middle - half), min(1.0, middle + half)
