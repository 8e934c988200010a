"""What an evaluation found: tables and comparisons for people, JSON and Parquet for programs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, compress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from ...scoring import Score
from ..benchmarks import preference_pairs
from ..benchmarks.rm_bench import DOMAINS
from ..fitting import FittedRows, share_cut
from ..metrics.pairs import PairEvaluation
from ..rows import BenchmarkRow
from ..stats import BenchmarkScores, Estimate, bootstrap_interval, share
from .tables import table_head, table_line


VERSION = 1
_SCHEMA = pa.schema(
    {
        "benchmark": pa.string(),
        "row": pa.string(),
        "subset": pa.string(),
        "response": pa.int32(),
        "is_chosen": pa.bool_(),
        "reward": pa.float64(),
        "rewards": pa.list_(pa.float64()),
        "critiques": pa.list_(pa.string()),
        "finish_reasons": pa.list_(pa.string()),
    }
)


@dataclass(frozen=True)
class Evaluation:
    """
    A model on a benchmark.

    Args:
        name (`str`):
            The benchmark, as the command line names it.
        title (`str`):
            Its name in tables.
        scores ([`BenchmarkScores`]):
            The figures.
        rows (`list[BenchmarkRow]`):
            The rows that were scored.
        row_scores (`list[list[Score]]`):
            For each of them the scores of its responses.
        dropped (`int`):
            Over-long rows that were left out.
        shortened (`int`):
            Rows that were scored with a shortened prompt.
        repeated_ids (`int`, *optional*, defaults to `0`):
            Rows of a preference set whose `id` an earlier row has.
    """

    name: str
    title: str
    scores: BenchmarkScores
    rows: list[BenchmarkRow]
    row_scores: list[list[Score]]
    dropped: int
    shortened: int
    repeated_ids: int = 0

    @property
    def known(self) -> list[bool]:
        """For each row whether its subset is part of the benchmark; the others are in no figure but their subset's."""
        return [row.subset not in self.scores.unknown for row in self.rows]

    def margins(self) -> list[float]:
        """The reward of the right response minus that of the wrong one, for each right and wrong response of a known row."""
        return [margin for row in self.margins_by_row().values() for margin in row]

    def margins_by_row(self) -> dict[str, list[float]]:
        """The margins of each known row, by its id."""
        return {
            row.id: [
                right.reward - wrong.reward for right in scores[: row.num_chosen] for wrong in scores[row.num_chosen :]
            ]
            for row, scores in compress(zip(self.rows, self.row_scores, strict=True), self.known)
        }

    def row_outcomes(self) -> dict[str, float]:
        """For each known row the share of its right and wrong responses in the right order: 0 or 1 for preference pairs."""
        return {row: float(np.mean(np.array(margins) > 0)) for row, margins in self.margins_by_row().items()}

    def row_accuracy(self) -> Estimate:
        """Mean outcome of the rows, all alike."""
        return share(list(self.row_outcomes().values()))

    def notes(self) -> list[str]:
        """What must be known beside the figures, as sentences."""
        notes = self.scores.notes()
        if self.repeated_ids:
            notes.append(f"Rows whose `id` an earlier row has, counted all the same: {self.repeated_ids}.")
        if self.dropped:
            notes.append(f"Rows left out because they do not fit the model's context: {self.dropped}.")
        if self.shortened:
            notes.append(f"Rows scored with a shortened prompt: {self.shortened}.")
        if cut := share_cut(self.row_scores):
            notes.append(f"Critiques cut at the token budget: {cut:.1%}.")
        return notes

    def summary(self) -> dict[str, Any]:
        """The figures without the single scores, for JSON."""
        return {
            "name": self.name,
            **self.scores.summary(),
            "rows": len(self.rows),
            "row_accuracy": self.row_accuracy().summary(),
            "dropped": self.dropped,
            "shortened": self.shortened,
            "repeated_ids": self.repeated_ids,
            "critiques_cut": share_cut(self.row_scores),
            "notes": self.notes(),
        }

    def table(self) -> Iterator[dict[str, Any]]:
        """One row for each response, in the columns of the Parquet file."""
        for row, scores in zip(self.rows, self.row_scores, strict=True):
            for place, score in enumerate(scores):
                columns = {name: getattr(score, name) for name in ("reward", "rewards", "critiques", "finish_reasons")}
                yield {
                    "benchmark": self.name,
                    "row": row.id,
                    "subset": row.subset,
                    "response": place,
                    "is_chosen": place < row.num_chosen,
                    **columns,
                }


