"""Probe style: add or remove markdown without changing the words."""

import re
from collections.abc import Sequence

from ...critique_format import CritiqueFormat
from .probe import (
    CONTROL,
    Measure,
    Probe,
    ProbedRow,
    ProbeRow,
    Variant,
    measures_against_controls,
    neutral,
    reward_changes,
)


ADDED, REMOVED = "markdown added", "markdown removed"

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_LINE_MARKS = re.compile(r"^(\s*)(?:#{1,6}\s+|[-*+]\s+|>\s+)", re.MULTILINE)
_PAIRED_MARKS = re.compile(r"(?<![\w*`])(\*\*\*|\*\*|\*|`)(?=\S)([^*`\n]+?)(?<=\S)\1(?![\w*`])")
_CODE = re.compile(r"^(?: {4}|\t)|[;{}]\s*$|```", re.MULTILINE)


def looks_like_code(text: str) -> bool:
    """Check whether text has code fences, indented lines, or lines that end like code. In code, characters such as `*` are not markdown."""
    return _CODE.search(text) is not None


def add_markdown(text: str) -> str:
    """Turn each sentence into a bullet with its first word in bold. Lines that already have markdown stay unchanged."""
    lines = []
    for line in text.split("\n"):
        if not line.strip() or remove_markdown(line) != line:
            lines.append(line)
            continue
        for sentence in _SENTENCE_END.split(line.strip()):
            first, space, rest = sentence.partition(" ")
            lines.append(f"- **{first}**{space}{rest}")
    return "\n".join(lines)


def remove_markdown(text: str) -> str:
    """Remove the markup of headings, bullets, quotes, bold, italics and code. List numbers count as words and are kept."""
    text = _LINE_MARKS.sub(r"\1", text)
    return _PAIRED_MARKS.sub(r"\2", text)


def _alter(row: ProbeRow, critique_format: CritiqueFormat) -> list[Variant]:
    variants = []
    for place, response in enumerate(row.row.responses):
        if looks_like_code(response):
            continue
        for label, change in ((ADDED, add_markdown), (REMOVED, remove_markdown)):
            if (altered := change(response)) != response:
                variants.append(Variant(label, place, row.row.prompt, altered))
    return variants


def _measure(rows: Sequence[ProbedRow]) -> list[Measure]:
    labels = (ADDED, REMOVED)
    changes = reward_changes(rows, [label for name in labels for label in (name, neutral(name))])
    return [*measures_against_controls(rows, labels, " (wrong response only)"), *changes]


STYLE = Probe(
    title="Style",
    about=(
        "Markdown is added to each response (each sentence becomes a bullet with its first word in bold) or removed; the words stay the "
        "same. Responses that look like code are left out, and so are changes that would alter nothing. The rewards of a model that "
        "judges only content do not change. "
        f"{CONTROL}"
    ),
    measure=_measure,
    alter=_alter,
    controls=True,
)
