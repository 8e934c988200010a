"""Distribute requests among replicas of a reward server. Does not import torch."""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit


logger = logging.getLogger(__name__)

# Seconds before a failed replica is tried again; the pause then doubles, up to the maximum
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 30.0


@dataclass
class Replica:
    """
    A server, with counts of its running requests, its answered requests, and its failures since it last reported its model. The server
    gets no requests until it has reported its model (`is_up`). Before the time `back_at`, it gets requests only if no other replica is
    available.
    """

    url: str
    is_up: bool
    in_flight: int = 0
    answered: int = 0
    failures: int = 0
    back_at: float = 0.0


class Replicas:
    """
    The servers of a client, from their addresses, which are given as a list or as one comma-separated string. If there is only one server,
    it always counts as up: the client waits for it. Raises `ValueError` if there are no addresses, or if an address is given twice, does
    not start with http:// or https://, or is malformed.
    """

    def __init__(self, urls: str | Sequence[str]):
        urls = urls.split(",") if isinstance(urls, str) else list(urls)
        urls = [url.strip().rstrip("/") for url in urls]
        for url in urls:
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"`base_url` is {url!r}; it must start with http:// or https://.")
            try:
                urlsplit(url).port  # noqa: B018 - raises an error if the address is malformed
            except ValueError as error:
                raise ValueError(f"`base_url` is {url!r}, which is not an address: {error}.") from error
        if not urls or len(set(urls)) < len(urls):
            raise ValueError(f"`base_url` is {urls}; it must contain at least one address, and no address twice.")
        self.all = [Replica(url, is_up=len(urls) == 1) for url in urls]
        self.several = len(urls) > 1
        self._lock = threading.Lock()  # calls can come from several threads

    def choose(self) -> Replica | None:
        """
        Return the replica with the fewest running requests or, among several such replicas, the one that has answered the fewest requests.
        A replica that is not up takes precedence once its pause is over: it is returned to only one caller, which must ask it for its
        model. Return `None` if no replica is up and no pause is over.
        """
        now = time.monotonic()
        with self._lock:
            due = [replica for replica in self.all if replica.back_at <= now]
            away = [replica for replica in due if not replica.is_up]
            if away:
                away[0].back_at = now + _pause(away[0].failures)
                return away[0]
            # If all queues are full, any replica will do
            usable = due or [replica for replica in self.all if replica.is_up]
            return min(usable, key=lambda replica: (replica.in_flight, replica.answered), default=None)

    @property
    def others_are_up(self) -> bool:
        """Return whether a failed request can immediately be sent to another replica."""
        return self.several and any(replica.is_up and replica.back_at <= time.monotonic() for replica in self.all)

    @contextmanager
    def working(self, replica: Replica) -> Iterator[None]:
        """Count a request as running on a replica while the block runs."""
        with self._lock:
            replica.in_flight += 1
        try:
            yield
        finally:
            with self._lock:
                replica.in_flight -= 1

    def add_answer(self, replica: Replica):
        """Count a request that a replica has answered."""
        with self._lock:
            replica.answered += 1

    def welcome(self, replica: Replica):
        """Send requests to a replica again, now that it has reported its model."""
        with self._lock:
            if replica.failures:
                logger.warning("%s is back.", replica.url)
            # Set the count to the highest of all replicas: among equally busy replicas, `choose` prefers the one that has answered the
            # fewest requests, so it would otherwise send extra requests to this replica until its count had caught up
            replica.answered = max(each.answered for each in self.all)
            replica.is_up, replica.failures, replica.back_at = True, 0, 0.0

    def leave_out(self, replica: Replica, why: str, is_asked: bool = False):
        """
        After a failure, stop using a replica until it is back, unless it is the only one. `is_asked` says whether the failed request
        asked the replica for its model.
        """
        if not self.several:
            return
        with self._lock:
            if replica.is_up or not replica.failures:
                logger.warning("%s is left out until it is back: %s", replica.url, why)
            # Requests that fail together count as one failure
            if replica.is_up or is_asked:
                replica.back_at = time.monotonic() + _pause(replica.failures)
                replica.failures += 1
            replica.is_up = False

    def rest(self, replica: Replica, seconds: float):
        """Prefer the other replicas for this many seconds, because this replica's queue is full."""
        if self.several:
            replica.back_at = time.monotonic() + seconds


def _pause(failures: int) -> float:
    return min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**failures)
