"""
Read values of a dataset column as text or as chat messages, depending on their form.

A value can be text (or, for a response, a list with a single string), chat messages with `role` and `content`, ShareGPT turns with `from`
and `value`, messages or turns encoded as JSON, or an Anthropic transcript (`"\\n\\nHuman: …"`). A single message need not be in a list. The
content of a message may be a list of text parts. Null and empty fields, such as those in dumps of OpenAI objects, are ignored.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from ..prompts import part_text


# Columns of a pair that contain its responses
SIDES = ("chosen", "rejected")

# Kinds of column values
TEXT, MESSAGES, SHAREGPT, TRANSCRIPT, ABSENT = "text", "messages", "ShareGPT turns", "transcripts", "absent"
WITH_TOOLS = "messages with tools"
JSON_MESSAGES, JSON_SHAREGPT = "JSON of messages", "JSON of ShareGPT turns"
ONE_MESSAGE, ONE_TEXT, MESSAGE_COLUMNS = "one message", "lists of one text", "columns of messages"

_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant", "model": "assistant",
    "bot": "assistant", "system": "system", "tool": "tool", "observation": "tool", "prompter": "user",
}  # fmt: skip

TURN = re.compile(r"\n\n(Human|Assistant):")
_LOOKS_LIKE_MESSAGES = re.compile(r"\s*\[?\s*\{\s*['\"](role|content|from|value)['\"]\s*:")
_MAY_BE_JSON = re.compile(r"\s*\"?\s*\[?\s*\{\s*\\?['\"]")


def read_column(value: Any, column: str) -> tuple[str, str | list[dict[str, Any]]]:
    """Return the kind of a prompt or response, and its text or messages. Raises `ValueError` naming the column."""
    if isinstance(value, str):
        return _read_text(value, column)
    if (
        isinstance(value, dict)
        and value.keys() & {"role", "from"}
        and all(isinstance(v, list) for v in value.values())
    ):
        # `datasets` stores a `Sequence` of messages as a dict of lists
        turns = [dict(zip(value, turn, strict=True)) for turn in zip(*value.values(), strict=True)]
        return MESSAGE_COLUMNS, _read_turns(turns, column)[1]
    turns = [value] if isinstance(value, dict) else value
    if column == "prompt" and isinstance(value, dict) and value.get("messages"):
        return WITH_TOOLS, _read_turns(value["messages"], column)[1]
    if isinstance(turns, list) and turns and all(isinstance(turn, dict) for turn in turns):
        kind, messages = _read_turns(turns, column)
        return (ONE_MESSAGE if column == "prompt" and kind == MESSAGES and turns is not value else kind), messages
    if column in SIDES and isinstance(value, list) and all(isinstance(text, str) for text in value) and value:
        if len(value) > 1:
            raise ValueError(f"`{column}` contains {len(value)} strings; put each pair in its own row.")
        kind, text = _read_text(value[0], column)
        return (ONE_TEXT if kind == TEXT else kind), text
    raise ValueError(f"`{column}` is {value!r:.60}; give a string or a list of chat messages.")


def _read_text(value: str, column: str) -> tuple[str, str | list[dict[str, Any]]]:
    if not value.strip():
        raise ValueError(f"`{column}` is empty.")
    lines = value.replace("\r\n", "\n")
    if lines.startswith("\n\nHuman:") or (lines.lstrip().startswith("Human:") and "\n\nAssistant:" in lines):
        return TRANSCRIPT, _transcript(lines, column)
    if column == "prompt" and "\n\nHuman:" in lines and lines.rstrip().endswith("\n\nAssistant:"):
        raise ValueError(
            "`prompt` could be one message, or a preamble followed by a transcript. Give chat messages, with the preamble as "
            "the system message."
        )
    if _MAY_BE_JSON.match(value) and (found := _read_json(value, column)) is not None:
        return found
    return TEXT, value


def _read_json(value: str, column: str) -> tuple[str, list[dict[str, Any]]] | None:
    """Return the kind and the messages if the text encodes messages as JSON (once or twice), otherwise `None`."""
    try:
        found = json.loads(value)
    except (ValueError, RecursionError) as error:
        if not _LOOKS_LIKE_MESSAGES.match(value):
            return None
        raise ValueError(
            f"`{column}` could be text, or chat messages that are not valid JSON ({error}). Write messages with `json.dumps`."
        ) from error
    if isinstance(found, str):
        return _read_json(found, column)
    if isinstance(found, dict) and isinstance(found.get("messages"), list) and found.keys() <= {"messages", "tools"}:
        raise ValueError(
            f"`{column}` could be text, or a JSON-encoded chat with the key `messages`. Give only the list of messages, and put the "
            "tools in the column `tools`."
        )
    turns = found if isinstance(found, list) else [found]
    if not all(map(_is_turn, turns)):
        return None
    kind, messages = _read_turns(turns, column)
    return (JSON_SHAREGPT if kind == SHAREGPT else JSON_MESSAGES), messages


def _is_turn(value: Any) -> bool:
    names = value.keys() if isinstance(value, dict) else ()
    return {"from", "value"} <= set(names) or ("role" in names and ("content" in names or "tool_calls" in names))


def _transcript(value: str, column: str) -> list[dict[str, Any]]:
    """Split a transcript into messages. An empty assistant turn at the end is a placeholder for the response and is dropped."""
    parts = TURN.split("\n\n" + value.lstrip())[1:]
    turns = [
        {"role": "user" if speaker == "Human" else "assistant", "content": text.strip()}
        for speaker, text in zip(parts[::2], parts[1::2], strict=True)
    ]
    if turns[-1] == {"role": "assistant", "content": ""}:
        turns.pop()
        if column != "prompt":
            raise ValueError(f"`{column}` is empty.")
    return turns


def _read_turns(turns: list[dict[str, Any]], column: str) -> tuple[str, list[dict[str, Any]]]:
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(f"`{column}` contains {turns!r:.60}; give a list of chat messages.")
    kinds = {MESSAGES if turn.get("role") is not None else SHAREGPT for turn in turns}
    if len(kinds) > 1:
        raise ValueError(f"`{column}` mixes messages with `role` and turns with `from`.")
    [kind] = kinds
    return kind, [
        (message if kind == MESSAGES else _sharegpt)(turn, column, place) for place, turn in enumerate(turns)
    ]


def message(turn: Mapping[str, Any], column: str, place: int) -> dict[str, Any]:
    """Return a message without null and empty fields, with its text parts joined. Raises `ValueError` if it is not a valid message."""
    if not isinstance(turn.get("role"), str) or ("content" not in turn and not turn.get("tool_calls")):
        raise ValueError(f"`{column}` message {place} is {dict(turn)!r:.60}; give a dict with `role` and `content`.")
    role = turn["role"]
    if (name := _ROLES.get(role.lower(), role)) != role and name != "tool":
        raise ValueError(f"`{column}` message {place} has the role {role!r}; use {name!r}.")
    kept = {name: value for name, value in turn.items() if name == "content" or value not in (None, "", [], {})}
    if isinstance(kept.get("content"), list):
        kept["content"] = "\n".join(part_text(part, f"`{column}` message {place}") for part in kept["content"])
    if kept.get("content") is None:
        kept.pop("content", None)
        if "tool_calls" not in kept:
            raise ValueError(f"`{column}` message {place} ({turn['role']}) has no text `content`.")
    elif not isinstance(kept["content"], str):
        raise ValueError(f"`{column}` message {place}: `content` is {kept['content']!r:.60}; give text.")
    return kept


def _sharegpt(turn: Mapping[str, Any], column: str, place: int) -> dict[str, Any]:
    speaker, value = turn.get("from"), turn.get("value")
    if speaker == "function_call":
        raise ValueError(f"`{column}` turn {place} is a `function_call`; write it as a message with `tool_calls`.")
    if not isinstance(speaker, str) or speaker not in _ROLES or not isinstance(value, str):
        known = ", ".join(_ROLES)
        raise ValueError(
            f"`{column}` turn {place} is {dict(turn)!r:.60}; give `value` as text and `from` as one of {known}."
        )
    if extra := sorted(name for name, held in turn.items() if name not in ("from", "value", "weight") and held):
        raise ValueError(f"`{column}` turn {place} has {', '.join(extra)}; only `from` and `value` are read.")
    return {"role": _ROLES[speaker], "content": value}
