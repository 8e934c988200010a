"""Accuracy against compute: critique tokens and seconds of each model, ensemble, judge and cascade."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..critique_format import CritiqueFormat
from ..scores import Score
from .metrics.anytime import Anytime
from .metrics.self_consistency import SelfConsistency
from .outcomes import Evaluation
from .stats import Estimate


@dataclass(frozen=True)
class Cost:
    """
    Cost of scoring a set.

    Args:
        tokens (`Sequence[Sequence[Sequence[float]]]`):
            Tokens of the critiques by row, response and critique, without end tokens.
        seconds (`float`):
            Seconds for the whole set; NaN where unknown.
    """

    tokens: Sequence[Sequence[Sequence[float]]]
    seconds: float = math.nan

    @property
    def per_row(self) -> float:
        """Mean number of critique tokens per row."""
        return sum(sum(counts) for row in self.tokens for counts in row) / len(self.tokens)

    @property
    def seconds_per_row(self) -> float:
        """Mean seconds per row."""
        return self.seconds / len(self.tokens)

    @property
    def work(self) -> float:
        """Number of work units among which the seconds are divided: one for each response, and one for each token."""
        return sum(1 + sum(counts) for row in self.tokens for counts in row)

    def seconds_of(self, tokens: float) -> float:
        """Return a response's share of the seconds."""
        return self.seconds * (1 + tokens) / self.work


def token_counts(row_scores: Sequence[Sequence[Score]], critique_format: CritiqueFormat) -> list[list[list[int]]]:
    """Count the tokens of critiques by row, response and critique. Journals keep them as text, without their ids."""
    texts = [text for scores in row_scores for score in scores for text in score.critiques]
    if not critique_format.critique or not texts:
        counts = iter([0] * len(texts))
    else:
        counts = map(len, critique_format.tokenizer(texts, add_special_tokens=False)["input_ids"])
    return [[[next(counts) for _ in score.critiques] for score in scores] for scores in row_scores]


def costs_of(tokens: dict[Any, list[list[list[int]]]], seconds: float) -> dict[Any, Cost]:
    """Divide the seconds of scoring several sets among them, in proportion to their work."""
    seconds = seconds or math.nan  # journals of earlier versions have none
    total = sum(Cost(counts).work for counts in tokens.values()) or 1
    return {key: Cost(counts, seconds * Cost(counts).work / total) for key, counts in tokens.items()}


@dataclass(frozen=True)
class ComputePoint:
    """Accuracy on a set, and its cost; `setting` says how the model was used, `is_chosen` marks a cascade's threshold."""

    dataset: str
    model: str
    setting: str
    accuracy: Estimate
    tokens: float  # per row
    seconds: float = math.nan  # per row
    is_chosen: bool = True

    def summary(self) -> dict[str, Any]:
        """Return the point in JSON form, without seconds, which differ from run to run."""
        return {
            "dataset": self.dataset,
            "model": self.model,
            "setting": self.setting,
            "accuracy": self.accuracy.summary(),
            "tokens_per_row": self.tokens,
            "is_chosen": self.is_chosen,
        }


def points_of_critiques(
    model: str, evaluation: Evaluation, curves: Sequence[tuple[SelfConsistency, Cost]]
) -> Iterator[ComputePoint]:
    """Yield the points of self-consistency: 1, 2, 4, … critiques of each temperature, and all."""
    for found, cost in curves:
        count = found.num_critiques
        for k in sorted({2**power for power in range(count.bit_length())} | {count}):
            curve = found.everything
            accuracy = Estimate(curve.accuracy[k - 1], curve.rows, curve.intervals[k - 1])
            share_of = k / count
            setting = f"T = {found.temperature:g}, k = {k}"
            yield ComputePoint(
                evaluation.name, model, setting, accuracy, share_of * cost.per_row, share_of * cost.seconds_per_row
            )


def points_of_early_reads(model: str, evaluation: Evaluation, found: Anytime, cost: Cost) -> Iterator[ComputePoint]:
    """Yield a point for each maximum number of critique tokens read."""
    responses = sum(len(row.responses) for row in evaluation.rows) / len(evaluation.rows)
    for point in found.points:
        if point.limit is not None:
            tokens = point.tokens.value * responses
            seconds = cost.seconds_per_row * tokens / cost.per_row if cost.per_row else math.nan
            setting = f"read to {point.limit} tokens"
            yield ComputePoint(evaluation.name, model, setting, point.accuracy, tokens, seconds)
