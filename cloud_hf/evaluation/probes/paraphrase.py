"""Paraphrased prompts: the same question in other words must not change which response is better."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...conversation import read_prompt
from ...critique_format import CritiqueFormat
from ..stats import mean_estimate
from .probe import REWARD, SHARE, Measure, Probe, ProbedRow, ProbeRow, Variant, labels_of, share_of_rows


# Frames that leave the question word for word
FRAMES = {
    "polite frame": "Could you please help me with the following?\n\n{}\n\nThank you very much!",
    "announced": "I have a question. {}",
    "label": "Question: {}",
}
YOURS = "your paraphrases"


def reword(prompt: Any, change: Callable[[str], str]) -> Any:
    """The prompt with its last user message changed, in the form it came in. `None` if it has none with text."""
    if isinstance(prompt, str):
        return change(prompt)
    conversation = read_prompt(prompt, allow_empty=True)
    messages = conversation.messages
    for message in reversed(messages):
        if message["role"] == "user" and message.get("content"):
            message["content"] = change(message["content"])
            return {"messages": messages, "tools": conversation.tools} if isinstance(prompt, dict) else messages
    return None


def read_paraphrases(value: Any) -> tuple[str, ...]:
    """
    The user's wordings of a prompt's last user message, as a column holds them: text, several, or none.

    Raises:
        `ValueError`: If it holds something else, or empty text.
    """
    texts = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"the paraphrases are {value!r:.60}; give text, a list of texts, or nothing.")
    return tuple(texts)


def _alter(row: ProbeRow, critique_format: CritiqueFormat) -> list[Variant]:
    wordings = {
        label: reword(row.row.prompt, lambda text, frame=frame: frame.replace("{}", text))
        for label, frame in FRAMES.items()
    }
    for number, paraphrase in enumerate(row.paraphrases, 1):
        wordings[f"{YOURS} {number}"] = reword(row.row.prompt, lambda text, paraphrase=paraphrase: paraphrase)
    return [
        Variant(label, place, prompt, response)
        for label, prompt in wordings.items()
        if prompt is not None
        for place, response in enumerate(row.row.responses)
    ]


def _measure(rows: Sequence[ProbedRow]) -> list[Measure]:
    labels = labels_of(rows)
    measures = []
    for label in labels:
        whole = [row for row in rows if len(row.places(label)) == len(row.row.row.responses)]
        changed = share_of_rows([_order_changed(row, label) for row in whole])
        measures.append(Measure(f"order of a pair changes, {label}", SHARE, changed))
    for label in labels:
        whole = [row for row in rows if len(row.places(label)) == len(row.row.row.responses)]
        moved = mean_estimate([np.mean([abs(change) for change in _margin_changes(row, label)]) for row in whole])
        measures.append(Measure(f"margin moves by, {label}", REWARD, moved))
    return measures


def _margins(row: ProbedRow, label: str) -> list[tuple[float, float]]:
    """For each pair the margin before and after."""
    before, after = row.row.rewards, [row.variants[label, place].reward for place in range(len(row.row.rewards))]
    return [(before[right] - before[wrong], after[right] - after[wrong]) for right, wrong in row.row.pairs()]


def _order_changed(row: ProbedRow, label: str) -> list[float]:
    return [float(np.sign(before) != np.sign(after)) for before, after in _margins(row, label)]


def _margin_changes(row: ProbedRow, label: str) -> list[float]:
    return [after - before for before, after in _margins(row, label)]


PARAPHRASES = Probe(
    title="Paraphrased prompts",
    about=(
        "The last user message is put into a frame that leaves it word for word ("
        + "; ".join(f"{label}: “{' '.join(frame.split()).replace('{}', '…')}”" for label, frame in FRAMES.items())
        + "), or replaced by a paraphrase of the user's own."
    ),
    measure=_measure,
    alter=_alter,
)
