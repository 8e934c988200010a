"""Read the prompts of any dataset, with stable ids and sources, or the reasons why rows have no usable prompt."""

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from ..conversation import read_prompt
from .folder import Reject


@dataclass(frozen=True, slots=True)
class Prompt:
    """A usable prompt, as text or as messages with `role` and `content`. `row` is its position in the source, from 0."""

    id: str
    prompt: str | list[dict[str, str]]
    source: str
    row: int


@dataclass(frozen=True)
class PromptReject(Reject):
    """
    A row of a source that was left out. `index` is its position in the source. Without a usable prompt, `id` is `None` and `kind`
    is `"failed"`. `details` holds the duplicated prompt, the shared n-grams, or the error.
    """

    source: str

    @classmethod
    def of(cls, prompt: Prompt, reason: str, **details) -> "PromptReject":
        """Reject a usable prompt."""
        return cls(prompt.row, prompt.id, "dropped", reason, prompt.source, details=details)


@dataclass(frozen=True)
class PromptSource:
    """
    A dataset with a column of prompts. The name is part of the ids, so it should not depend on a path.

    With `trajectories`, the column contains UltraInteract's trajectories, lists of `{"from": ..., "value": ...}`. Those with a single
    turn are prompts.
    """

    name: str
    rows: Dataset
    column: str
    trajectories: bool = False

    def read(self) -> Iterator[Prompt | PromptReject]:
        """Yield a [`Prompt`] or a [`PromptReject`] for each row, in order."""
        rows = self.rows.select_columns(self.column)
        for row in range(len(rows)):
            try:
                value = rows[row][self.column]
            except UnicodeDecodeError as error:
                yield PromptReject(row, None, "failed", "not UTF-8", self.name, details={"error": str(error)})
                continue
            if self.trajectories and len(value or []) > 1:
                yield PromptReject(row, None, "dropped", "several turns", self.name)
                continue
            yield self._read(row, value[0]["value"] if self.trajectories and value else value)

    def _read(self, row: int, value: Any) -> Prompt | PromptReject:
        if isinstance(value, str) and not value.strip():
            return PromptReject(row, None, "failed", "empty", self.name)
        try:
            prompt = plain_prompt(value)
        except ValueError as error:
            return PromptReject(row, None, "failed", "not a prompt", self.name, details={"error": str(error)})
        return Prompt(prompt_id(self.name, prompt), prompt, self.name, row)


def plain_prompt(value: Any) -> str | list[dict[str, str]]:
    """
    Check a prompt, and reduce chat messages to `role` and `content`; a string stays as it is.

    Raises `ValueError` if it is empty, does not end with a turn that asks for a response, or contains anything that would be lost
    (tools, tool calls, names).
    """
    conversation = read_prompt(value)
    if isinstance(value, str):
        return value
    if conversation.tools:
        raise ValueError("`prompt` comes with tools; only text is kept.")
    for index, message in enumerate(conversation.messages):
        if extra := sorted(key for key in message if key not in ("role", "content") and message[key]):
            raise ValueError(f"`prompt` message {index} has {', '.join(extra)}; only `role` and `content` are kept.")
    return [{"role": message["role"], "content": message["content"]} for message in conversation.messages]


def turns(prompt: str | list[dict[str, str]]) -> list[tuple[str, str]]:
    """Return role and text of each message. A string is one message of the user."""
    return [("user", prompt)] if isinstance(prompt, str) else [(turn["role"], turn["content"]) for turn in prompt]


def canonical(prompt: str | list[dict[str, str]]) -> str:
    """
    Return a text that is equal for prompts which differ only in white space, in Unicode composition, or in whether a single user
    message is wrapped in a list.

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
    Return an id of 16 hexadecimal digits that depends only on the source's name and the [`canonical`] prompt: not on the position,
    other rows, the run or the machine.
    """
    text = json.dumps([source, canonical(prompt)], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def draw(prompts: list[Prompt], number: int, seed: int) -> list[Prompt]:
    """
    Draw prompts at random, keeping their order; all if there are fewer than `number`. The draw depends on ids and seed, not on
    positions.
    """

    def rank(prompt: Prompt) -> bytes:
        return hashlib.sha256(f"{seed}:{prompt.id}".encode()).digest()

    drawn = {prompt.id for prompt in sorted(prompts, key=rank)[:number]}
    return [prompt for prompt in prompts if prompt.id in drawn]


def count_outcomes(
    sources: list[PromptSource], kept: list[Prompt], rejects: list[PromptReject]
) -> dict[str, dict[str, int]]:
    """Count the rows of each source: read, rejected by reason, and kept."""
    rejected = Counter((reject.source, reject.reason) for reject in rejects)
    reasons = sorted({reason for _, reason in rejected})
    return {
        source.name: {
            "read": len(source.rows),
            **{reason: rejected[source.name, reason] for reason in reasons},
            "kept": sum(prompt.source == source.name for prompt in kept),
        }
        for source in sources
    }
