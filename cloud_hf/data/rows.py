"""Load rows, check their columns, and read prompts and responses from them."""

import difflib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError


if TYPE_CHECKING:
    pass


PAIR_COLUMNS = ("prompt", "chosen", "rejected")
FEEDBACK_COLUMNS = ("chosen_feedback", "rejected_feedback")


class Rows(Protocol):
    """Rows by position: a `datasets.Dataset`, or a list of dictionaries."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...

    def __iter__(self) -> Iterator[Any]: ...


def check_columns(columns: list[str], required: tuple[str, ...], purpose: str):
    """
    Raise `ValueError` for missing columns, and name likely misspellings. `purpose`, for example `"Critique SFT"`, starts the
    message.
    """
    missing = [name for name in required if name not in columns]
    if not missing:
        return
    others = [name for name in columns if name not in required]
    hints = []
    for name in missing:
        if close := difflib.get_close_matches(name, others, n=1, cutoff=0.75):
            hints.append(f"rename {close[0]!r} to {name!r}")
    hint = f" ({'; '.join(hints)}?)" if hints else ""
    raise ValueError(
        f"{purpose} needs the column(s) {', '.join(missing)}{hint}. The dataset has: {', '.join(columns) or 'none'}."
    )


def row_name(index: int, row: dict[str, Any]) -> str:
    """Return how messages name a row: by its position, and its `id` if it has one."""
    return f"row {index}" + (f" (id {row['id']!r})" if row.get("id") is not None else "")


def prompt_of(row: dict[str, Any]):
    """Return the prompt of a row as [`CritiqueFormat`] takes it, with the column `tools` folded in."""
    tools = row.get("tools")
    if not tools:
        return row["prompt"]
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except json.JSONDecodeError as error:
            raise ValueError(f"`tools` is not JSON: {error}") from error
    prompt = row["prompt"]
    return {"messages": [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt, "tools": tools}


def prompt_column(prompt: Any, row: dict[str, Any]) -> Any:
    """Convert a prompt of [`prompt_of`], possibly shortened, back to the type of the row's column, without tools."""
    if not isinstance(prompt, dict):
        return prompt
    messages = prompt["messages"]
    return messages[0]["content"] if isinstance(row["prompt"], str) else messages


def response_of(row: dict[str, Any], column: str, allow_empty: bool = False) -> str:
    """
    Return a response as text. A list with one assistant message, as in TRL, is unwrapped.

    Raises `ValueError` if it is not text, or is empty and `allow_empty` is `False`.
    """
    value = row[column]
    if isinstance(value, list) and len(value) == 1 and value[0].get("role") == "assistant":
        value = value[0].get("content")
    if not isinstance(value, str):
        raise ValueError(f"`{column}` is {value!r:.60}; give a string (or a list with one assistant message).")
    if not value.strip() and not allow_empty:
        raise ValueError(f"`{column}` is empty.")
    return value


def critiques_of(row: dict[str, Any], column: str) -> Sequence[str | list[int]]:
    """
    Return the critiques of a response: token ids if the row has `{column}_ids`, otherwise texts. A single string is one critique.

    Raises `ValueError` if a critique is missing, not text, or empty, or if there are more texts than ids or fewer.
    """
    texts = row[column]
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"`{column}` is {texts!r:.60}; give a string or a non-empty list of strings.")
    ids = row.get(f"{column}_ids")
    if ids is not None:
        ids = [ids] if isinstance(row[column], str) else ids
        if len(ids) != len(texts):
            raise ValueError(f"`{column}` holds {len(texts)} critique(s) but `{column}_ids` holds {len(ids)}.")
        return ids
    if any(not text.strip() for text in texts):
        raise ValueError(f"`{column}` holds an empty critique.")
    return texts


def check_equal_critiques(row: dict[str, Any], chosen: Sequence, rejected: Sequence):
    """Check that both responses have the same number of critiques, because training pairs them."""
    if len(chosen) != len(rejected):
        raise ValueError(
            f"`chosen_feedback` holds {len(chosen)} critique(s) but `rejected_feedback` holds {len(rejected)}; "
            "give the same number of each."
        )


READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


def load_rows(name: str, split: str = "train", config: str | None = None, needs_split: bool = False) -> Dataset:
    """
    Load one split of a Hub id, a `.jsonl`, `.json` or `.parquet` file (`.gz` allowed for JSON), or a `save_to_disk` folder.

    Files, and folders that hold one dataset, have no splits: `split` is ignored for them, or rejected with `needs_split`.

    Raises `ValueError` if the path does not exist, cannot be read, or the split is absent.
    """
    path = Path(name)
    if path.is_dir() and ((path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists()):
        rows = _read_folder(name)
    elif path.is_file():
        suffix = next((suffix for suffix in path.suffixes[-2:] if suffix in READERS), None)
        if suffix is None:
            raise ValueError(f"{name}: a dataset file ends in {', '.join(READERS)} (JSON may be gzipped).")
        rows = _read_file(name, READERS[suffix])
    elif path.is_dir():
        raise ValueError(f"{name} is a folder, but not a dataset written by `save_to_disk`.")
    elif path.is_absolute() or name.startswith(".") or name.endswith((".gz", *READERS)):
        raise ValueError(f"{name}: no such file or dataset folder.")
    else:
        rows = load_dataset(name, config, split=split)
    if needs_split and not isinstance(rows, DatasetDict) and path.exists():
        raise ValueError(f"{name} has no splits, so it has no {split!r}; name another dataset for this split.")
    if isinstance(rows, DatasetDict):
        if split not in rows:
            raise ValueError(f"{name} has no split {split!r}; it has {', '.join(map(str, rows))}.")
        rows = rows[split]
    return rows


def _read_folder(name: str) -> Dataset | DatasetDict:
    try:
        return load_from_disk(name)
    except IndexError as error:  # raised by `datasets` for a folder without data files
        raise ValueError(f"{name} holds no rows.") from error


def _read_file(name: str, kind: str) -> Dataset:
    try:
        return load_dataset(kind, data_files=name, split="train")
    except (DatasetGenerationError, StopIteration, ValueError) as error:
        raise ValueError(
            f"{name} cannot be read as {kind}: {str(error.__cause__ or error) or 'it is empty'}"
        ) from error
