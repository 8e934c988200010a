"""Build skeletons of conversations: the same turns and fields, with a mark in place of each text.

A rendered skeleton shows which fields a chat template writes, and which control tokens come from the template itself. It is short and
depends only on the shape of a conversation, so a single rendering serves all conversations of the same shape.
"""

import copy
import json
import re
from collections.abc import Iterator
from functools import reduce
from operator import getitem
from typing import Any

from .prompts import Conversation


# Roles that answer tool calls
_TOOL_ROLES = ("tool", "function", "ipython", "observation")

# Roles that templates treat specially; control tokens that contain these names come from the template
USUAL_ROLES = ("system", "developer", "user", "assistant", *_TOOL_ROLES)

# Words in JSON schemas that templates branch on, so skeletons keep them
_SCHEMA_WORDS = ("object", "string", "integer", "number", "boolean", "array", "null", "function")

# Marks for numbers start here, above the numbers that templates write themselves
_FIRST_NUMBER = 70000

# Fields of a tool call that carry no information
_DEFAULTS = ((("type",), "function"), (("arguments",), {}), (("function", "arguments"), {}))

# After this many failed searches, stop looking for the arguments of tool calls in a rendering
_MOST_SEARCHES = 16

# Matches text marks, even if another mark follows directly, and number marks
_MARK = re.compile(r"(?=(x\d+x+))x\d+|\d+(?:\.5)?")


class Skeleton:
    """
    The skeleton of a conversation, and the marks and constants that its rendering must show.

    Attributes:
        conversation (`Conversation`): The skeleton itself.
        fields (`list[tuple[int, str, str]]`): The message index, field name and mark of every text, number and argument
            name, except redundant ones.
        constants (`list[tuple]`): Paths of booleans, nulls and empty values, which cannot be replaced with marks.
    """

    def __init__(self, conversation: Conversation):
        self.fields: list[tuple[int, str, str]] = []
        self.constants: list[tuple] = []
        self._count = 0
        self._implied = set(_implied_fields(conversation.messages))
        self.conversation = Conversation(
            [
                {
                    name: value if name == "role" else self._visit(value, (index, name))
                    for name, value in message.items()
                }
                for index, message in enumerate(conversation.messages)
            ],
            _tool_skeleton(conversation.tools),
        )

    @property
    def key(self) -> str:
        """The shape of the conversation, as text."""
        return json.dumps([self.conversation.messages, self.conversation.tools, self.fields], default=repr)

    def roles(self) -> list[tuple[str, list[int]]]:
        """
        Return the roles to check (all but user and assistant), each with the indices of the messages to check together. If a role is in
        `USUAL_ROLES`, all its messages are checked together. Otherwise, only its first and last message are checked, one at a time.
        """
        found: dict[str, list[int]] = {}
        for index, message in enumerate(self.conversation.messages):
            if message["role"] not in ("user", "assistant"):
                found.setdefault(message["role"], []).append(index)
        checks = []
        for role, indices in found.items():
            groups = [indices] if role in USUAL_ROLES else [[index] for index in _ends(indices)]
            checks += [(role, group) for group in groups]
        return checks

    def constants_to_check(self, text: str) -> list[tuple]:
        """
        Return the paths of the constants to check: for each role, field and depth, the first and last boolean and the first and
        last other constant. Arguments that appear verbatim in a rendering, as JSON, need no check.
        """
        messages = self.conversation.messages
        found: dict[tuple, list[tuple]] = {}
        shown: set[tuple] = set()
        hidden: set[tuple] = set()
        position = 0
        for path in self.constants:
            root = path[: path.index("arguments") + 1] if "arguments" in path else ()
            # Search only for objects, because they contain marks; other JSON could match unrelated text that the template wrote
            is_object = root and isinstance(_at(messages, root), dict)
            if is_object and root not in shown and root not in hidden and len(hidden) < _MOST_SEARCHES:
                start = text.find(json.dumps(_at(messages, root), ensure_ascii=False), position)
                (hidden if start < 0 else shown).add(root)
                position = max(position, start)
            if root not in shown:
                role = messages[path[0]]["role"]
                field = re.sub(r"\[\d+\]", "", spell(path))
                found.setdefault((role, field, len(path), isinstance(_at(messages, path), bool)), []).append(path)
        return [path for paths in found.values() for path in _ends(paths)]

    def without_role(self, indices: list[int]) -> Conversation:
        """Return the skeleton with an unknown role in the given messages."""
        messages = [
            {**message, "role": "x"} if index in indices else message
            for index, message in enumerate(self.conversation.messages)
        ]
        return Conversation(messages, self.conversation.tools)

    def with_other_constant(self, path: tuple) -> Conversation:
        """Return the skeleton with the constant at `path` replaced with another value."""
        messages = copy.deepcopy(self.conversation.messages)
        place = _at(messages, path[:-1])
        place[path[-1]] = not place[path[-1]] if isinstance(place[path[-1]], bool) else "x0x"
        return Conversation(messages, self.conversation.tools)

    def _visit(self, value, path: tuple) -> Any:
        if isinstance(value, dict) and value:
            names = [self._mark(path) if "arguments" in path else name for name in value]
            items = zip(names, value.values(), strict=True)
            return {name: self._visit(item, (*path, name)) for name, item in items}
        if isinstance(value, list) and value:
            return [self._visit(item, (*path, place)) for place, item in enumerate(value)]
        if path[1:2] == ("tool_calls",) and (path[3:], value) in _DEFAULTS:
            return value
        if isinstance(value, str) and value.strip():
            # The mark keeps an id's length, because some templates check it
            return self._mark(path, len(value) if path[-1] in ("id", "tool_call_id") else 0)
        if isinstance(value, int | float) and not isinstance(value, bool):
            self._count += 1
            number = _FIRST_NUMBER + self._count + (0.5 if isinstance(value, float) else 0)
            self.fields.append((path[0], spell(path), str(number)))
            return number
        if path[1:] != ("content",):
            self.constants.append(path)
        return value

    def _mark(self, path: tuple, length: int = 0) -> str:
        self._count += 1
        mark = f"x{self._count}x".ljust(length, "x")
        if path not in self._implied:
            self.fields.append((path[0], spell(path), mark))
        return mark


