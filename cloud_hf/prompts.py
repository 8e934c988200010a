"""Check prompts and responses, and convert them to a single form: chat messages with plain-text content."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


# Maximum nesting depth. Real conversations stay below it; above it, recursive code downstream would run out of stack
MAX_DEPTH = 32

# Maximum number of names and values in one tool call's arguments, if these arrive as JSON text
_MOST_ARGUMENTS = 10_000

# Fields in which APIs and templates store an assistant's reasoning
REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True)
class Conversation:
    """Validated chat messages with plain-text content, and the tools."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None


def read_prompt(prompt, allow_empty: bool = False) -> Conversation:
    """
    Convert a prompt (a user message, a list of chat messages, or `{"messages": [...], "tools": [...]}`) to messages with
    plain-text content. Raises `ValueError`, with the reason, if the prompt is invalid; `allow_empty` accepts empty user messages.
    """
    tools = None
    if isinstance(prompt, dict):
        if unknown := sorted(set(prompt) - {"messages", "tools"}):
            raise ValueError(
                f"`prompt` has the unknown key(s) {', '.join(unknown):.200}; it accepts `messages` and `tools`."
            )
        prompt, tools = prompt.get("messages"), prompt.get("tools")
    if isinstance(prompt, str):
        if not prompt.strip() and not allow_empty:
            raise ValueError("`prompt` is empty.")
        return Conversation([{"role": "user", "content": prompt}], tools)
    if not isinstance(prompt, list) or not prompt:
        raise ValueError(f"`prompt` is {prompt!r:.60}; give a string or a list of chat messages.")
    messages = []
    for index, message in enumerate(prompt):
        name = f"`prompt` message {index}"
        messages.append(_message(message, name))
        role, content = messages[-1]["role"], messages[-1]["content"]
        if not content.strip() and role == "user" and not allow_empty:
            raise ValueError(f"{name} (user) is empty.")
    if messages[-1]["role"] not in ("user", "tool"):
        raise ValueError(
            f"`prompt` ends on a {messages[-1]['role']!r} turn. Its last message must be the user's (or a tool's): the "
            "response to judge comes after it."
        )
    return Conversation(messages, tools)


def read_response(response) -> dict[str, Any]:
    """Convert a response (text, or an assistant message, which may contain tool calls and reasoning) to a message."""
    if isinstance(response, str):
        return {"role": "assistant", "content": response}
    if not isinstance(response, dict):
        raise ValueError(f"`response` is of type {type(response).__name__}; give text or an assistant message.")
    if response.get("role") != "assistant":
        raise ValueError(f"`response` is a message with the role {response.get('role')!r}; give an assistant message.")
    return _message(response, "`response`")


def _message(message, name: str) -> dict[str, Any]:
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(role, str) or not re.fullmatch(r"\w+", role):
        raise ValueError(f"{name} is {message!r:.60}; give a dict with `role` and `content`.")
    # APIs and Arrow tables fill missing keys with null, empty text or empty lists
    message = _without_empty(message, name)
    content = message.get("content", "")
    if isinstance(content, list):
        content = "\n".join(part_text(part, name) for part in content)
    may_lack_content = any(field in message for field in ("tool_calls", *REASONING_FIELDS))
    if not isinstance(content, str) or ("content" not in message and not may_lack_content):
        raise ValueError(f"{name} ({role}) has no text `content`.")
    message["content"] = content
    if "tool_calls" in message:
        calls = message["tool_calls"]
        if not isinstance(calls, list):
            raise ValueError(f"{name} has the `tool_calls` {calls!r:.60}; give a list.")
        message["tool_calls"] = [_tool_call(call, f"{name}, tool call {number}") for number, call in enumerate(calls)]
    return message


def _without_empty(fields: dict[str, Any], name: str) -> dict[str, Any]:
    """Drop null and empty fields, except an empty `content`, and check that the remaining fields are JSON."""
    for field, value in fields.items():
        if not isinstance(field, str) or not field.isidentifier():
            raise ValueError(f"{name} has the field {field!r:.60}, which is not a name.")
        _check_json(value, f"{name}, `{field}`")
    return {
        field: value
        for field, value in fields.items()
        if value not in (None, "", [], {}) or (field == "content" and isinstance(value, str))
    }


