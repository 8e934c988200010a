"""Limits on requests to the reward server, and a function that counts the values in a body before it is parsed."""

import math
from dataclasses import dataclass, field
from typing import Any


def _limit(default: float, description: str) -> Any:
    """Return a dataclass field; `description` is the help text of its command-line option."""
    return field(default=default, metadata={"help": description})


@dataclass(frozen=True)
class Limits:
    """Limits on requests. Raises `ValueError` if a limit is not above 0, or if `max_batch` critiques would never fit in the queue."""

    max_body_bytes: int = _limit(4 * 2**20, "Maximum size of a request body in bytes.")
    max_batch: int = _limit(256, "Maximum number of critiques per request.")
    # Also the maximum number of waiting and running requests; further requests get 429
    max_queue: int = _limit(1024, "Maximum number of waiting and running critiques.")
    max_new_tokens: int = _limit(1024, "Maximum length of a critique in tokens.")  # also the default for requests
    request_timeout: float = _limit(600.0, "Seconds until a request is cancelled.")
    max_values: int = _limit(50_000, "Maximum number of strings, numbers, arrays and objects in a JSON body.")
    max_messages: int = _limit(1024, "Maximum number of messages in a conversation.")
    max_chars_per_token: float = _limit(
        16.0, "Maximum number of characters in a text, per token of the model's context."
    )
    max_requests_per_minute: float = _limit(math.inf, "Maximum number of requests per minute from one client address.")

    def __post_init__(self):
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"`{name}` is {value}; it must be above 0.")
        if self.max_batch > self.max_queue:
            raise ValueError(
                f"`max_batch` is {self.max_batch} but `max_queue` is {self.max_queue}: a full batch would never be accepted."
            )


def refusal(what: str, name: str, limit: float) -> str:
    """Return the message for a request that exceeds a limit. It names the option that raises the limit."""
    return f"{what}; this server's limit is {limit:.12g} (`--{name}`)."


def count_values(body: bytes, enough: int) -> int:
    """
    Count the values in a JSON body without parsing it. If a quick upper bound is at most `enough`, return that bound. Otherwise, return
    the exact count, except that an empty array or object counts as two values.
    """
    most = _separators(body)
    if most <= enough:
        return most
    outside_texts = body.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"')[::2]
    return _separators(b"".join(outside_texts))


def _separators(text: bytes) -> int:
    return sum(map(text.count, (b",", b"[", b"{"))) + 1
