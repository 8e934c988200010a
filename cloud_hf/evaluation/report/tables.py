"""Lines of markdown tables."""

from collections.abc import Sequence
from typing import Any


def table_head(cells: Sequence[str]) -> list[str]:
    """The first two lines of a markdown table."""
    return [table_line(cells), "|---|" + "---:|" * (len(cells) - 1)]


def table_line(cells: Sequence[Any]) -> str:
    """A line of a markdown table; text cannot break it."""
    return f"| {' | '.join(str(cell).replace('|', '/').replace(chr(10), ' ') for cell in cells)} |"
