"""Benchmark rows: load them from files, and check rows and rewards."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
from datasets import Dataset

from ..data.preference_rows import PAIR_COLUMNS, Response
from ..data.row_values import prompt_of, response_of
from ..data.rows import check_columns, load_rows, row_name
from ..prompts import read_prompt


# Rewards of a row's chosen responses, and of its rejected responses
RowRewards = tuple[list[float], list[float]]


@dataclass(frozen=True)
class BenchmarkRow:
    """
    A benchmark prompt with the responses to score.

    Examples:

    ```python
    >>> row = BenchmarkRow("hep-go/3", "hep-go", "Write …", ("return a + b", "return a - b"))
    >>> row.chosen, row.rejected
    (('return a + b',), ('return a - b',))
    ```
    """

    id: str  # unique in the benchmark and stable across runs
    subset: str
    prompt: Any  # a string, chat messages, or {"messages": [...], "tools": [...]}
    responses: tuple[Response, ...]  # the right ones, then the wrong ones
    num_chosen: int = 1  # number of right responses
    details: dict[str, Any] = field(default_factory=dict)  # additional columns that the benchmark's scoring needs

    @property
    def chosen(self) -> tuple[str, ...]:
        """The right responses."""
        return self.responses[: self.num_chosen]

    @property
    def rejected(self) -> tuple[str, ...]:
        """The wrong responses."""
        return self.responses[self.num_chosen :]

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Yield the indices of the right and the wrong response of each pair."""
        return product(range(self.num_chosen), range(self.num_chosen, len(self.responses)))

    @property
    def is_undecidable(self) -> bool:
        """Whether a right and a wrong response are the same text, so that no reward can rank them."""
        return any(right in self.rejected for right in self.chosen)


def read_sources(
    names: Sequence[str],
    split: str,
    config: str | None = None,
    read: Callable[[Dataset, str], Dataset] = lambda rows, name: rows,
) -> Iterator[tuple[str, int, Any]]:
    """Load files or Hub datasets in order, each converted by `read`. Yields the source, the row's index in the source, and the row."""
    if not names:
        raise ValueError("Name at least one file or dataset to load.")
    for name in names:
        for index, row in enumerate(read(load_rows(name, split, config), name)):
            yield name, index, row


def make_row(
    source: str,
    index: int,
    row: dict[str, Any],
    subset: str,
    chosen: Any,
    rejected: Any,
    prompt: Any = None,
    **details,
) -> BenchmarkRow:
    """
    Create a [`BenchmarkRow`] from a row of a file or dataset; `chosen` and `rejected` contain one or several responses each. The id
    defaults to the index, and `prompt` to the row's prompt with its `tools`. Raises a `ValueError` that names the row and the field.
    """
    try:
        chosen, rejected = _texts("chosen", chosen), _texts("rejected", rejected)
        prompt = prompt_of(row) if prompt is None else prompt
        read_prompt(prompt, allow_empty=True)
    except ValueError as error:
        raise ValueError(f"{source}, {row_name(index, row)}: {error}") from error
    id_ = str(index if row.get("id") is None else row["id"])
    # Files with several subsets may number the rows of each subset from 0
    id_ = id_ if id_.startswith(f"{subset}/") else f"{subset}/{id_}"
    return BenchmarkRow(id_, subset, prompt, (*chosen, *rejected), len(chosen), details)


def make_pair(title: str, source: str, index: int, row: dict[str, Any], subset: str | None = None) -> BenchmarkRow:
    """Call [`make_row`] with the columns of a pair. `subset` defaults to the column `subset`; `title` names the benchmark in errors."""
    check_columns(list(row), (*PAIR_COLUMNS, "subset") if subset is None else PAIR_COLUMNS, f"{title} ({source})")
    subset = text_of(source, index, row, "subset") if subset is None else subset
    return make_row(source, index, row, subset, row["chosen"], row["rejected"])


def _texts(name: str, value: Any) -> list[str]:
    """Return one response or several as a list. A list that contains an assistant message is one response."""
    is_list = isinstance(value, list) and not any(isinstance(item, dict) for item in value)
    values = value if is_list else [value]
    if not values:
        raise ValueError(f"`{name}` is an empty list; give at least one response.")
    return [response_of({name: item}, name, allow_empty=True) for item in values]


def text_of(source: str, index: int, row: dict[str, Any], column: str) -> str:
    """Return the text in a column. Raises a `ValueError` that names the file and the row."""
    if not isinstance(row[column], str) or not row[column]:
        raise ValueError(f"{source}, {row_name(index, row)}: `{column}` is {row[column]!r:.60}; give a string.")
    return row[column]


def check_unique(rows: Sequence[BenchmarkRow]) -> list[BenchmarkRow]:
    """Check that there are rows and that no id occurs twice. Raises a `ValueError` that names the id."""
    rows, seen = list(rows), {}
    if not rows:
        raise ValueError("There are no rows to score.")
    for place, row in enumerate(rows):
        if row.id in seen:
            raise ValueError(
                f"Rows {seen[row.id]} and {place} have the same id {row.id!r}. Give each row its own `id`, and list each "
                "file once."
            )
        seen[row.id] = place
    return rows


def check_pairs(rows: Sequence[BenchmarkRow]) -> list[BenchmarkRow]:
    """Apply [`check_unique`], and check that each row has one right and one wrong response. Raises a `ValueError` that names the row."""
    rows = check_unique(rows)
    for row in rows:
        if len(row.responses) != 2:
            raise ValueError(
                f"Row {row.id!r} has {len(row.chosen)} chosen and {len(row.rejected)} rejected responses; give one of each."
            )
    return rows


def split_rewards(rows: Sequence[BenchmarkRow], rewards: Sequence[Sequence[float]]) -> list[RowRewards]:
    """
    Split each row's rewards into those of right and those of wrong responses. Raises a `ValueError` that names the row if a reward is
    missing or not finite.
    """
    if len(rows) != len(rewards):
        raise ValueError(f"{len(rows)} rows but rewards for {len(rewards)}; pass a list of rewards for each row.")
    split = []
    for row, values in zip(rows, rewards, strict=True):
        values = [float(value) for value in values]
        if len(values) != len(row.responses):
            raise ValueError(
                f"Row {row.id!r}: {len(values)} rewards for {len(row.responses)} responses; pass one for each."
            )
        if bad := [value for value in values if not math.isfinite(value)]:
            raise ValueError(
                f"Row {row.id!r}: a reward is {bad[0]}, but rewards must be finite numbers. Score the row again; if "
                "values overflowed, use float32."
            )
        split.append((values[: row.num_chosen], values[row.num_chosen :]))
    return split


def finite_rewards(chosen: Sequence[float], rejected: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return columns of rewards as arrays. Raises a `ValueError` that names the row if a reward is missing, NaN or infinite."""
    better, worse = np.array(chosen, dtype=float), np.array(rejected, dtype=float)
    if (bad := ~(np.isfinite(better) & np.isfinite(worse))).any():
        raise ValueError(f"Row {int(bad.argmax())}: a reward is not a finite number.")
    return better, worse


def pair_rewards(rows: Sequence[BenchmarkRow], rewards: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """Apply [`split_rewards`] to rows with one right and one wrong response."""
    return [(chosen[0], rejected[0]) for chosen, rejected in split_rewards(rows, rewards)]
