"""Build Markdown that shows untrusted text literally."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


_LONGEST_CELL = 2000


def in_code(value: Any) -> str:
    """Format a value as inline code, for a sentence or a table cell, so that its text cannot break out of the code."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = " ".join(text.split())
    text = text if len(text) <= _LONGEST_CELL else f"{text[: _LONGEST_CELL - 1]}…"
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if "`" in text else ""
    return f"{fence}{space}{text.replace('|', chr(92) + '|')}{space}{fence}" if text else ""


def block(text: str, language: str = "text") -> str:
    """Return a fenced code block whose fence is long enough that no line of the text can close it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def settings_table(values: Mapping[str, Any]) -> str:
    """Return a Markdown table of settings or counts."""
    return table([(name, in_code(value)) for name, value in values.items()]) if values else ""


def table(rows: Iterable[Sequence[str]], header: Sequence[str] = ("", "")) -> str:
    """Return a Markdown table. The cells must already be Markdown: they are not escaped."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))
