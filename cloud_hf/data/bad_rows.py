"""Handle rows that cannot be used: count them by kind of problem, then stop the run or leave the rows out."""

import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset

from .rows import row_name


logger = logging.getLogger(__name__)

BAD_ROWS = ("error", "drop")

# Maximum number of rows to name for each kind of problem
_NAMED = 3
_VALUES = re.compile(r"'[^']*'|\"[^\"]*\"|\d+(\.\d+)?")


def check_bad_rows(policy: str):
    """Raise `ValueError` unless `policy` is one of `BAD_ROWS`."""
    if policy not in BAD_ROWS:
        raise ValueError(f"`bad_rows` is {policy!r}; use {' or '.join(BAD_ROWS)}.")


def kind_of(problem: str) -> str:
    """Return the kind of a problem: its message without quoted values and numbers, which differ from row to row."""
    return _VALUES.sub("…", problem)


@dataclass
class BadRows:
    """
    The rows of one dataset that cannot be used.

    Examples:

    ```python
    >>> bad = BadRows("The train dataset")
    >>> bad.add(3, {"id": "q3"}, "`rejected` is empty.")
    >>> bad.settle(4)
    ValueError: The train dataset, row 3 (id 'q3'): `rejected` is empty. …
    ```
    """

    name: str  # start of the messages; may be empty
    policy: str = "error"  # "error" raises, "drop" leaves the rows out and logs their number
    # Maps each kind of problem to the names of the rows that have it, in order, and to the first message
    _kinds: dict[str, tuple[list[str], str]] = field(default_factory=dict)
    _indices: list[int] = field(default_factory=list)

    def add(self, index: int, row: Mapping[str, Any], problem: str):
        """Record a bad row with its position in the dataset and what is wrong with it."""
        names, _ = self._kinds.setdefault(kind_of(problem), ([], problem))
        names.append(row_name(index, row))
        self._indices.append(index)

    def settle(self, total: int) -> list[int]:
        """
        Apply the policy to the recorded rows, and return their positions. `total` is the number of rows in the dataset. Raises
        `ValueError` if rows were recorded and the policy is `"error"`, or if all rows are bad.
        """
        if not self._indices:
            return []
        text = " Also ".join(_named(names, problem) for names, problem in self._kinds.values())
        message = f"{self.name}, {text}" if self.name else text[:1].upper() + text[1:]
        number = len(self._indices)
        if self.policy == "error":
            raise ValueError(
                f"{message} Bad rows: {number} of {total}. Repair them, or leave them out with `bad_rows` 'drop'."
            )
        logger.warning("%s Left out %d of %d rows as bad.", message, number, total)
        if number == total:
            raise ValueError(f"{message} All {total} rows are bad.")
        return self._indices


def without(rows: Dataset, left_out: list[int]) -> Dataset:
    """Return all rows except those at the given positions."""
    if not left_out:
        return rows
    bad = set(left_out)
    return rows.select([index for index in range(len(rows)) if index not in bad])


def _named(names: list[str], problem: str) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}: {problem}"


@dataclass
class OverlongRows:
    """
    Rows of one dataset that do not fit in the context. Used with the policy `"error"`. `lengths` also contains the lengths of the rows that
    fit, so that the error message can recommend limits.
    """

    name: str
    lengths: list[int] = field(default_factory=list)
    _first: tuple[str, str] | None = None
    _number: int = 0

    def add(self, index: int, row: Mapping[str, Any], problem: str, length: int):
        """Record a row that is too long, with the message of its [`Overlong`] exception and its length in tokens."""
        self._first = self._first or (row_name(index, row), problem)
        self._number += 1
        self.lengths.append(length)

    def settle(self):
        """Raise `ValueError` if a row was recorded."""
        if self._first is None:
            return
        named, problem = self._first
        start = f"{self.name}, {named}" if self.name else f"R{named[1:]}"
        lengths = sorted(self.lengths)
        # The smallest limits that keep at least 95%, 99% and 100% of the rows
        limits = [lengths[max(0, math.ceil(share * len(lengths)) - 1)] for share in (0.95, 0.99, 1.0)]
        raise ValueError(
            f"{start}: {problem} {self._number} of {len(lengths)} rows are over-long; the longest needs {lengths[-1]} "
            f"tokens. To keep 95%, 99% or 100% of the rows, use a limit of {limits[0]}, {limits[1]} or {limits[2]} tokens."
        )
