"""Accuracy on preference pairs."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from datasets import Dataset

from ...critique_format import CritiqueFormat
from ...data.preference_rows import SIDES, Response, read_preferences
from ...data.row_values import response_of
from ...data.rows import check_columns
from ...scoring import Score, Scorer
from ..benchmarks.preference_pairs import score_preferences
from ..context_fitting import FittedRow, FittedRows, fit_rows, score_rows, share_cut  # noqa: F401 (`FittedRow` was here in 0.1)


@dataclass(frozen=True)
class ScoredPair:
    """One pair with its scores; `index` is the row's position in the dataset."""

    index: int
    id: Any
    group: Any
    chosen: Score
    rejected: Score

    @property
    def subset(self) -> str:
        """The name of the pair's group; the pairs without one form a group of their own."""
        return "(none)" if self.group is None else str(self.group)


@dataclass(frozen=True)
class PairEvaluation:
    """
    Accuracy of a model on preference pairs.

    Args:
        n, ties (`int`):
            Number of pairs scored, and number of pairs with equal rewards.
        accuracy (`float`):
            Share of pairs whose chosen response has a strictly higher reward; a tie counts as wrong.
        ci95 (`tuple[float, float]`):
            95 % Wilson interval of the accuracy.
        dropped, shortened (`int`):
            Number of pairs left out because they are too long, and number of pairs scored with a shortened prompt.
        critiques_cut (`float`):
            Share of critiques that were truncated at the token limit.
        by_group (`dict[str, dict]`):
            `accuracy`, `ci95` and `n` for each value of the group column, and for the pairs without a value (`"(none)"`).
        pairs (`list[ScoredPair]`):
            The pairs with their scores.
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
        """Return the metrics in JSON form, without the scores of individual pairs."""
        metrics = asdict(replace(self, pairs=[]))
        del metrics["pairs"]
        return metrics


def evaluate_pairs(
    scorer: Scorer,
    rows: Dataset,
    critique_format: CritiqueFormat,
    *,
    context_length: int | None = None,
    overlong_policy: str = "error",
    bad_rows: str = "error",
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
            Columns `prompt`, `chosen`, `rejected`, in any form that [`~data.preference_rows.read_preferences`] accepts; and
            optionally `tools` and `id`.
        critique_format ([`CritiqueFormat`]):
            The model's critique format, which is used to count tokens.
        context_length (`int`, *optional*):
            Context length of the model in tokens, critique included.
        overlong_policy (`str`, *optional*, defaults to `"error"`):
            What to do with pairs that do not fit in the context together with a critique of `max_new_tokens` tokens: `"error"`, `"drop"`
            or `"truncate_prompt"`.
        bad_rows (`str`, *optional*, defaults to `"error"`):
            What to do with rows that cannot be used: `"error"` or `"drop"`.
        group_column (`str`, *optional*):
            Column by which accuracy is also broken down.
        max_new_tokens (`int`, *optional*, defaults to `1024`):
            Token limit of a critique.
        **score_options:
            Passed to `scorer.score`.

    Returns:
        [`PairEvaluation`]

    Raises:
        `ValueError`: Before anything is scored, if rows are bad; the message counts them by kind and names the first of each. After
            scoring, if a reward is not a finite number.
    """
    name = "Evaluation of pairs"
    if group_column is not None:
        check_columns(rows.column_names, (group_column,), "`group_column`")
    rows = read_preferences(rows, name, bad_rows=bad_rows, numbered=True)
    limits = context_length, overlong_policy, max_new_tokens, bad_rows
    fitted = fit_rows(rows, pair_responses, critique_format, *limits, name)
    scores = score_rows(scorer, fitted.rows, max_new_tokens=max_new_tokens, **score_options)
    return summarize_pairs(fitted, scores, group_column)


def summarize_pairs(
    fitted: FittedRows, scores: Sequence[Sequence[Score]], group_column: str | None = None
) -> PairEvaluation:
    """
    Compute accuracy from the scores of the pairs that fit in the context. The values of `group_column` are passed to
    [`score_preferences`] as subsets.
    """
    pairs = [
        ScoredPair(row.index, row.row.get("id"), row.row.get(group_column or ""), chosen, rejected)
        for row, (chosen, rejected) in zip(fitted.rows, scores, strict=True)
    ]
    found = score_preferences(
        [pair.chosen.reward for pair in pairs],
        [pair.rejected.reward for pair in pairs],
        [pair.subset for pair in pairs],
    )
    assert found.accuracy.ci95 is not None  # a share of outcomes that are 0 or 1 always has an interval
    groups = sorted(found.subsets.items()) if group_column else []
    return PairEvaluation(
        n=found.accuracy.n,
        accuracy=found.accuracy.value,
        ci95=found.accuracy.ci95,
        ties=found.ties,
        dropped=fitted.dropped,
        shortened=fitted.shortened,
        critiques_cut=share_cut(scores),
        by_group={name: {"n": part.n, "accuracy": part.value, "ci95": part.ci95} for name, part in groups},
        pairs=pairs,
    )


def pair_responses(row: dict[str, Any]) -> list[Response]:
    """Check and return the chosen and the rejected response of a row."""
    return [response_of(row, side) for side in SIDES]
