"""Limits of the reward server, and what is measured against them before a body is parsed."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """
    Limits on requests. Raises `ValueError` if a limit is not above 0, or if `max_batch` critiques would never fit into the queue.
    """

    max_body_bytes: int = 4 * 2**20
    max_batch: int = 256  # critiques of one request, over all its rows
    max_queue: int = 1024  # critiques, and requests, that wait or run at once; further requests get 429
    max_new_tokens: int = 1024  # also the default for requests that give none
    request_timeout: float = 600.0  # seconds; then a request is cancelled and gets 504
    max_values: int = 50_000  # texts, numbers and objects in the JSON of one body
    max_messages: int = 1024  # messages of one conversation
    max_chars_per_token: float = 16.0  # characters of a text, per token of the model's context
    max_requests_per_minute: float = math.inf  # from one client address

    def __post_init__(self):
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"`{name}` is {value}; it must be above 0.")
        if self.max_batch > self.max_queue:
            raise ValueError(
                f"`max_batch` is {self.max_batch} but `max_queue` is {self.max_queue}: a full batch would never be accepted."
            )


def refusal(what: str, name: str, limit: float) -> str:
    """Say that a request exceeds a limit, and which option raises it."""
    return f"{what}; this server's limit is {limit:.12g} (`--{name}`)."


def count_values(body: bytes, enough: int) -> int:
    """Count the values of a JSON body without parsing it: exactly if they might be more than `enough`, else at most."""
    most = _separators(body)
    if most <= enough:
        return most
    outside_texts = body.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"')[::2]
    return _separators(b"".join(outside_texts))


def _separators(text: bytes) -> int:
    return sum(map(text.count, (b",", b"[", b"{"))) + 1