def _at(messages: list[dict[str, Any]], path: tuple) -> Any:
    return reduce(getitem, path, messages)


def marks_in(text: str) -> set[str]:
    """Find all marks in a rendering, in one pass."""
    return {match.group(1) or match.group() for match in _MARK.finditer(text)}


def _ends(items: list) -> list:
    return items[:1] if len(items) == 1 else [items[0], items[-1]]


def spell(path: tuple) -> str:
    """Write the path of a field, down to the arguments of a tool call, as in `tool_calls[0].function.arguments`."""
    parts = path[1 : path.index("arguments") + 1] if "arguments" in path else path[1:]
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).removeprefix(".")


def _implied_fields(messages: list[dict[str, Any]]) -> Iterator[tuple]:
    """
    Yield the paths of redundant fields: the ids of tool calls whose results are missing or follow in the same order, and the function
    names that these results repeat.
    """
    waiting: list[tuple[tuple, dict[str, Any]]] = []
    for index, message in enumerate(messages):
        if message["role"] in _TOOL_ROLES and waiting:
            path, call = waiting.pop(0)
            if message.get("tool_call_id", call.get("id")) == call.get("id"):
                yield from ((index, "tool_call_id"), path)
            if message.get("name") == call.get("function", call).get("name"):
                yield (index, "name")
            continue
        yield from (path for path, _ in waiting)
        calls = enumerate(message.get("tool_calls", ()))
        waiting = [((index, "tool_calls", place, "id"), call) for place, call in calls]
    yield from (path for path, _ in waiting)


def _tool_skeleton(value) -> Any:
    if isinstance(value, dict):
        return {name: _tool_skeleton(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_tool_skeleton(item) for item in value]
    return "x" if isinstance(value, str) and value.strip() and value not in _SCHEMA_WORDS else value
