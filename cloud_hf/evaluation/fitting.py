"""Fit rows to a model's context, and score them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..critique_format import CritiqueFormat
from ..data.fit_to_context import check_policy, fit_to_context
from ..data.rows import prompt_of, row_name
from ..scoring import Score, Scorer


@dataclass(frozen=True)
class FittedRow:
    """A row whose sequences fit the model; `prompt` may be shortened. `lengths` counts the tokens before each critique."""

    index: int
    row: dict[str, Any]
    prompt: Any
    responses: list[str]
    lengths: list[int]


@dataclass(frozen=True)
class FittedRows:
    """The rows that fit, and the number of rows that were dropped or shortened."""

    rows: list[FittedRow]
    dropped: int
    shortened: int


def fit_rows(
    rows: Iterable[Any],
    responses_of: Callable[[dict[str, Any]], list[str]],
    critique_format: CritiqueFormat,
    context_length: int | None,
    overlong_policy: str,
    max_new_tokens: int,
) -> FittedRows:
    """
    Check all rows, and shorten or drop those that are too long for the model. The responses of a row share one prompt.

    `responses_of` returns the checked responses of a row. For the other arguments, see [`evaluate_pairs`]. Raises `ValueError`,
    naming the first bad row, or if no row fits.
    """
    check_policy(overlong_policy)
    # Room for the critique and the end of turn, where the reward is read
    reserve = max_new_tokens + 1 if critique_format.critique else 0
    fitted, dropped, shortened = [], 0, 0
    for index, row in enumerate(rows):
        try:
            responses, prompt = responses_of(row), prompt_of(row)

            def encode(prompt, responses=responses) -> list[int]:
                return [len(critique_format.encode_prefix(prompt, response).input_ids) for response in responses]

            new_prompt, lengths = fit_to_context(
                prompt,
                encode,
                lambda lengths: max(lengths) + reserve,
                context_length,
                overlong_policy,
                critique_format,
            )
        except ValueError as error:
            raise ValueError(f"Row{row_name(index, row).removeprefix('row')}: {error}") from error
        if lengths is None:
            dropped += 1
        else:
            fitted.append(FittedRow(index, row, new_prompt, responses, lengths))
            shortened += new_prompt is not prompt
    if not fitted:
        critique = f", of which the critique has {reserve}" if reserve else ""
        raise ValueError(f"None of the {dropped} rows fits the model's context of {context_length} tokens{critique}.")
    return FittedRows(fitted, dropped, shortened)


def score_rows(scorer: Scorer, rows: Sequence[FittedRow], **options) -> list[list[Score]]:
    """Return the scores of each row's responses; `options` are those of [`Scorer`]."""
    prompts = [row.prompt for row in rows for _ in row.responses]
    responses = [response for row in rows for response in row.responses]
    scores = iter(scorer.score(prompts, responses, **options))
    return [[next(scores) for _ in row.responses] for row in rows]


def score_columns(score: Score) -> dict[str, Any]:
    """Return a score's columns for output files."""
    return {name: getattr(score, name) for name in ("reward", "rewards", "critiques", "finish_reasons")}


def share_cut(scores: Sequence[Sequence[Score]]) -> float:
    """Return the share of critiques that were cut at the token budget."""
    reasons = [reason for row_scores in scores for score in row_scores for reason in score.finish_reasons]
    return reasons.count("length") / len(reasons)
