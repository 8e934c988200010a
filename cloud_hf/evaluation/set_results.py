"""Results of a model on a set: scores of its rows, differences between models, and critiques compared with references."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, compress
from typing import Any

import numpy as np

from ..data.journal import key_of
from ..data.row_values import prompt_of
from ..scoring import Score, Scorer, TransformersScorer
from .benchmarks import Benchmark, preference_pairs
from .context_fitting import FittedRows, score_columns, share_cut
from .metrics.critique_quality import CritiqueQuality, CritiqueRow, ReferenceLoss, reference_losses, score_critiques
from .metrics.pairs import PairEvaluation
from .rows import BenchmarkRow
from .stats import NO_ROWS, BenchmarkScores, Estimate, Summarised, mean_estimate, share


@dataclass(frozen=True)
class Evaluation:
    """
    Results of a model on a benchmark or preference set.

    Args:
        name, title (`str`):
            Name of the set on the command line, and its name in tables.
        scores ([`BenchmarkScores`]):
            The metrics.
        rows (`list[BenchmarkRow]`):
            The scored rows, with their prompts before shortening.
        row_scores (`list[list[Score]]`):
            The scores of each row's responses.
        dropped, shortened (`int`):
            Number of rows dropped because they are too long, and number of rows with a shortened prompt.
        repeated_ids (`int`, *optional*, defaults to `0`):
            Number of rows of a preference set that repeat the `id` of an earlier row.
        bad (`int`, *optional*, defaults to `0`):
            Number of rows left out because they cannot be used, for example because the chat template rejects them (only with
            `bad_rows="drop"`).
        benchmark ([`Benchmark`], *optional*):
            The benchmark, whose own tables and result files are added to the report. `None` for a preference set.
    """

    name: str
    title: str
    scores: BenchmarkScores
    rows: list[BenchmarkRow]
    row_scores: list[list[Score]]
    dropped: int
    shortened: int
    repeated_ids: int = 0
    bad: int = 0
    benchmark: Benchmark | None = None

    @property
    def known(self) -> list[bool]:
        """Whether each row's subset is part of the benchmark. Other rows count only in their subset's estimate."""
        return [row.subset not in self.scores.unknown for row in self.rows]

    def known_rows(self, *columns: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
        """Yield each known row with its scores and its values in the additional columns."""
        return compress(zip(self.rows, self.row_scores, *columns, strict=True), self.known)

    def margins(self) -> list[float]:
        """Return the reward of the right response minus that of the wrong one for all pairs of the known rows."""
        return [margin for row in self.margins_by_row().values() for margin in row]

    def margins_by_row(self) -> dict[str, list[float]]:
        """Return the margins of each known row, keyed by row id."""
        return {
            row.id: [scores[right].reward - scores[wrong].reward for right, wrong in row.pairs()]
            for row, scores in self.known_rows()
        }

    def row_outcomes(self) -> dict[str, float]:
        """Return, for each known row, the share of its right/wrong pairs in the right order: 0 or 1 for preference pairs."""
        return {row: outcome(margins) for row, margins in self.margins_by_row().items()}

    def row_accuracy(self) -> Estimate:
        """Return the mean outcome of the rows, all weighted equally."""
        return share(list(self.row_outcomes().values()))

    def notes(self) -> list[str]:
        """Return caveats for readers of the results, as sentences."""
        return self.scores.notes() + _notes(
            {
                "Rows that repeat the `id` of an earlier row, but are counted": self.repeated_ids,
                "Rows left out because they do not fit the model's context": self.dropped,
                "Rows scored with a shortened prompt": self.shortened,
                "Rows left out because they cannot be used": self.bad,
            },
            share_cut(self.row_scores),
        )

    def summary(self) -> dict[str, Any]:
        """Return the results in JSON form, without the scores of individual rows."""
        return {
            "name": self.name,
            **self.scores.summary(),
            "rows": len(self.rows),
            "row_accuracy": self.row_accuracy().summary(),
            "dropped": self.dropped,
            "shortened": self.shortened,
            "bad": self.bad,
            "repeated_ids": self.repeated_ids,
            "critiques_cut": share_cut(self.row_scores),
            "notes": self.notes(),
        }

    def table(self) -> Iterator[dict[str, Any]]:
        """Yield one row for each response, with the columns of the Parquet file."""
        for row, scores in zip(self.rows, self.row_scores, strict=True):
            row_hash = key_of(row.prompt, row.responses)
            for place, score in enumerate(scores):
                yield {
                    "benchmark": self.name,
                    "row": row.id,
                    "row_hash": row_hash,
                    "subset": row.subset,
                    "response": place,
                    "is_chosen": place < row.num_chosen,
                    **score_columns(score),
                }


def outcome(margins: Sequence[float]) -> float:
    """Return the share of a row's right/wrong pairs in the right order; ties count as wrong."""
    return float(np.mean(np.array(margins) > 0))


