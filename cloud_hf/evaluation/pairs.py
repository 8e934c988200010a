"""Accuracy on preference pairs."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from datasets import Dataset
from scipy.stats import binomtest

from ..critique_format import CritiqueFormat
from ..data.overlong import check_policy, fit
from ..data.schemas import PAIR_COLUMNS, check_columns, prompt_of, response_of, row_name
from ..scoring import Score, Scorer


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
    prompts = [prompt for row in fitted.rows for prompt in (row.prompt, row.prompt)]
    responses = [response for row in fitted.rows for response in row.responses]
    scores = scorer.score(prompts, responses, max_new_tokens=max_new_tokens, **score_options)
    pairs = [
        ScoredPair(
            row.index, row.row.get("id"), row.row.get(group_column or ""), scores[2 * place], scores[2 * place + 1]
        )
        for place, row in enumerate(fitted.rows)
    ]
    groups = defaultdict(list)
    for pair in pairs:
        groups[str(pair.group)].append(pair)
    reasons = [reason for score in scores for reason in score.finish_reasons]
    return PairEvaluation(
        **_accuracy(pairs),
        ties=sum(pair.chosen.reward == pair.rejected.reward for pair in pairs),
        dropped=fitted.dropped,
        shortened=fitted.shortened,
        critiques_cut=reasons.count("length") / len(reasons),
        by_group={name: _accuracy(members) for name, members in sorted(groups.items())} if group_column else {},
        pairs=pairs,
    )


def _accuracy(pairs: list[ScoredPair]) -> dict[str, Any]:
    right = sum(pair.chosen.reward > pair.rejected.reward for pair in pairs)
    interval = binomtest(right, len(pairs)).proportion_ci(0.95, method="wilson")
    return {"n": len(pairs), "accuracy": right / len(pairs), "ci95": (interval.low, interval.high)}


# ------------------------------------------------------------------------------------------------ rows that fit


@dataclass(frozen=True)
class FittedRow:
    """A row whose sequences fit the model; `prompt` may be shortened."""

    index: int
    row: dict[str, Any]
    prompt: Any
    responses: list[str]


@dataclass(frozen=True)
class FittedRows:
    """The rows that fit, and how many were dropped or shortened."""

    rows: list[FittedRow]
    dropped: int
    shortened: int


def pair_responses(row: dict[str, Any]) -> list[str]:
    """The chosen and the rejected response of a row."""
    return [response_of(row, side, allow_empty=True) for side in ("chosen", "rejected")]


def fit_rows(
    rows: Dataset,
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
    fitted, shortened = [], 0
    for index, row in enumerate(rows):
        try:
            responses, prompt = responses_of(row), prompt_of(row)

            def encode(prompt, responses=responses) -> int:
                prefixes = [critique_format.encode_prefix(prompt, response) for response in responses]
                return max(len(prefix.input_ids) for prefix in prefixes) + reserve

            new_prompt, needed = fit(prompt, encode, int, context_length, overlong_policy, critique_format)
        except ValueError as error:
            raise ValueError(f"{row_name(index, row).capitalize()}: {error}") from error
        if needed is not None:
            fitted.append(FittedRow(index, row, new_prompt, responses))
            shortened += new_prompt is not prompt
    if not fitted:
        raise ValueError(f"None of the {len(rows)} rows fits the model's context of {context_length} tokens.")
    return FittedRows(fitted, len(rows) - len(fitted), shortened)
