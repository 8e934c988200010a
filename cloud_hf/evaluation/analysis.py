"""Analyse a scored model: uncertainty, self-consistency, accuracy against tokens read, and rows for probes."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from statistics import fmean
from typing import Any

import numpy as np

from ..critique_format import CritiqueFormat
from ..scoring import Score
from .compute import token_counts
from .context_fitting import FittedRows
from .metrics.accuracy_by_tokens import Anytime, Reading, accuracy_against_tokens
from .metrics.calibration import Calibration, Statistic, calibrate, estimate, log_loss
from .metrics.selective_accuracy import SelectiveAccuracy, selective_accuracy
from .metrics.self_consistency import SelfConsistency, self_consistency
from .probes import ProbeResult, ProbeRow, read_paraphrases
from .rows import BenchmarkRow
from .set_results import Evaluation
from .stats import Estimate, json_safe


logger = logging.getLogger(__name__)

MARGIN, SPREAD = "margin", "spread"

# To add a metric of reward margins, write a module with a `Statistic`, and add an entry here: the metric's key in report.json, its title
# and the `Statistic`. The calibration table and report.json then show the metric with its interval.
METRICS: dict[str, tuple[str, Statistic]] = {"log_loss": ("log loss", log_loss)}


@dataclass(frozen=True)
class Uncertainty:
    """
    Uncertainty of a model on a set. Selective accuracy rejects the pairs with the smallest margins first. If responses have several
    critiques, a second curve rejects the pairs with the largest spread first: the square root of the sum of both rewards' variances over
    critiques.
    """

    critiques: str  # label of the rewards, such as "mean of 16, T = 0.5"
    metrics: dict[str, Estimate]  # `METRICS` and the ECE, over all right/wrong pairs
    calibration: Calibration
    selective_accuracy: SelectiveAccuracy

    def summary(self) -> dict[str, Any]:
        """Return the metrics in JSON form; NaN becomes `None`."""
        return {
            "critiques": self.critiques,
            "calibration": json_safe(self.calibration) | json_safe(self.metrics),
            "rejection": self.selective_accuracy.summary(),
        }


def uncertainty(rows: Sequence[BenchmarkRow], row_scores: Sequence[Sequence[Score]], critiques: str) -> Uncertainty:
    """Measure the uncertainty of scored rows over all right/wrong pairs. `critiques` is the label that describes the rewards."""
    margins, spreads, owners = [], [], []
    for place, (row, scores) in enumerate(zip(rows, row_scores, strict=True)):
        for right, wrong in row.pairs():
            margins.append(scores[right].reward - scores[wrong].reward)
            # Standard deviation of the margin over critiques, which are sampled independently for both responses
            spreads.append(math.hypot(scores[right].reward_std, scores[wrong].reward_std))
            owners.append(place)
    certainty: dict[str, np.ndarray] = {MARGIN: np.abs(margins)}
    if any(len(score.rewards) > 1 for scores in row_scores for score in scores):
        certainty[SPREAD] = -np.array(spreads)
    calibration = calibrate(margins)
    metrics = {name: estimate(statistic, margins, owners) for name, (_, statistic) in METRICS.items()}
    metrics["ece"] = Estimate(calibration.ece, len(margins))
    selective = selective_accuracy(np.array(margins) > 0, certainty, owners)
    return Uncertainty(critiques, metrics, calibration, selective)


# ---------------------------------------------------------------------------------------------- analyses of a model


@dataclass(frozen=True)
class Robustness:
    """Analysis of a model; dictionaries are keyed by set."""

    # One entry for the ordinary rewards, then one for each mean over sampled critiques; no entries for a set whose subsets are all unknown
    uncertainty: dict[str, list[Uncertainty]]
    # One entry per temperature; empty for a classic model
    self_consistency: dict[str, list[SelfConsistency]] = field(default_factory=dict)
    probes: list[ProbeResult] = field(default_factory=list)
    # Empty unless `read_every` is set and the model writes critiques
    anytime: dict[str, Anytime] = field(default_factory=dict)

    def summary(self, model: str) -> dict[str, list[dict[str, Any]]]:
        """Return the results in JSON form."""
        kinds = {"uncertainty": self.uncertainty, "self_consistency": self.self_consistency}
        if self.anytime:
            kinds["anytime"] = {name: [part] for name, part in self.anytime.items()}
        found = {
            kind: [{"model": model, "dataset": name, **part.summary()} for name in parts for part in parts[name]]
            for kind, parts in kinds.items()
        }
        return {**found, "probes": [{"model": model, **part.summary()} for part in self.probes]}


def mean_label(num_critiques: int, temperature: float) -> str:
    """Return the label of the mean reward over sampled critiques, for tables."""
    return f"mean of {num_critiques}, T = {temperature:g}"


def assess_uncertainty(
    evaluations: Sequence[Evaluation], sampled: dict[float, list[Evaluation]]
) -> dict[str, list[Uncertainty]]:
    """Compute each set's uncertainty for the ordinary rewards and for the means over sampled critiques. Unknown subsets are excluded."""
    labelled = [("as scored", evaluation) for evaluation in evaluations]
    labelled += [
        (mean_label(len(evaluation.row_scores[0][0].rewards), temperature), evaluation)
        for temperature, means in sampled.items()
        for evaluation in means
    ]
    found: dict[str, list[Uncertainty]] = {evaluation.name: [] for evaluation in evaluations}
    for label, evaluation in labelled:
        if known := list(evaluation.known_rows()):
            rows, row_scores = [row for row, _ in known], [scores for _, scores in known]
            found[evaluation.name].append(uncertainty(rows, row_scores, label))
    return found


