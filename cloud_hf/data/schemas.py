"""Columns each stage expects, and the errors that say what is wrong with a dataset before anything expensive starts."""

import difflib
import json
from typing import Any


PAIR_COLUMNS = ("prompt", "chosen", "rejected")
FEEDBACK_COLUMNS = ("chosen_feedback", "rejected_feedback")


def check_columns(columns: list[str], required: tuple[str, ...], purpose: str):
    """
    Check that a dataset has the columns a stage needs.

    Args:
        columns (`list[str]`):
            Columns of the dataset.
        required (`tuple[str, ...]`):
            Columns the stage needs.
        purpose (`str`):
            What they are needed for, for the message.

    Raises:
        `ValueError`: Naming the missing columns, and the ones that look like misspelt ones.
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
    """How errors name a row: its position, and its `id` if it has one."""
    return f"row {index}" + (f" (id {row['id']!r})" if row.get("id") is not None else "")


def prompt_of(row: dict[str, Any]):
    """The prompt of a row in the form [`CritiqueFormat`] takes: `tools` beside the messages are folded in."""
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
    """What [`prompt_of`] gives, perhaps shortened, as the row's column holds it: a string stays one, tools stand apart."""
    if not isinstance(prompt, dict):
        return prompt
    messages = prompt["messages"]
    return messages[0]["content"] if isinstance(row["prompt"], str) else messages


def response_of(row: dict[str, Any], column: str, allow_empty: bool = False) -> str:
    """
    A response as text. TRL's form, a list with one assistant message, is unwrapped.

    Raises:
        `ValueError`: If it is not text, or empty where that is not allowed.
    """
    value = row[column]
    if isinstance(value, list) and len(value) == 1 and value[0].get("role") == "assistant":
        value = value[0].get("content")
    if not isinstance(value, str):
        raise ValueError(f"`{column}` is {value!r:.60}; give a string (or a list with one assistant message).")
    if not value.strip() and not allow_empty:
        raise ValueError(f"`{column}` is empty.")
    return value


def critiques_of(row: dict[str, Any], column: str) -> list[str | list[int]]:
    """
    The critiques of a response: the generated ids where `{column}_ids` keeps them, else the text.

    Args:
        row (`dict[str, Any]`):
            A row with `column`, a string or a list of strings, and perhaps `{column}_ids`.
        column (`str`):
            `"chosen_feedback"` or `"rejected_feedback"`.

    Raises:
        `ValueError`: If the critique is missing, not text, or empty, or if there are more ids than texts.
    """
    texts = row[column]
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"`{column}` is {texts!r:.60}; give a string or a non-empty list of strings.")
    ids = row.get(f"{column}_ids")
    if ids is not None:
        ids = [ids] if isinstance(row[column], str) else ids
        if len(ids) != len(texts):
            raise ValueError(f"`{column}` holds {len(texts)} critique(s) but `{column}_ids` {len(ids)}.")
        return ids
    if any(not text.strip() for text in texts):
        raise ValueError(f"`{column}` holds an empty critique.")
    return texts


def check_equal_critiques(row: dict[str, Any], chosen: list, rejected: list):
    """Several critiques train in pairs, so both responses need equally many."""
    if len(chosen) != len(rejected):
        raise ValueError(
            f"`chosen_feedback` holds {len(chosen)} critique(s) but `rejected_feedback` {len(rejected)}; "
            "give equally many."
        )
