"""Probe paraphrased prompts: rewording the question must not change which response is better."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...critique_format import CritiqueFormat
from ...prompts import read_prompt
from ..stats import mean_estimate
from .probe import REWARD, Measure, Probe, ProbedRow, ProbeRow, Variant, labels_of, order_changes, shares


# Frames that keep the question verbatim
FRAMES = {
    "polite frame": "Could you please help me with the following?\n\n{}\n\nThank you very much!",
    "announced": "I have a question. {}",
    "label": "Question: {}",
}
YOURS = "your paraphrases"


def reword(prompt: Any, change: Callable[[str], str]) -> Any:
    """Change the last user message of a prompt in any format. Return `None` if the prompt has no user message with text."""
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
    Parse a column value with paraphrases of a prompt's last user message: a string, a list of strings, or nothing.

    Raises:
        `ValueError`: If the value is anything else, or contains an empty string.
    """
    texts = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"the paraphrases are {value!r:.60}; give a string, a list of strings, or nothing.")
    return tuple(texts)


def _alter(row: ProbeRow, critique_format: CritiqueFormat) -> list[Variant]:
    # A paraphrase replaces the whole text. It may contain braces, so it must not be filled in like a frame
    changes: dict[str, Callable[[str], str]] = {
        label: lambda text, frame=frame: frame.replace("{}", text) for label, frame in FRAMES.items()
    }
    for number, paraphrase in enumerate(row.paraphrases, 1):
        changes[f"{YOURS} {number}"] = lambda text, paraphrase=paraphrase: paraphrase
    prompts = {label: reword(row.row.prompt, change) for label, change in changes.items()}
    return [
        Variant(label, place, prompt, response)
        for label, prompt in prompts.items()
        if prompt is not None
        for place, response in enumerate(row.row.responses)
    ]


def _measure(rows: Sequence[ProbedRow]) -> list[Measure]:
    labels = labels_of(rows)
    moves = []
    for label in labels:
        margins = filter(None, [_margins(row, label) for row in rows])
        values = [float(np.mean([abs(after - before) for before, after in found])) for found in margins]
        moves.append(Measure(f"margin moves by, {label}", REWARD, mean_estimate(values)))
    changed, tied = (lambda row, label, place=place: order_changes(_margins(row, label))[place] for place in (0, 1))
    orders = shares(rows, "order of a pair changes, {}", labels, changed)
    return [*orders, *shares(rows, "tie arises or ends, {}", labels, tied), *moves]


def _margins(row: ProbedRow, label: str) -> list[tuple[float, float]]:
    """Return each pair's margins before and after rewording, or an empty list if a response was not scored with the reworded prompt."""
    before = row.row.rewards
    if len(row.places(label)) < len(before):
        return []
    after = [row.variants[label, place].reward for place in range(len(before))]
    return [(before[right] - before[wrong], after[right] - after[wrong]) for right, wrong in row.row.pairs()]


PARAPHRASES = Probe(
    title="Paraphrased prompts",
    about=(
        "The last user message is put into a frame that keeps it verbatim ("
        + "; ".join(f"{label}: “{' '.join(frame.split()).replace('{}', '…')}”" for label, frame in FRAMES.items())
        + "), or replaced by a paraphrase that you supply."
    ),
    measure=_measure,
    alter=_alter,
)