def assess_self_consistency(
    sampled: dict[float, list[Evaluation]],
    fitted: Sequence[FittedRows],
    critique_format: CritiqueFormat,
    length_column: str | None = None,
    seed: int = 0,
) -> dict[str, list[SelfConsistency]]:
    """
    Compute self-consistency for each set and temperature. Unknown subsets are excluded.

    `sampled` contains the evaluations by temperature, and `fitted` the loaded rows of each evaluation. A row's length is its value in
    `length_column` if the set has this column, otherwise the mean number of tokens in its critiques. Raises `ValueError` if a value in
    `length_column` is not a finite number.
    """
    found: dict[str, list[SelfConsistency]] = {}
    for temperature, evaluations in sampled.items():
        for evaluation, part in zip(evaluations, fitted, strict=True):
            known = list(evaluation.known_rows(part.rows))
            if not known:
                continue
            if length_column is not None and length_column in part.rows[0].row:
                length_of = f"the column {length_column}"
                lengths = [read_length(read.row, length_column) for _, _, read in known]
            else:
                length_of = "mean tokens of a row's critiques"
                counts = token_counts([scores for _, scores, _ in known], critique_format)
                lengths = [fmean(chain.from_iterable(of_row)) for of_row in counts]
            likelihoods = [[score.log_likelihoods for score in scores] for _, scores, _ in known]
            has_likelihoods = all(found for row in likelihoods for found in row)
            curves = self_consistency(
                [[score.rewards for score in scores] for _, scores, _ in known],
                [row.num_chosen for row, _, _ in known],
                lengths,
                temperature=temperature,
                length_of=length_of,
                seed=seed,
                log_likelihoods=likelihoods if has_likelihoods else None,
            )
            found.setdefault(evaluation.name, []).append(curves)
    return found


def assess_anytime(
    evaluations: Sequence[Evaluation], critique_format: CritiqueFormat, read_every: int, combine: str = "mean"
) -> dict[str, Anytime]:
    """
    Compute each set's accuracy against tokens read, for scores with partial rewards. Unknown subsets are excluded. `combine` is the way to
    combine the rewards of several critiques, one of [`~combine_critiques.COMBINATIONS`].
    """
    found = {}
    for evaluation in evaluations:
        known = list(evaluation.known_rows())
        if not known:
            continue
        counts = token_counts([scores for _, scores in known], critique_format)
        rows = [
            [list(map(Reading, score.partial_rewards, tokens)) for score, tokens in zip(scores, of_row, strict=True)]
            for (_, scores), of_row in zip(known, counts, strict=True)
        ]
        num_chosen = [row.num_chosen for row, _ in known]
        likelihoods = None
        if combine == "likelihood":
            likelihoods = [[score.log_likelihoods for score in scores] for _, scores in known]
        found[evaluation.name] = accuracy_against_tokens(rows, num_chosen, read_every, combine, likelihoods)
    return found


def read_length(row: dict[str, Any], column: str) -> float:
    """Return a row's reasoning length from a column. Raises `ValueError` if the value is not a finite number."""
    value = row[column]
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"`{column}` is {value!r:.60}; `length_column` needs numbers.")
    return value


def probe_rows(
    evaluations: Sequence[Evaluation], fitted: Sequence[FittedRows], paraphrase_column: str | None = None
) -> list[ProbeRow]:
    """
    Return the rows of all known subsets with their scores, the prompts that the model saw, and the user's paraphrases. Rows whose responses
    are messages are left out with a warning, because probes cannot alter messages.
    """
    rows = [
        ProbeRow(
            evaluation.name,
            replace(row, prompt=read.prompt),
            scores,
            read_paraphrases(read.row.get(paraphrase_column)) if paraphrase_column else (),
        )
        for evaluation, part in zip(evaluations, fitted, strict=True)
        for row, scores, read in evaluation.known_rows(part.rows)
    ]
    kept = [one for one in rows if all(isinstance(response, str) for response in one.row.responses)]
    if len(kept) < len(rows):
        logger.warning(
            "Probes leave out %d of %d rows, because their responses are messages.", len(rows) - len(kept), len(rows)
        )
    return kept