def evaluation_of_pairs(name: str, title: str, fitted: FittedRows, result: PairEvaluation) -> Evaluation:
    """Build the evaluation of a preference set, whose groups become subsets. Without a group column, the subset of all rows is `"all"`."""
    # Rows are identified by index, because the ids in a preference set need not be unique. Their prompts are those of the set, as in
    # benchmarks, because a shortened prompt and its hash depend on the model
    rows = [
        BenchmarkRow(
            str(pair.index), pair.subset if result.by_group else "all", prompt_of(row.row), tuple(row.responses)
        )
        for pair, row in zip(result.pairs, fitted.rows, strict=True)
    ]
    row_scores = [[pair.chosen, pair.rejected] for pair in result.pairs]
    scores = preference_pairs.score(rows, [[score.reward for score in scores] for scores in row_scores])
    # Several pairs with the same prompt may share an id, so repeated ids are reported instead of rejected
    ids = [str(pair.id) for pair in result.pairs if pair.id is not None]
    counts = (result.dropped, result.shortened, len(ids) - len(set(ids)), fitted.bad)
    return Evaluation(name, title, scores, rows, row_scores, *counts)


def _notes(counted: Mapping[str, int], critiques_cut: float) -> list[str]:
    """Return a sentence for each count that is not 0, and one for the share of critiques that were truncated."""
    notes = [f"{text}: {count}." for text, count in counted.items() if count]
    return notes + ([f"Critiques cut at the token budget: {critiques_cut:.1%}."] if critiques_cut else [])


def headline_estimates(evaluations: Sequence[Evaluation]) -> tuple[str, list[Estimate]]:
    """
    Return the metric to quote when comparing several models on one benchmark, as its label and each model's estimate. It is the first
    headline metric for which all models have an estimate or, if there is none, [`Evaluation.row_accuracy`].
    """
    title = evaluations[0].title
    # If models dropped different over-long rows, their headline metrics may differ, or one model may lack another's headline metric
    for headline in dict.fromkeys(evaluation.scores.headline for evaluation in evaluations):
        estimates = [evaluation.scores.figures.get(headline, NO_ROWS) for evaluation in evaluations]
        if not any(math.isnan(estimate.value) for estimate in estimates):
            return f"{title}, {headline}", estimates
    return f"{title}, all rows weighted equally", [evaluation.row_accuracy() for evaluation in evaluations]


# -------------------------------------------------------------------------------------- differences between models


@dataclass(frozen=True)
class Difference(Summarised):
    """
    Difference between two models on the same rows of a benchmark. All rows are weighted equally, so this is not the difference
    between the official metrics, which weight subsets.

    Args:
        benchmark (`str`):
            The benchmark.
        models (`tuple[str, str]`):
            The two models.
        difference ([`Estimate`]):
            Mean over rows of the first model's outcome minus the second model's (see [`Evaluation.row_outcomes`]), with a paired bootstrap
            interval.
        first_better, second_better (`int`):
            Number of rows on which the first or the second model has more pairs in the right order.
    """

    benchmark: str
    models: tuple[str, str]
    difference: Estimate
    first_better: int
    second_better: int


