"""Any set of preference pairs: accuracy, margins, and calibration of the rewards."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...data.preference_rows import read_preferences
from ..metrics.calibration import Calibration, calibrate
from ..rows import BenchmarkRow, check_pairs, finite_rewards, make_pair, pair_rewards, read_sources
from ..stats import BenchmarkScores, Estimate, group, share


def load(names: Sequence[str], split: str = "test", config: str | None = None) -> list[BenchmarkRow]:
    """
    Load preferences from files or Hub ids, in any format that [`~data.preference_rows.read_preferences`] accepts. The columns `id`,
    `subset` and `tools` are optional. Without a `subset` column, the subset is named after the source.
    """
    return check_pairs(
        [
            make_pair("A preference set", source, index, row, row.get("subset") or Path(source).name.split(".")[0])
            for source, index, row in read_sources(names, split, config, read_preferences)
        ]
    )


@dataclass(frozen=True)
class PreferenceScores:
    """Metrics of rewards on preference pairs."""

    accuracy: Estimate  # pairs whose chosen response has a strictly higher reward
    accuracy_ties_half: float
    ties: int  # pairs with equal rewards
    margin: float  # mean of the chosen reward minus the rejected one
    margin_median: float
    margin_std: float  # population standard deviation
    calibration: Calibration
    subsets: dict[str, Estimate]

    def details(self) -> dict[str, Any]:
        """Return the other metrics (without accuracy, ties and subsets) in JSON form; unknown values are `None`."""
        names = ("accuracy_ties_half", "margin", "margin_median", "margin_std")
        calibration = asdict(self.calibration)
        unknown = {name: None for name, value in calibration.items() if value != value}  # NaN
        return {name: getattr(self, name) for name in names} | calibration | unknown


def score_preferences(
    chosen: Sequence[float], rejected: Sequence[float], subsets: Sequence[str] | None = None, num_bins: int = 10
) -> PreferenceScores:
    """
    Score preference pairs from columns of rewards and, optionally, subsets. Raises `ValueError` if there are no pairs, if the
    columns differ in length, or if a reward is not a finite number.
    """
    subsets = [""] * len(chosen) if subsets is None else subsets
    if not len(chosen) == len(rejected) == len(subsets):
        raise ValueError(
            f"{len(chosen)} chosen and {len(rejected)} rejected rewards and {len(subsets)} subsets: pass the same number of each."
        )
    if not len(chosen):
        raise ValueError("There are no pairs to score.")
    better, worse = finite_rewards(chosen, rejected)
    margins, right = better - worse, better > worse
    ties = int((better == worse).sum())
    outcomes = right.astype(float).tolist()
    return PreferenceScores(
        accuracy=share(outcomes),
        accuracy_ties_half=float((right.sum() + ties / 2) / len(right)),
        ties=ties,
        margin=float(margins.mean()),
        margin_median=float(np.median(margins)),
        margin_std=float(margins.std()),
        calibration=calibrate(margins, num_bins),
        subsets={name: share(values) for name, values in group(map(str, subsets), outcomes).items()},
    )


def score(rows: Sequence[BenchmarkRow], rewards: Sequence[Sequence[float]]) -> BenchmarkScores:
    """Score any preference set; see [`score_preferences`]. The estimate is `"accuracy"`; `details` contains margins and calibration."""
    chosen, rejected = zip(*pair_rewards(rows, rewards), strict=True)
    scores = score_preferences(chosen, rejected, [row.subset for row in rows])
    return BenchmarkScores(
        benchmark="Preference pairs",
        headline="accuracy",
        figures={"accuracy": scores.accuracy},
        subsets=scores.subsets,
        ties=scores.ties,
        undecidable=sum(row.is_undecidable for row in rows),
        details=scores.details(),
    )
