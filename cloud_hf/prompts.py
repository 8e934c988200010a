"""Check prompts and bring them to one form: chat messages whose contents are text."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Conversation:
    """Validated chat messages with text contents, and tools."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None


def read_prompt(prompt, allow_empty: bool = False) -> Conversation:
    """
    Convert a prompt (a user message, a list of chat messages, or `{"messages": [...], "tools": [...]}`) to messages with text
    contents. Raises `ValueError`, with the reason, if it is not usable; `allow_empty` accepts empty user messages.
    """
    tools = None
    if isinstance(prompt, dict):
        if unknown := sorted(set(prompt) - {"messages", "tools"}):
            raise ValueError(f"`prompt` has the unknown key(s) {', '.join(unknown)}; it takes `messages` and `tools`.")
        prompt, tools = prompt.get("messages"), prompt.get("tools")
    if isinstance(prompt, str):
        if not prompt.strip() and not allow_empty:
            raise ValueError("`prompt` is empty.")
        return Conversation([{"role": "user", "content": prompt}], tools)
    if not isinstance(prompt, list) or not prompt:
        raise ValueError(f"`prompt` is {prompt!r:.60}; give a string or a list of chat messages.")
    messages = [_message(message, index, allow_empty) for index, message in enumerate(prompt)]
    if messages[-1]["role"] not in ("user", "tool"):
        raise ValueError(
            f"`prompt` ends on a {messages[-1]['role']!r} turn. Its last message must be the user's (or a tool's): the "
            "response to judge comes after it."
        )
    return Conversation(messages, tools)


def _message(message, index: int, allow_empty: bool) -> dict[str, Any]:
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(role, str) or not re.fullmatch(r"\w+", role):
        raise ValueError(f"`prompt` message {index} is {message!r:.60}; give a dict with `role` and `content`.")
    # Arrow tables fill missing keys with None
    message = {key: value for key, value in message.items() if value is not None}
    content = message.get("content")
    if isinstance(content, list):
        message["content"] = content = "\n".join(_part_text(part, index) for part in content)
    if not isinstance(content, str) and "tool_calls" not in message:
        raise ValueError(f"`prompt` message {index} ({role}) has no text `content`.")
    if content is not None and not content.strip() and role == "user" and not allow_empty:
        raise ValueError(f"`prompt` message {index} (user) is empty.")
    return message


def _part_text(part, index: int) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind != "text" or not isinstance(part.get("text"), str):
        raise ValueError(
            f"`prompt` message {index} holds the content part {part!r:.60}; CLoud models judge text only: "
            '{"type": "text", "text": "..."}.'
        )
    return part["text"]


def change_texts(conversation: Conversation, change: Callable[[str], str]) -> Conversation:
    """Apply `change` to every text in messages and tools, including argument names, but not to roles."""

    def visit(value) -> Any:
        if isinstance(value, str):
            return change(value)
        if isinstance(value, dict):
            return {change(name): visit(item) for name, item in value.items() if item is not None}
        if isinstance(value, list):
            return [visit(item) for item in value]
        return value

    messages = [{**visit(message), "role": message["role"]} for message in conversation.messages]
    return Conversation(messages, visit(conversation.tools))
