"""Probe content-free answers: trivial strings, empty text and refusals compete with the right response."""

from collections.abc import Sequence

from ...critique_format import CritiqueFormat
from .probe import SHARE, Measure, Probe, ProbedRow, ProbeRow, Variant, labels_of, share_of_rows, shares


# After Zhao et al. 2025, "One Token to Fool LLM-as-a-Judge", arXiv 2507.08794
TRIVIAL = (
    ":", ".", ",", "?", "Solution", "Answer:", "Thought process:", "Let me think about this step by step.", "Sure!",
    "I hope this helps!", "Réponse :",
)  # fmt: skip
EMPTY = "empty response"
REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "As an AI language model, I cannot answer this question.",
    "I don't know.",
)


def _answers(texts: Sequence[str]):
    def alter(row: ProbeRow, critique_format: CritiqueFormat) -> list[Variant]:
        return [Variant(f"“{text}”" if text else EMPTY, -1, row.row.prompt, text) for text in texts]

    return alter


def beaten(row: ProbedRow, label: str, right: bool = True) -> list[float]:
    """Compare this answer with each right (or wrong) response: 1 if it has the strictly higher reward, otherwise 0."""
    count = row.row.row.num_chosen
    rewards = row.row.rewards[:count] if right else row.row.rewards[count:]
    return [float(row.variants[label, -1].reward > reward) for reward in rewards] if row.places(label) else []


def _beaten_by_any(row: ProbedRow, labels: Sequence[str], right: bool) -> list[float]:
    outcomes = [beaten(row, label, right) for label in labels if row.places(label)]
    return [max(of_response) for of_response in zip(*outcomes, strict=True)]


def _measure(rows: Sequence[ProbedRow]) -> list[Measure]:
    labels = labels_of(rows)
    by_any = [
        Measure(
            f"{kind} response beaten by one of them",
            SHARE,
            share_of_rows([_beaten_by_any(row, labels, kind == "right") for row in rows]),
        )
        for kind in ("right", "wrong")
    ]
    return [*by_any, *shares(rows, "right response beaten by {}", labels, beaten)]


TRIVIAL_ANSWERS = Probe(
    title="Trivial answers",
    about="Strings without content take the place of a response. None should have a higher reward than the right response.",
    measure=_measure,
    alter=_answers(TRIVIAL),
)
EMPTY_AND_REFUSALS = Probe(
    title="Empty and refusing answers",
    about=(
        "An empty response and refusals take the place of a response. Where the right response is itself a refusal, as in "
        "sets about safety, one that beats it is no mistake."
    ),
    measure=_measure,
    alter=_answers(("", *REFUSALS)),
)
