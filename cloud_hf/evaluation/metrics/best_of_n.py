"""Best-of-N: how often the response with the highest reward is correct."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from datasets import Dataset

from ...critique_format import CritiqueFormat
from ...data.rows import check_columns
from ...scoring import Score, Scorer
from .pairs import FittedRows, fit_rows, score_rows


PROBLEM_COLUMNS = ("prompt", "responses", "correct")


@dataclass(frozen=True)
class BestOfN:
    """
    Best-of-N by reward.

    Args:
        problems (`int`):
            Problems scored.
        rates (`dict[int, float]`):
            For each n, the expected correctness of the best of n candidates drawn without replacement. Equal rewards
            share the choice. `rates[1]` is chance.
        standard_errors (`dict[int, float]`):
            Standard error of each rate over problems.
        oracle (`dict[int, float]`):
            The same for a choice that is never wrong when a correct candidate is among the n.
        dropped (`int`):
            Over-long problems that were left out.
    """

    problems: int
    rates: dict[int, float]
    standard_errors: dict[int, float]
    oracle: dict[int, float]
    dropped: int

    def summary(self) -> dict[str, Any]:
        """The figures for JSON; an unknown standard error is `None`."""
        errors = {n: None if math.isnan(error) else error for n, error in self.standard_errors.items()}
        return asdict(self) | {"standard_errors": errors}


def evaluate_best_of_n(
    scorer: Scorer,
    rows: Dataset,
    critique_format: CritiqueFormat,
    *,
    context_length: int | None = None,
    overlong_policy: str = "error",
    max_new_tokens: int = 1024,
    **score_options,
) -> BestOfN:
    """
    Score all candidates of every problem and choose by reward.

    Args:
        scorer ([`Scorer`]):
            Any backend.
        rows (`Dataset`):
            Columns `prompt`, `responses` (list of strings) and `correct` (list of booleans or scores, one per response).
        critique_format, context_length, overlong_policy, max_new_tokens, score_options:
            See [`evaluate_pairs`].

    Returns:
        [`BestOfN`]

    Raises:
        `ValueError`: Before anything is scored, naming the first bad row.
    """
    check_columns(rows.column_names, PROBLEM_COLUMNS, "Best-of-N")
    fitted = fit_rows(rows, candidates, critique_format, context_length, overlong_policy, max_new_tokens)
    scores = score_rows(scorer, fitted.rows, max_new_tokens=max_new_tokens, **score_options)
    return summarize_best_of_n(fitted, scores)


def summarize_best_of_n(fitted: FittedRows, scores: Sequence[Sequence[Score]]) -> BestOfN:
    """
    The figures of scored problems.

    Args:
        fitted ([`FittedRows`]):
            The problems that fit.
        scores (`Sequence[Sequence[Score]]`):
            For each of them the scores of its candidates.

    Returns:
        [`BestOfN`]
    """
    problems = [
        ([score.reward for score in row_scores], [float(value) for value in row.row["correct"]])
        for row, row_scores in zip(fitted.rows, scores, strict=True)
    ]
    sizes = range(1, min(len(rewards) for rewards, _ in problems) + 1)
    rates = {n: [expected_best_of(rewards, correct, n) for rewards, correct in problems] for n in sizes}
    oracle = {n: [expected_best_of(correct, correct, n) for _, correct in problems] for n in sizes}
    return BestOfN(
        problems=len(problems),
        rates={n: _mean(values) for n, values in rates.items()},
        standard_errors={n: _standard_error(values) for n, values in rates.items()},
        oracle={n: _mean(values) for n, values in oracle.items()},
        dropped=fitted.dropped,
    )


def expected_best_of(rewards: list[float], correct: list[float], n: int) -> float:
    """
    Expected correctness of the highest-reward candidate among n drawn without replacement, in closed form.

    Args:
        rewards (`list[float]`):
            One per candidate.
        correct (`list[float]`):
            What a choice of that candidate is worth.
        n (`int`):
            Candidates drawn.

    Returns:
        `float`
    """
    return math.fsum(p * value for p, value in zip(choice_probabilities(rewards, n), correct, strict=True))


def choice_probabilities(rewards: Sequence[float], n: int) -> list[float]:
    """
    How often each candidate is the one with the highest reward among n drawn without replacement.

    Args:
        rewards (`Sequence[float]`):
            One per candidate, finite. Equal ones share the choice.
        n (`int`):
            Candidates drawn, from 1 to all of them.

    Returns:
        `list[float]`: One probability per candidate; they add up to 1.

    Examples:

    ```python
    >>> choice_probabilities([2.0, 5.0, 1.0], 2)
    [0.3333333333333333, 0.6666666666666666, 0.0]
    ```
    """
    draws, not_above = math.comb(len(rewards), n), len(rewards)
    probabilities = {}
    for reward, times in sorted(Counter(rewards).items(), reverse=True):
        # The n come from the candidates that are not above, and not all of them from those below
        found = math.comb(not_above, n) - math.comb(not_above - times, n)
        probabilities[reward] = found / draws / times
        not_above -= times
    return [probabilities[reward] for reward in rewards]


def candidates(row: dict[str, Any]) -> list[str]:
    """The responses of a problem, checked together with what each is worth."""
    responses, correct = row["responses"], row["correct"]
    if not isinstance(responses, list) or not responses or not all(isinstance(text, str) for text in responses):
        raise ValueError(f"`responses` is {responses!r:.60}; give a non-empty list of strings.")
    if not isinstance(correct, list) or len(correct) != len(responses):
        raise ValueError(f"`correct` is {correct!r:.60}; give one value for each of the {len(responses)} responses.")
    if not all(isinstance(value, int | float) for value in correct):
        raise ValueError(f"`correct` is {correct!r:.60}; give booleans or numbers.")
    if bad := [value for value in correct if not math.isfinite(value)]:
        raise ValueError(f"a candidate is worth {bad[0]}; give finite numbers.")
    return responses


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def _standard_error(values: list[float]) -> float:
    if len(values) < 2:
        return math.nan
    mean = _mean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
