"""What happens to rows that are longer than the model may read: an error, a counted drop, or a shortened prompt."""

from collections.abc import Callable
from typing import Any

from ..critique_format import CritiqueFormat


OVERLONG_POLICIES = ("error", "drop", "truncate_prompt")
# The last cuts critiques off, as the reference implementation does; for its format alone
TRAINING_POLICIES = (*OVERLONG_POLICIES, "truncate_end")

# Cutting text changes how it splits into tokens, so a cut can fall short by a few: each is more generous.
_ATTEMPTS = 8


def check_policy(policy: str, known: tuple[str, ...] = OVERLONG_POLICIES):
    """Raise `ValueError` unless `policy` is one of those `known`."""
    if policy not in known:
        raise ValueError(f"`overlong_policy` is {policy!r}; use one of {', '.join(known)}.")


def fit(
    prompt: Any, encode: Callable[[Any], Any], length: Callable[[Any], int], limit: int | None, policy: str,
    critique_format: CritiqueFormat,
) -> tuple[Any, Any]:  # fmt: skip
    """
    Encode a prompt, and deal with it by `policy` if the result is too long.

    Args:
        prompt (`Any`):
            The row's prompt.
        encode (`Callable`):
            Encodes the row with a given prompt.
        length (`Callable`):
            Tokens that an encoded row needs.
        limit (`int`, *optional*):
            Tokens that fit; `None` for no limit.
        policy (`str`):
            `"error"`, `"drop"` or `"truncate_prompt"`.
        critique_format ([`CritiqueFormat`]):
            Shortens prompts.

    Returns:
        `tuple`: The prompt that fits and the encoded row; `(None, None)` for a row that is dropped. The prompt is the
        given object where nothing was shortened.

    Raises:
        `ValueError`: If the row is too long and the policy is `"error"`.
    """
    encoded = encode(prompt)
    needed = length(encoded)
    if limit is None or needed <= limit:
        return prompt, encoded
    if policy == "error":
        raise ValueError(
            f"{needed} tokens with its critique, but {limit} fit. Choose `overlong_policy` 'drop' or 'truncate_prompt', "
            "or another limit (`max_length` in training, `max_new_tokens` for critiques still to be written)."
        )
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
