"""Cost of scoring: critique tokens and seconds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..critique_format import CritiqueFormat
from ..scores import Score


@dataclass(frozen=True)
class Cost:
    """Cost of scoring a set."""

    tokens: Sequence[Sequence[Sequence[float]]]  # critique tokens by row, response and critique, without end tokens
    seconds: float = math.nan  # for the whole set; NaN if unknown

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
        """
        Units of work among which the seconds are divided: one for each critique token, and one for each response, because reading a
        response also takes time.
        """
        return sum(1 + sum(counts) for row in self.tokens for counts in row)

    def seconds_of(self, tokens: float) -> float:
        """Return a response's share of the seconds."""
        return self.seconds * (1 + tokens) / self.work


def token_counts(
    row_scores: Sequence[Sequence[Score]], critique_format: CritiqueFormat, max_new_tokens: int | None = None
) -> list[list[list[int]]]:
    """
    Return the number of critique tokens by row, response and critique.

    Where it is not known (see [`is_estimated`]), it is estimated: the critiques are tokenized again, which may give more tokens than were
    written, and the counts are limited to `max_new_tokens`.
    """
    unknown = [score for scores in row_scores for score in scores if not score.critique_tokens]
    texts = [text for score in unknown for text in score.critiques]
    counts = iter([0] * len(texts))
    if critique_format.critique and texts:
        found = map(len, critique_format.tokenizer(texts, add_special_tokens=False)["input_ids"])
        counts = found if max_new_tokens is None else (min(count, max_new_tokens) for count in found)
    return [
        [list(score.critique_tokens) or [next(counts) for _ in score.critiques] for score in scores]
        for scores in row_scores
    ]


def is_estimated(row_scores: Sequence[Sequence[Score]]) -> bool:
    """Return whether the number of tokens is unknown for some critiques: journals from earlier versions contain only their texts."""
    return any(not score.critique_tokens and any(score.critiques) for scores in row_scores for score in scores)


def costs_of(
    scores: Mapping[Any, Sequence[Sequence[Score]]],
    critique_format: CritiqueFormat,
    max_new_tokens: int,
    seconds: float,
) -> dict[Any, Cost]:
    """Return the cost of scoring several sets, whose scores are given by set; the seconds are divided in proportion to the sets' work."""
    tokens = {key: token_counts(found, critique_format, max_new_tokens) for key, found in scores.items()}
    seconds = seconds or math.nan  # journals from earlier versions do not record seconds
    total = sum(Cost(counts).work for counts in tokens.values()) or 1
    return {key: Cost(counts, seconds * Cost(counts).work / total) for key, counts in tokens.items()}
