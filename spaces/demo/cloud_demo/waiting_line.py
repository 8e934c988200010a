"""Who is served when: a line in which everybody sees their place, with limits for each and for all."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress

from .problems import Problem


# Seconds between two signs of life. Gradio notices that a visitor has left when something is sent to them.
HEARTBEAT = 0.5


class WaitingLine:
    """
    A line for the model. All its methods belong to one event loop.

    Args:
        places (`int`):
            Requests served at once.
        max_waiting (`int`):
            Requests that may wait.
        max_per_user (`int`):
            Requests of one user that may wait or be served.
    """

    def __init__(self, places: int, max_waiting: int, max_per_user: int):
        self.places = places
        self.max_waiting = max_waiting
        self.max_per_user = max_per_user
        self._waiting: list[Ticket] = []
        self._served: list[Ticket] = []
        self._changed = asyncio.Event()

    @contextmanager
    def join(self, user: str) -> Iterator["Ticket"]:
        """
        Stand in the line, and leave it at the end of the block, whatever happened.

        Raises:
            `Problem`: If the line is full, or the user has as many requests in it as they may.
        """
        own = sum(ticket.user == user for ticket in (*self._waiting, *self._served))
        if own >= self.max_per_user:
            raise Problem(
                f"You have {own} requests under way, which is as many as one visitor may. Wait for one to end."
            )
        if len(self._waiting) >= self.max_waiting:
            raise Problem(
                f"{len(self._waiting)} requests are waiting, which is as many as may. Try again in a minute."
            )
        ticket = Ticket(self, user)
        self._waiting.append(ticket)
        self._move()
        try:
            yield ticket
        finally:
            (self._waiting if ticket in self._waiting else self._served).remove(ticket)
            self._move()

    @property
    def is_empty(self) -> bool:
        """Whether nobody waits or is served."""
        return not self._waiting and not self._served

    async def until(self, is_empty: bool):
        """Wait until the line is empty, or until it is not."""
        while self.is_empty != is_empty:
            await self._changed.wait()

    def _move(self):
        while self._waiting and len(self._served) < self.places:
            self._served.append(self._waiting.pop(0))
        # Those who look now wait for the next change
        self._changed.set()
        self._changed = asyncio.Event()


class Ticket:
    """One request in a [`WaitingLine`]."""

    def __init__(self, line: WaitingLine, user: str):
        self.user = user
        self._line = line

    async def positions(self) -> AsyncIterator[tuple[int, int]]:
        """The request's place in the line (from 1) and the line's length, now and then, until its turn has come."""
        while self in self._line._waiting:
            changed = self._line._changed
            yield self._line._waiting.index(self) + 1, len(self._line._waiting)
            # Not `wait_for`, which may swallow a cancellation (https://github.com/python/cpython/issues/86296)
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT):
                    await changed.wait()