def evaluation_of_pairs(name: str, title: str, fitted: FittedRows, result: PairEvaluation) -> Evaluation:
    """The evaluation of a preference set; its groups are the subsets."""
    rows = [
        BenchmarkRow(
            str(pair.index), "all" if pair.group is None else str(pair.group), row.prompt, tuple(row.responses)
        )
        for pair, row in zip(result.pairs, fitted.rows, strict=True)
    ]
    row_scores = [[pair.chosen, pair.rejected] for pair in result.pairs]
    scores = preference_pairs.score(rows, [[score.reward for score in scores] for scores in row_scores])
    ids = [str(pair.id) for pair in result.pairs if pair.id is not None]
    repeated = len(ids) - len(set(ids))
    return Evaluation(name, title, scores, rows, row_scores, result.dropped, result.shortened, repeated)


def write_scores(evaluations: Sequence[Evaluation], path: Path):
    """Write the scores of all responses, with their critiques, as Parquet."""
    with parquet.ParquetWriter(path, _SCHEMA) as writer:
        for evaluation in evaluations:
            writer.write_table(pa.Table.from_pylist(list(evaluation.table()), schema=_SCHEMA))


# ------------------------------------------------------------------------------------------------- model by model


@dataclass(frozen=True)
class Difference:
    """
    Two models on the same rows of a benchmark.

    All rows weigh the same, so this is not the difference of official figures, which weigh subsets.

    Args:
        benchmark (`str`):
            The benchmark.
        models (`tuple[str, str]`):
            The two models.
        difference ([`Estimate`]):
            Mean over rows of the first model's minus the second's [`Evaluation.row_outcomes`], with the interval of a paired bootstrap over rows.
        first_better (`int`):
            Rows in which the first model has more in the right order.
        second_better (`int`):
            Rows in which the second does.
    """

    benchmark: str
    models: tuple[str, str]
    difference: Estimate
    first_better: int
    second_better: int

    def summary(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "benchmark": self.benchmark,
            "models": list(self.models),
            "difference": self.difference.summary(),
            "first_better": self.first_better,
            "second_better": self.second_better,
        }


def compare(results: dict[str, list[Evaluation]]) -> list[Difference]:
    """
    Compare all models with each other on the rows that both scored.

    Args:
        results (`dict[str, list[Evaluation]]`):
            For each model its evaluations, of the same benchmarks in the same order.

    Returns:
        `list[Difference]`
    """
    found = []
    for first, second in combinations(results, 2):
        for ours, theirs in zip(results[first], results[second], strict=True):
            first_outcomes, second_outcomes = ours.row_outcomes(), theirs.row_outcomes()
            gains = np.array(
                [value - second_outcomes[row] for row, value in first_outcomes.items() if row in second_outcomes]
            )
            if not len(gains):
                continue  # each model dropped what the other one kept
            figure = Estimate(float(gains.mean()), len(gains), bootstrap_interval([gains], np.mean))
            found.append(
                Difference(ours.name, (first, second), figure, int((gains > 0).sum()), int((gains < 0).sum()))
            )
    return found


# ------------------------------------------------------------------------------------------------------- markdown


def markdown(
    results: dict[str, list[Evaluation]], differences: Sequence[Difference], best_of_n: dict[str, dict[str, dict]]
) -> str:
    """
    The tables of a report.

    Args:
        results (`dict[str, list[Evaluation]]`):
            For each model its evaluations, of the same benchmarks in the same order.
        differences (`Sequence[Difference]`):
            From [`compare`].
        best_of_n (`dict[str, dict[str, dict]]`):
            By dataset and model the summary of a [`BestOfN`].

    Returns:
        `str`
    """
    lines = headline_table(results)
    if differences:
        lines += ["", "## Models on the same rows", "", *_difference_table(differences)]
    for name, by_model in best_of_n.items():
        lines += ["", f"## Best-of-N: {name}", "", *_best_of_n_table(by_model)]
    for evaluations in zip(*results.values(), strict=True):
        lines += [
            "",
            f"## {evaluations[0].title}",
            "",
            *_benchmark_section(dict(zip(results, evaluations, strict=True))),
        ]
    return "\n".join(lines)


