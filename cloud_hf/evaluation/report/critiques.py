"""Critique quality as part of an evaluation: own critiques beside those of reference, in the report and row by row."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...scoring import Score, Scorer, TransformersScorer
from ..fitting import FittedRows, share_cut
from ..metrics.critique_quality import CritiqueQuality, CritiqueRow, ReferenceLoss, reference_losses, score_critiques
from .tables import table_head, table_line


def fittable(rows: Sequence[CritiqueRow]) -> list[dict[str, Any]]:
    """The rows as [`~fitting.fit_rows`] reads them."""
    return [
        {"id": row.id, "prompt": row.prompt, "responses": [row.response], "critique": row.critique} for row in rows
    ]


def fitted_rows(fitted: FittedRows) -> list[CritiqueRow]:
    """The rows that fit, as the model sees them."""
    return [CritiqueRow(row.row["id"], row.prompt, row.responses[0], row.row["critique"]) for row in fitted.rows]


def losses_of_sets(
    scorer: Scorer, sets: Mapping[str, FittedRows], overlong_policy: str, batch_size: int
) -> dict[str, list[ReferenceLoss] | None]:
    """
    By set the losses of its reference critiques, `None` with a backend that gives none: vLLM and servers.

    Raises:
        `ValueError`: With the policy `"error"`, if a row does not fit the model's context with its reference critique.
    """
    if not isinstance(scorer, TransformersScorer):
        return dict.fromkeys(sets)
    return {
        name: reference_losses(scorer.model, scorer.tokenizer, fitted_rows(part), batch_size, overlong_policy)
        for name, part in sets.items()
    }


@dataclass(frozen=True)
class CritiqueResult:
    """
    A model's critiques on a set with reference critiques.

    Args:
        name (`str`):
            The set, as reports name it.
        rows (`list[CritiqueRow]`):
            The rows.
        scores (`list[Score]`):
            For each of them the score with the model's own critiques, of which the first is compared.
        quality ([`CritiqueQuality`]):
            The figures.
        dropped, shortened (`int`):
            Rows that were left out because they do not fit the model's context, and rows with a shortened prompt.
        without_loss (`int`):
            Rows that do not fit it with their reference critique, and so have no loss.
    """

    name: str
    rows: list[CritiqueRow]
    scores: list[Score]
    quality: CritiqueQuality
    dropped: int
    shortened: int
    without_loss: int

    @classmethod
    def of(
        cls, name: str, fitted: FittedRows, row_scores: Sequence[Sequence[Score]], losses: Sequence[ReferenceLoss] | None
    ) -> "CritiqueResult":  # fmt: skip
        """The result of rows with the scores of their responses, and the losses of their reference critiques."""
        rows, scores = fitted_rows(fitted), [score for [score] in row_scores]
        quality = score_critiques([score.critique for score in scores], [row.critique for row in rows], losses)
        without = sum(loss.tokens == 0 for loss in losses or [])
        return cls(name, rows, scores, quality, fitted.dropped, fitted.shortened, without)

    def notes(self) -> list[str]:
        """What must be known beside the figures, as sentences."""
        counted = {
            "Rows left out because they do not fit the model's context": self.dropped,
            "Rows scored with a shortened prompt": self.shortened,
            "Rows without a loss, because they do not fit the model's context with their reference critique": self.without_loss,
        }
        notes = [f"{text}: {count}." for text, count in counted.items() if count]
        if cut := share_cut([self.scores]):
            notes.append(f"Critiques cut at the token budget: {cut:.1%}.")
        return notes

    def summary(self) -> dict[str, Any]:
        """The figures for JSON."""
        return {"dataset": self.name, **self.quality.summary(), "notes": self.notes()}

    def table(self) -> Iterator[dict[str, Any]]:
        """One row for each response."""
        for row, score in zip(self.rows, self.scores, strict=True):
            yield {
                "dataset": self.name,
                "row": row.id,
                "reward": score.reward,
                "critique": score.critique,
                "reference": row.critique,
            }


SECTION = """## Critiques against reference ones

The model's own critique of each response (the first, where it writes several) beside the one of reference. Loss: mean
cross-entropy of the reference critique's tokens after the response, in nats; the backend transformers alone gives it. Overlap
(chrF2, BLEU: 0 to 100) says how much the wording is alike, not whether a critique is right."""


def critique_section(results: Mapping[str, Sequence[CritiqueResult]]) -> list[str]:
    """
    The section of a report.

    Args:
        results (`Mapping[str, Sequence[CritiqueResult]]`):
            By model; none for a model that writes no critiques.
    """
    columns = ["set", "model", "critiques", "loss per token", "chrF", "BLEU", "words", "words, reference", "empty"]
    lines, notes = [SECTION, "", *table_head(columns)], []
    for model, found in results.items():
        for result in found:
            quality = result.quality
            loss = "–" if quality.loss_per_token is None else f"{quality.loss_per_token:.3f}"
            figures = (quality.chrf, quality.bleu, quality.words, quality.reference_words)
            cells = [result.name, model, quality.n, loss, *(f"{value:.1f}" for value in figures), quality.empty]
            lines.append(table_line(cells))
            notes += [f"- {model}, {result.name}: {note}" for note in result.notes()]
    return [*lines, *([""] if notes else []), *notes, ""]
