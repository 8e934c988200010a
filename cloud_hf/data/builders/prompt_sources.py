"""Read prompts from datasets, and give each an id that depends only on the name of its source and on its text."""

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, LargeList, List, Value
from tqdm import tqdm

from ...prompts import read_prompt
from ..column_forms import MESSAGES, TEXT, read_column
from ..dataset_folder import Reject
from ..rows import check_columns


_WITH_TOOLS = "`prompt` comes with tools; only text is kept."


@dataclass(frozen=True, slots=True)
class Prompt:
    """A usable prompt, as text or as messages with `role` and `content`. `row` is its zero-based position in the source."""

    id: str
    prompt: str | list[dict[str, str]]
    source: str
    row: int
    form: str = TEXT  # form of the column value that the prompt was read from


@dataclass(frozen=True)
class PromptReject(Reject):
    """
    A rejected row of a source. `index` is the row's position in the source. If the row has no usable prompt, `id` is `None` and `kind` is
    usually `"failed"`. `details` contains the duplicated prompt, the shared n-grams, or the error.
    """

    source: str

    @classmethod
    def of(cls, prompt: Prompt, reason: str, **details) -> "PromptReject":
        """Create the reject for a prompt that is usable but is dropped for some `reason`, such as being a duplicate."""
        return cls(prompt.row, prompt.id, "dropped", reason, prompt.source, details=details)


@dataclass(frozen=True)
class PromptSource:
    """
    A dataset with a column of prompts. The prompts' ids are derived from `name`, so `name` should not depend on a path.

    With `trajectories`, the column contains trajectories in the layout of UltraInteract: lists of `{"from": ..., "value": ...}`. Only
    single-turn trajectories become prompts.
    """

    name: str
    rows: Dataset
    column: str
    trajectories: bool = False
    drop_last_answer: bool = False
    dataset: str = ""  # Hub id or path of the rows

    def read(self) -> Iterator[Prompt | PromptReject]:
        """Yield a [`Prompt`] or a [`PromptReject`] for each row, in order."""
        rows = self.rows.select_columns([name for name in (self.column, "tools") if name in self.rows.column_names])
        for row in range(len(rows)):
            try:
                values = rows[row]
                value = values[self.column]
            except UnicodeDecodeError as error:
                yield PromptReject(row, None, "failed", "not UTF-8", self.name, details={"error": str(error)})
                continue
            if self.trajectories and len(value or []) > 1:
                yield PromptReject(row, None, "dropped", "several turns", self.name)
                continue
            yield self._read(row, value[0]["value"] if self.trajectories and value else value, values.get("tools"))

    def _read(self, row: int, value: Any, tools: Any) -> Prompt | PromptReject:
        if isinstance(value, str) and not value.strip():
            return PromptReject(row, None, "failed", "empty", self.name)
        try:
            if json.loads(tools) if isinstance(tools, str) and tools.strip() else tools:
                raise ValueError(_WITH_TOOLS)
            is_conversation = isinstance(value, dict) and "messages" in value
            form, value = (TEXT, value) if is_conversation else read_column(value, "prompt")
            prompt = plain_prompt(without_last_answer(value) if self.drop_last_answer else value)
        except ValueError as error:
            return PromptReject(row, None, "failed", "not a prompt", self.name, details={"error": str(error)})
        return Prompt(prompt_id(self.name, prompt), prompt, self.name, row, form)


def without_last_answer(value: Any) -> Any:
    """Return a prompt without the assistant turn that it ends with, if it is a list of messages that does."""
    return value[:-1] if isinstance(value, list) and value[-1]["role"] == "assistant" else value


def plain_prompt(value: Any) -> str | list[dict[str, str]]:
    """
    Check a prompt, and reduce chat messages to `role` and `content`. Strings are returned unchanged.

    Raises `ValueError` if the prompt is empty, does not end with a turn that asks for a response, or contains anything that would be lost
    (tools, tool calls or names).
    """
    conversation = read_prompt(value)
    if isinstance(value, str):
        return value
    if conversation.tools:
        raise ValueError(_WITH_TOOLS)
    for index, message in enumerate(conversation.messages):
        if extra := sorted(key for key in message if key not in ("role", "content") and message[key]):
            raise ValueError(f"`prompt` message {index} has {', '.join(extra)}; only `role` and `content` are kept.")
    return [{"role": message["role"], "content": message["content"]} for message in conversation.messages]


def turns(prompt: str | list[dict[str, str]]) -> list[tuple[str, str]]:
    """Return the role and text of each message. A string is one user message."""
    return [("user", prompt)] if isinstance(prompt, str) else [(turn["role"], turn["content"]) for turn in prompt]


def canonical(prompt: str | list[dict[str, str]]) -> str:
    """
    Return a canonical text, which is the same for prompts that differ only in white space, in Unicode composition, or in whether a
    single user message is given as a string or as a list.

    Examples:

    ```python
    >>> canonical("What  is 2+2?\\n") == canonical([{"role": "user", "content": "What is 2+2?"}])
    True
    ```
    """
    parts = [(role, " ".join(unicodedata.normalize("NFC", text).split())) for role, text in turns(prompt)]
    return json.dumps(parts, ensure_ascii=False)


def prompt_id(source: str, prompt: str | list[dict[str, str]]) -> str:
    """
    Return an id of 16 hexadecimal digits that depends only on the source's name and the [`canonical`] prompt, not on the prompt's
    position, other rows, the run or the machine.
    """
    text = json.dumps([source, canonical(prompt)], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def user_text(messages: list[dict[str, Any]]) -> str:
    """Join the user turns of a prompt. Compared separately, a turn as short as "yes" would match too many texts."""
    return "\n".join(message["content"] for message in messages if message["role"] == "user")


def check_prompts(rows: Dataset, column: str, purpose: str):
    """Raise one `ValueError` if a column is missing or contains neither text nor chats, instead of rejecting each of its rows."""
    check_columns(rows.column_names, (column,), purpose)
    feature = rows.features[column]
    if isinstance(feature, Value) and feature.dtype not in ("string", "large_string"):
        raise ValueError(
            f"{purpose}: the column {column!r} contains {feature.dtype}; prompts are strings or lists of chat messages."
        )


def check_trajectories(rows: Dataset, column: str, purpose: str):
    """Check that a column has the layout of UltraInteract's trajectories."""
    check_columns(rows.column_names, (column,), purpose)
    feature = rows.features[column]
    message = feature.feature if isinstance(feature, List | LargeList) else None
    if not isinstance(message, dict) or "value" not in message:
        raise ValueError(f"{purpose}: the column {column!r} does not contain lists of turns with `from` and `value`.")


def read_sources(sources: list[PromptSource], rejects: list[PromptReject]) -> list[Prompt]:
    """Return the usable prompts of all sources in order, and add the other rows to `rejects`."""
    prompts: list[Prompt] = []
    for source in sources:
        for outcome in tqdm(source.read(), total=len(source.rows), desc=f"Reading {source.name}", disable=None):
            if isinstance(outcome, Prompt):
                prompts.append(outcome)
            else:
                rejects.append(outcome)
    forms = Counter((prompt.source, prompt.form) for prompt in prompts if prompt.form not in (TEXT, MESSAGES))
    for (source, form), number in forms.items():
        print(f"{source}: {number} prompts are read as {form}.")
    return prompts
