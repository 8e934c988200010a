"""Handle rows that exceed the model's context: raise an error, drop the rows, or shorten their prompts."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from ..critique_format import CritiqueFormat


OVERLONG_POLICIES = ("error", "drop", "truncate_prompt")
# "truncate_end" truncates critiques, as the reference implementation does, and is available only with the reference format
TRAINING_POLICIES = (*OVERLONG_POLICIES, "truncate_end")

# Removing text changes how the rest is tokenized, so an attempt may save fewer tokens than planned. Each attempt adds a larger margin
_ATTEMPTS = 8


class Overlong(ValueError):
    """A row needs more tokens than the limit allows, and the policy is `"error"`."""

    def __init__(self, needed: int, limit: int):
        super().__init__(
            f"{needed} tokens with its critique, but the limit is {limit}. Set `overlong_policy` to 'drop' or 'truncate_prompt', or "
            "change the limit (`max_length` in training, `max_new_tokens` when writing critiques)."
        )
        self.needed = needed


def check_policy(policy: str, known: tuple[str, ...] = OVERLONG_POLICIES):
    """Raise `ValueError` unless `policy` is one of `known`."""
    if policy not in known:
        raise ValueError(f"`overlong_policy` is {policy!r}; use one of {', '.join(known)}.")


def fit_to_context(
    prompt: Any, encode: Callable[[Any], Any], length: Callable[[Any], int], limit: int | None, policy: str,
    critique_format: "CritiqueFormat",
) -> tuple[Any, Any]:  # fmt: skip
    """
    Encode a row, and apply `policy` (`"error"`, `"drop"` or `"truncate_prompt"`) if the row needs more than `limit` tokens.

    `encode` takes a prompt and encodes the row with it; `length` takes an encoded row and counts the tokens that the row needs. Returns
    the prompt (the same object unless it was shortened) and the encoded row, or `(None, None)` if the row is dropped. Raises [`Overlong`]
    if the row is too long and the policy is `"error"`.
    """
    encoded = encode(prompt)
    needed = length(encoded)
    if limit is None or needed <= limit:
        return prompt, encoded
    if policy == "error":
        raise Overlong(needed, limit)
    if policy == "truncate_prompt":
        for attempt in range(_ATTEMPTS):
            prompt = critique_format.truncate_prompt(prompt, needed - limit + 2**attempt - 1)
            if prompt is None:
                break
            encoded = encode(prompt)
            needed = length(encoded)
            if needed <= limit:
                return prompt, encoded
    return None, None