def _check_json(value, name: str, depth: int = 0):
    if depth > MAX_DEPTH:
        raise ValueError(f"{name} is nested more than {MAX_DEPTH} levels deep.")
    if isinstance(value, dict):
        if strange := [key for key in value if not isinstance(key, str)]:
            raise ValueError(f"{name} has the key {strange[0]!r:.60}; keys must be strings.")
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            _check_json(item, name, depth + 1)
    elif not isinstance(value, str | int | float | None):
        raise ValueError(f"{name} contains {value!r:.60}; messages can contain only JSON values.")


def _tool_call(call, name: str) -> dict[str, Any]:
    """Return a tool call with its arguments as an object; APIs send arguments as a JSON string."""
    if not isinstance(call, dict):
        raise ValueError(f"{name} is {call!r:.60}; give a dict with `function`.")
    call = _without_empty(call, name)
    if call.get("type", "function") != "function":
        raise ValueError(f"{name} has the type {call['type']!r:.60}; only functions can be called.")
    if "function" in call:
        if not isinstance(call["function"], dict):
            raise ValueError(f"{name} has the `function` {call['function']!r:.60}; give a dict with `name`.")
        return {**call, "function": _function(call["function"], name)}
    return _function(call, name)


def _function(function: dict[str, Any], name: str) -> dict[str, Any]:
    function = _without_empty(function, name)
    # Moved to the end, because templates may show the fields in order, and some clients and vLLM put the arguments first
    arguments = function.pop("arguments", {})
    if isinstance(arguments, str):
        if (count := sum(map(arguments.count, ",[{"))) > _MOST_ARGUMENTS:
            raise ValueError(
                f"{name} has about {count} values in its `arguments`; a tool call can have at most {_MOST_ARGUMENTS}."
            )
        try:
            arguments = json.loads(arguments, object_pairs_hook=_unique) if arguments.strip() else {}
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{name} has `arguments` that are not JSON: {error}") from error
    if not isinstance(arguments, dict):
        raise ValueError(f"{name}: `arguments` is {arguments!r:.60}; it must be a JSON object.")
    _check_json(arguments, f"{name}, `arguments`")
    return {**function, "arguments": arguments}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a name occurs twice among {', '.join(key for key, _ in pairs):.200}")
    return found


def part_text(part, name: str) -> str:
    """Return the text of a content part. Raises a `ValueError` whose message starts with `name` if the part is not plain text."""
    kind = part.get("type") if isinstance(part, dict) else None
    extra = [key for key, value in part.items() if value not in (None, "", [], {})] if isinstance(part, dict) else []
    if kind != "text" or not isinstance(part.get("text"), str) or set(extra) - {"type", "text"}:
        raise ValueError(
            f"{name} contains the content part {part!r:.60}; CLoud models judge text only: "
            '{"type": "text", "text": "..."}.'
        )
    return part["text"]


def with_thinking(thinking: str, content: str) -> str:
    """Return an assistant's text with its reasoning in front, as chat templates write it."""
    return f"<think>\n{thinking}\n</think>\n\n{content}"


def change_texts(conversation: Conversation, change: Callable[[str], str]) -> Conversation:
    """
    Apply `change` to all strings in messages and tools, including argument names. Roles, and the field names that templates look up, stay
    unchanged.
    """

    def visit(value, in_arguments: bool) -> Any:
        if isinstance(value, str):
            return change(value)
        if isinstance(value, list):
            return [visit(item, in_arguments) for item in value]
        if not isinstance(value, dict):
            return value
        return {
            name if name.isidentifier() and not in_arguments else change(name): visit(
                item, in_arguments or name == "arguments"
            )
            for name, item in value.items()
            if item is not None or in_arguments
        }

    messages = [
        {name: value if name == "role" else visit(value, False) for name, value in message.items()}
        for message in conversation.messages
    ]
    return Conversation(messages, visit(conversation.tools, False))
