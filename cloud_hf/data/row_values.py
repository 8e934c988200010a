"""Read the values of a preference row whose columns were converted by [`~data.preference_rows.read_preferences`]."""

import json
from collections.abc import Sequence
from typing import Any

from .column_forms import read_column
from .preference_rows import SIDES, Response, check_response


FEEDBACK_COLUMNS = ("chosen_feedback", "rejected_feedback")
# Columns that describe the critiques in `FEEDBACK_COLUMNS`
CRITIQUE_DETAILS = tuple(f"{side}_{name}" for side in SIDES for name in ("feedback_ids", "finish_reason"))


def prompt_of(row: dict[str, Any]):
    """Return the prompt of a row in a form that [`CritiqueFormat`] accepts, including the tools in the column `tools`."""
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
    """
    Convert a prompt from [`prompt_of`], which may have been shortened since, back to the type of the row's column `prompt`. The tools are
    left out if they are in the column `tools`.
    """
    if not isinstance(prompt, dict) or isinstance(row["prompt"], dict):
        return prompt
    messages = prompt["messages"]
    return messages[0]["content"] if isinstance(row["prompt"], str) else messages


def response_of(row: dict[str, Any], column: str, allow_empty: bool = False) -> Response:
    """
    Return a response: a string if it is a single turn of plain text, otherwise a list of messages.

    Raises `ValueError` if the value is neither text nor messages, or if the response is empty and `allow_empty` is `False`.
    """
    value = row[column]
    if not isinstance(value, str):
        turns = read_column(value, column)[1]
        return check_response(turns if isinstance(turns, list) else [], column, allow_empty)
    if not value.strip() and not allow_empty:
        raise ValueError(f"`{column}` is empty.")
    return value


def judged_chat(prompt: Any, response: Response) -> tuple[Any, Any]:
    """
    Return the prompt and the response in a form that [`CritiqueFormat`] accepts. If the response has several turns, only the last one is
    judged, and the others are moved to the prompt.
    """
    if isinstance(response, str):
        return prompt, response
    *turns, last = response
    judged = last["content"] if last.keys() == {"role", "content"} else last
    if not turns:
        return prompt, judged
    tools = {"tools": prompt["tools"]} if isinstance(prompt, dict) else {}
    given = prompt["messages"] if isinstance(prompt, dict) else prompt
    messages = [*([{"role": "user", "content": given}] if isinstance(given, str) else given), *turns]
    return {"messages": messages, **tools} if tools else messages, judged


def critiques_of(row: dict[str, Any], column: str) -> Sequence[str | list[int]]:
    """
    Return the critiques of a response: token ids if the row has `{column}_ids`, otherwise texts. A single string counts as one critique.

    Raises `ValueError` if a critique is missing, empty or not text, or if the number of id lists differs from the number of texts.
    """
    value, found = row[column], listed(row[column])
    if isinstance(found, list) and all(isinstance(text, str) for text in found):
        value = found  # other JSON lists, such as "[8]", are the text of a critique
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"`{column}` is {texts!r:.60}; give a string or a non-empty list of strings.")
    ids = listed(row.get(f"{column}_ids"))
    if ids is not None:
        ids = [ids] if isinstance(value, str) else ids
        if len(ids) != len(texts):
            raise ValueError(f"`{column}` contains {len(texts)} critique(s) but `{column}_ids` contains {len(ids)}.")
        return ids
    if any(not text.strip() for text in texts):
        raise ValueError(f"`{column}` contains an empty critique.")
    return texts


def check_equal_critiques(row: dict[str, Any], chosen: Sequence, rejected: Sequence):
    """Check that both responses have the same number of critiques, because training pairs the critiques."""
    if len(chosen) != len(rejected):
        raise ValueError(
            f"`chosen_feedback` contains {len(chosen)} critique(s) but `rejected_feedback` contains {len(rejected)}; "
            "these numbers must be equal."
        )


def listed(value: Any) -> Any:
    """Decode a string that contains a JSON list, as in CSV files, and return other values unchanged."""
    if not isinstance(value, str) or not value.startswith("["):
        return value
    try:
        found = json.loads(value)
    except json.JSONDecodeError:
        return value
    is_list = isinstance(found, list) and found and all(isinstance(item, str | int | float | list) for item in found)
    return found if is_list else value