def compare(results: dict[str, list[Evaluation]]) -> list[Difference]:
    """Compare each pair of models on the rows that both scored; all models have evaluations of the same benchmarks in the same order."""
    found = [
        # Rows are matched by id, because each model may have dropped different over-long rows
        difference(ours.name, models, ours.row_outcomes(), theirs.row_outcomes())
        for models in combinations(results, 2)
        for ours, theirs in zip(*map(results.__getitem__, models), strict=True)
    ]
    return [part for part in found if part is not None]


def difference(
    benchmark: str, models: tuple[str, str], first: Mapping[Any, float], second: Mapping[Any, float]
) -> Difference | None:
    """Compare the outcomes of two models on the rows that both have; `None` if there are no such rows."""
    gains = np.array([value - second[row] for row, value in first.items() if row in second])
    if not len(gains):
        return None
    return Difference(benchmark, models, mean_estimate(gains.tolist()), int((gains > 0).sum()), int((gains < 0).sum()))


# ------------------------------------------------------------------------------------ critiques against references


def fittable(rows: Sequence[CritiqueRow]) -> list[dict[str, Any]]:
    """Convert rows to the input of [`~context_fitting.fit_rows`]."""
    return [
        {"id": row.id, "prompt": row.prompt, "responses": [row.response], "critique": row.critique} for row in rows
    ]


def fitted_rows(fitted: FittedRows) -> list[CritiqueRow]:
    """Convert fitted rows back to [`CritiqueRow`] objects, with the prompts that the model sees."""
    return [CritiqueRow(row.row["id"], row.prompt, row.responses[0], row.row["critique"]) for row in fitted.rows]


def losses_of_sets(
    scorer: Scorer, sets: Mapping[str, FittedRows], overlong_policy: str, batch_size: int
) -> Mapping[str, list[ReferenceLoss] | None]:
    """
    Compute the losses of reference critiques by set. The losses are `None` with vLLM and servers, which do not return them. With the policy
    `"error"`, raises `ValueError` if a row does not fit in the model's context together with its reference critique.
    """
    if not isinstance(scorer, TransformersScorer):
        return dict.fromkeys(sets)
    return {
        name: reference_losses(scorer.model, scorer.tokenizer, fitted_rows(part), batch_size, overlong_policy)
        for name, part in sets.items()
    }


@dataclass(frozen=True)
class CritiqueResult:
    """Critiques of a model on a set with reference critiques."""

    name: str
    rows: list[CritiqueRow]
    scores: list[Score]  # with the model's own critiques; only the first critique of each response is compared
    quality: CritiqueQuality
    dropped: int  # rows that do not fit in the model's context
    shortened: int  # rows with a shortened prompt
    bad: int  # rows that cannot be used
    without_loss: int  # rows that do not fit in the context together with their reference critique

    @classmethod
    def of(
        cls, name: str, fitted: FittedRows, row_scores: Sequence[Sequence[Score]], losses: Sequence[ReferenceLoss] | None
    ) -> "CritiqueResult":  # fmt: skip
        """Build the result from the rows that fit, the scores of their responses and the losses of the reference critiques."""
        rows, scores = fitted_rows(fitted), [score for [score] in row_scores]
        quality = score_critiques([score.critique for score in scores], [row.critique for row in rows], losses)
        without = sum(loss.tokens == 0 for loss in losses or [])
        return cls(name, rows, scores, quality, fitted.dropped, fitted.shortened, fitted.bad, without)

    def notes(self) -> list[str]:
        """Return caveats for readers of the results, as sentences."""
        without = "Rows without a loss, because they do not fit the model's context with their reference critique"
        return _notes(
            {
                "Rows left out because they do not fit the model's context": self.dropped,
                "Rows scored with a shortened prompt": self.shortened,
                "Rows left out because they cannot be used": self.bad,
                without: self.without_loss,
            },
            share_cut([self.scores]),
        )

    def summary(self) -> dict[str, Any]:
        """Return the results in JSON form."""
        return {"dataset": self.name, **self.quality.summary(), "notes": self.notes()}

    def table(self) -> Iterator[dict[str, Any]]:
        """Yield one row for each response."""
        for row, score in zip(self.rows, self.scores, strict=True):
            yield {
                "dataset": self.name,
                "row": row.id,
                "reward": score.reward,
                "critique": score.critique,
                "reference": row.critique,
            }
