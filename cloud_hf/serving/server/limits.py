"""Limits of the reward server."""

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

    def __post_init__(self):
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"`{name}` is {value}; it must be above 0.")
        if self.max_batch > self.max_queue:
            raise ValueError(
                f"`max_batch` is {self.max_batch} but `max_queue` is {self.max_queue}: a full batch would never be accepted."
            )