def headline_estimates(evaluations: Sequence[Evaluation]) -> tuple[str, list[Estimate]]:
    """
    What is quoted of several models on one benchmark: its headline figure, or where rows are missing for it, the mean share
    of right against wrong responses in the right order, all rows alike.

    Returns:
        `tuple[str, list[Estimate]]`: Its label, and each model's.
    """
    headline = evaluations[0].scores.headline
    figures = [evaluation.scores.figures[headline] for evaluation in evaluations]
    if any(np.isnan(figure.value) for figure in figures):
        headline, figures = "all rows alike", [evaluation.row_accuracy() for evaluation in evaluations]
    return f"{evaluations[0].title}, {headline}", figures


def headline_table(results: dict[str, list[Evaluation]]) -> list[str]:
    """Benchmarks by models: the figure to quote with its 95 % interval."""
    lines = table_head(["benchmark", *results])
    for evaluations in zip(*results.values(), strict=True):
        label, figures = headline_estimates(evaluations)
        lines.append(table_line([label, *map(cell, figures)]))
    return lines if any(results.values()) else []


def _benchmark_section(evaluations: dict[str, Evaluation]) -> list[str]:
    """All figures of a benchmark that have rows, its subsets, and the notes."""
    lines = table_head(["", *evaluations])
    scores = [evaluation.scores for evaluation in evaluations.values()]
    for name in scores[0].figures:
        if any(found.figures[name].n for found in scores):
            lines.append(table_line([f"**{name}**", *(cell(found.figures[name]) for found in scores)]))
    subsets = dict.fromkeys(name for found in scores for name in found.subsets if name not in found.figures)
    for name in subsets if len(subsets) > 1 else ():
        lines.append(table_line([f"– {name}", *(cell(found.subsets.get(name)) for found in scores)]))
    if scores[0].benchmark == "RM-Bench":
        lines += _style_matrices(dict(zip(evaluations, scores, strict=True)))
    noted: dict[str, list[str]] = {}
    for model, evaluation in evaluations.items():
        for note in evaluation.notes():
            noted.setdefault(note, []).append(model)
    return [*lines, *([""] if noted else []), *(f"- {', '.join(models)}: {note}" for note, models in noted.items())]


def _style_matrices(by_model: dict[str, BenchmarkScores]) -> list[str]:
    """RM-Bench's matrices, domain by domain."""
    styles = next(iter(by_model.values())).details["styles"]
    lines = ["", "Right responses of each style against wrong ones of each:", ""]
    lines += table_head(["right response", *(f"against {style}" for style in styles)])
    for domain in DOMAINS:
        for model, scores in by_model.items():
            for style, shares in zip(styles, scores.details["matrices"].get(domain, []), strict=False):
                lines.append(table_line([f"{domain}, {model}, {style}", *(f"{value:.1%}" for value in shares)]))
    return lines


def _difference_table(differences: Sequence[Difference]) -> list[str]:
    lines = table_head(["benchmark", "models", "difference", "rows", "first better", "second better"])
    for found in differences:
        figure = found.difference
        interval = "" if figure.ci95 is None else f" ({100 * figure.ci95[0]:+.1f} to {100 * figure.ci95[1]:+.1f})"
        difference = f"{100 * figure.value:+.1f} points{interval}"
        lines.append(
            table_line(
                [
                    found.benchmark,
                    " − ".join(found.models),
                    difference,
                    figure.n,
                    found.first_better,
                    found.second_better,
                ]
            )
        )
    return [
        *lines,
        "",
        "Mean share of right against wrong responses in the right order, all rows alike, with a paired bootstrap over rows.",
    ]


def _best_of_n_table(by_model: dict[str, dict]) -> list[str]:
    sizes = sorted({size for result in by_model.values() for size in result["rates"]})
    lines = table_head(["model", *(f"N = {size}" for size in sizes), "problems"])
    for model, result in by_model.items():
        cells = [
            f"{result['rates'][n]:.1%}"
            + ("" if (error := result["standard_errors"][n]) is None else f" ± {error:.1%}")
            if n in result["rates"]
            else "–"
            for n in sizes
        ]
        lines.append(table_line([model, *cells, result["problems"]]))
    return [*lines, "", "Correctness of the candidate with the highest reward, ± one standard error over problems."]


def cell(figure: Estimate | None) -> str:
    """A share as percent with its interval and its rows."""
    if figure is None or np.isnan(figure.value):
        return "–"
    interval = "" if figure.ci95 is None else f" ({100 * figure.ci95[0]:.1f} to {100 * figure.ci95[1]:.1f})"
    return f"{figure.value:.1%}{interval}, n = {figure.n}"
