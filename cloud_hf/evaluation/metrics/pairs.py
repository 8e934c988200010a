"""Accuracy on preference pairs."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from datasets import Dataset

from ...critique_format import CritiqueFormat
from ...data.rows import PAIR_COLUMNS, check_columns, check_policy, fit, prompt_of, response_of, row_name
from ...scoring import Score, Scorer
from ..stats import wilson


@dataclass(frozen=True)
class ScoredPair:
    """One pair with its scores; `index` is the row's place in the dataset."""

    index: int
    id: Any
    group: Any
    chosen: Score
    rejected: Score


@dataclass(frozen=True)
class PairEvaluation:
    """
    How often a model prefers the chosen response.

    Args:
        n (`int`):
            Pairs that were scored.
        accuracy (`float`):
            Share with a strictly higher reward for the chosen response; a tie counts as wrong.
        ci95 (`tuple[float, float]`):
            Wilson interval of the accuracy at 95 %.
        ties (`int`):
            Pairs with equal rewards.
        dropped (`int`):
            Over-long pairs that were left out.
        shortened (`int`):
            Pairs that were scored with a shortened prompt.
        critiques_cut (`float`):
            Share of critiques that were cut at the token budget.
        by_group (`dict[str, dict]`):
            `accuracy`, `ci95` and `n` for each value of the group column.
        pairs (`list[ScoredPair]`):
            The scores.
    """

    n: int
    accuracy: float
    ci95: tuple[float, float]
    ties: int
    dropped: int
    shortened: int
    critiques_cut: float
    by_group: dict[str, dict[str, Any]] = field(default_factory=dict)
    pairs: list[ScoredPair] = field(default_factory=list, repr=False)

    def summary(self) -> dict[str, Any]:
        """The figures without the single scores, for JSON."""
        figures = asdict(replace(self, pairs=[]))
        del figures["pairs"]
        return figures


def evaluate_pairs(
    scorer: Scorer,
    rows: Dataset,
    critique_format: CritiqueFormat,
    *,
    context_length: int | None = None,
    overlong_policy: str = "error",
    group_column: str | None = None,
    max_new_tokens: int = 1024,
    **score_options,
) -> PairEvaluation:
    """
    Score both responses of every pair.

    Args:
        scorer ([`Scorer`]):
            Any backend.
        rows (`Dataset`):
            Columns `prompt`, `chosen`, `rejected`, optional `tools`, `id`. Responses may be empty.
        critique_format ([`CritiqueFormat`]):
            The model's format, to find over-long rows.
        context_length (`int`, *optional*):
            Tokens the model may read, critique included.
        overlong_policy (`str`, *optional*, defaults to `"error"`):
            `"error"`, `"drop"` or `"truncate_prompt"`, for pairs that do not fit with a critique of `max_new_tokens`.
        group_column (`str`, *optional*):
            Column by whose values accuracy is also reported.
        max_new_tokens (`int`, *optional*, defaults to `1024`):
            Longest critique in tokens.
        **score_options:
            Passed to `scorer.score`.

    Returns:
        [`PairEvaluation`]

    Raises:
        `ValueError`: Before anything is scored, naming the first bad row and its field.
    """
    check_columns(rows.column_names, PAIR_COLUMNS, "Evaluation of pairs")
    if group_column is not None:
        check_columns(rows.column_names, (group_column,), "`group_column`")
    fitted = fit_rows(rows, pair_responses, critique_format, context_length, overlong_policy, max_new_tokens)
    scores = score_rows(scorer, fitted.rows, max_new_tokens=max_new_tokens, **score_options)
    return summarize_pairs(fitted, scores, group_column)


def summarize_pairs(
    fitted: "FittedRows", scores: Sequence[Sequence[Score]], group_column: str | None = None
) -> PairEvaluation:
    """
    The figures of scored pairs.

    Args:
        fitted ([`FittedRows`]):
            The pairs that fit.
        scores (`Sequence[Sequence[Score]]`):
            For each of them the scores of its chosen and its rejected response.
        group_column (`str`, *optional*):
            Column by whose values accuracy is also reported.

    Returns:
        [`PairEvaluation`]
    """
    pairs = [
        ScoredPair(row.index, row.row.get("id"), row.row.get(group_column or ""), *row_scores)
        for row, row_scores in zip(fitted.rows, scores, strict=True)
    ]
    groups = defaultdict(list)
    for pair in pairs:
        groups[str(pair.group)].append(pair)
    return PairEvaluation(
        **_accuracy(pairs),
        ties=sum(pair.chosen.reward == pair.rejected.reward for pair in pairs),
        dropped=fitted.dropped,
        shortened=fitted.shortened,
        critiques_cut=share_cut(scores),
        by_group={name: _accuracy(members) for name, members in sorted(groups.items())} if group_column else {},
        pairs=pairs,
    )


def share_cut(scores: Sequence[Sequence[Score]]) -> float:
    """Share of critiques that were cut at the token budget."""
    reasons = [reason for row_scores in scores for score in row_scores for reason in score.finish_reasons]
    return reasons.count("length") / len(reasons)


def _accuracy(pairs: list[ScoredPair]) -> dict[str, Any]:
    right = sum(pair.chosen.reward > pair.rejected.reward for pair in pairs)
    accuracy = right / len(pairs)
    return {"n": len(pairs), "accuracy": accuracy, "ci95": wilson(accuracy, len(pairs))}


# ------------------------------------------------------------------------------------------------ rows that fit


@dataclass(frozen=True)
class FittedRow:
    """A row whose sequences fit the model; `prompt` may be shortened. `lengths` are the tokens before each critique."""

    index: int
    row: dict[str, Any]
    prompt: Any
    responses: list[str]
    lengths: list[int]


@dataclass(frozen=True)
class FittedRows:
    """The rows that fit, and how many were dropped or shortened."""

    rows: list[FittedRow]
    dropped: int
    shortened: int


def pair_responses(row: dict[str, Any]) -> list[str]:
    """The chosen and the rejected response of a row."""
    return [response_of(row, side, allow_empty=True) for side in ("chosen", "rejected")]


def score_rows(scorer: Scorer, rows: Sequence[FittedRow], **options) -> list[list[Score]]:
    """For each row the scores of its responses; `options` are those of [`Scorer`]."""
    prompts = [row.prompt for row in rows for _ in row.responses]
    responses = [response for row in rows for response in row.responses]
    scores = iter(scorer.score(prompts, responses, **options))
    return [[next(scores) for _ in row.responses] for row in rows]


def fit_rows(
    rows: Iterable[dict[str, Any]],
    responses_of: Callable[[dict[str, Any]], list[str]],
    critique_format: CritiqueFormat,
    context_length: int | None,
    overlong_policy: str,
    max_new_tokens: int,
) -> FittedRows:
    """
    Check all rows, and deal with those that are too long for the model. A prompt is shortened once for all its responses.

    Raises:
        `ValueError`: Naming the first bad row, or that no row is left.
    """
    check_policy(overlong_policy)
    reserve = max_new_tokens + 1 if critique_format.critique else 0
    fitted, dropped, shortened = [], 0, 0
    for index, row in enumerate(rows):
        try:
            responses, prompt = responses_of(row), prompt_of(row)

            def encode(prompt, responses=responses) -> list[int]:
                return [len(critique_format.encode_prefix(prompt, response).input_ids) for response in responses]

            new_prompt, lengths = fit(
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
