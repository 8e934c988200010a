"""State of the page: models that load in the background, the queue, and rows that are judged while the demo is idle."""

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

from cloud_hf.scores import NotFinite, Sampling

from . import Problem
from .arguments import DemoArguments, on_zero_gpu, public_name
from .rows import JudgedRows, Judgement


if TYPE_CHECKING:
    from cloud_hf.evaluation.rows import BenchmarkRow

    from .engines import Models


logger = logging.getLogger(__name__)

# Seconds between heartbeats. Gradio notices that a visitor has left only when it sends an update.
HEARTBEAT = 0.5
# Maximum number of concurrent requests for candidates from visitors. Each of them sends several requests to the policy server
_MOST_POLICY_REQUESTS = 4


class Backend:
    """Models, queues and judged rows of a demo."""

    def __init__(self, args: DemoArguments):
        self.args = args
        limits = (args.max_waiting, args.max_waiting_per_user, args.max_waiting_per_address)
        self.line = WaitingLine(args.concurrency or 1, *limits)
        self.policy_line = WaitingLine(_MOST_POLICY_REQUESTS, *limits)
        self.judged = JudgedRows(public_name(args.rows or ""))
        self._models: Future[Models] = Future()
        self._begun = threading.Lock()
        self._judging: asyncio.Task | None = None

    def load(self):
        """Open the models unless loading has already started."""
        if not self._begun.acquire(blocking=False):
            return
        from .engines import open_models  # the import takes seconds

        try:
            self._models.set_result(open_models(self.args))
        except Problem as problem:
            logger.error("%s", problem)
            self._models.set_exception(problem)
        except Exception as error:
            logger.error("The models could not be opened", exc_info=error)
            self._models.set_exception(Problem("The model could not be opened; see the log of the demo."))

    def load_in_background(self, after: float = 0.0):
        """Open the models in a thread after `after` seconds."""
        timer = threading.Timer(after, self.load)
        timer.daemon = True
        timer.start()

    @property
    def is_loaded(self) -> bool:
        """Whether loading has finished, successfully or not."""
        return self._models.done()

    @property
    def is_usable(self) -> bool:
        """Whether the models are loaded and usable."""
        return self.is_loaded and self._models.exception() is None

    @property
    def models(self) -> "Models":
        """The models, once loaded. Raises `Problem` if they could not be opened."""
        return self._models.result(timeout=0)

    @property
    def warnings(self) -> list[str]:
        """Warnings about the models that readers of the rewards should see."""
        return self.models.warnings if self.is_usable else []

    def made(self, sampling: Sampling) -> str:
        """Describe how a result was computed."""
        name, count = public_name(self.models.cloud.name), sampling.num_critiques
        critiques = f"{count} critique{'s' if count > 1 else ''} at temperature {sampling.temperature:g}"
        if self.models.cloud.critique is False:
            return f"{name}, {self.models.made}."
        return f"{name}, {self.models.made}; {critiques}, at most {sampling.max_new_tokens} tokens each."

    async def loaded(self) -> "Models":
        """Wait for the models. Raises `Problem` if they could not be opened."""
        models = await asyncio.shield(asyncio.wrap_future(self._models))
        if self._judging is None:
            if models.results is not None:  # before any visitor opens a row, which would be judged
                self.judged.evaluation, judgements = models.results
                self.judged.wanted = len(judgements)
                for index, judgement in judgements.items():
                    self.judged.add(index, judgement)
            self._judging = asyncio.create_task(self._judge_rows())
        return models

    async def wait_for_turn(self, ticket: "Ticket") -> AsyncGenerator[str, None]:
        """Until the request's turn comes, yield the reason for the wait at least once per heartbeat."""
        loading, begun = asyncio.ensure_future(self.loaded()), time.monotonic()
        try:
            while not loading.done():
                await asyncio.wait({loading}, timeout=HEARTBEAT)
                if not loading.done():
                    yield f"The model is being loaded: {time.monotonic() - begun:.0f} s…"
            loading.result()
        finally:
            loading.cancel()
        async for position, length in ticket.positions():
            yield f"In the queue: number {position} of {length}…"

    # ---------------------------------------------------------------------------------- rows judged in the background

    async def _judge_rows(self):
        """Judge the first rows while the demo is idle, unless an evaluation has already judged them."""
        rows, judged = self.models.rows[: self.args.reference_rows], self.judged
        if judged.evaluation is not None:
            return
        if on_zero_gpu():
            judged.problem = (
                "On ZeroGPU, rows are judged only when a visitor opens them, because GPUs are reserved for visitors."
            )
            return
        if rows and len(rows) < JudgedRows.FEWEST:
            judged.problem = (
                f"There are too few rows to compare a reward with: this demo judges {len(rows)}, "
                f"but needs at least {JudgedRows.FEWEST}."
            )
        judged.wanted = len(rows)
        for index, row in enumerate(rows):
            try:
                if index not in judged.found:
                    judged.add(index, await self._judge_while_idle(row))
            except (ValueError, Problem, NotFinite) as error:
                logger.warning("Could not judge %s. %s", row.id, error)
                judged.wanted -= 1
            except Exception as error:
                logger.error("The rows could not be judged", exc_info=error)
                judged.wanted = len(judged.found)
                break
        if rows and not judged.is_usable and judged.problem is None:
            judged.problem = "This model's reward distribution could not be measured; see the log of the demo."

    async def _judge_while_idle(self, row: "BenchmarkRow") -> Judgement:
        """Judge a row while the queue is empty. A visitor's request cancels the work, which restarts when the queue is empty again."""
        while True:
            await self.line.until(is_empty=True)
            work = asyncio.ensure_future(self._judge_row(row))
            visitor = asyncio.ensure_future(self.line.until(is_empty=False))
            try:
                await asyncio.wait({work, visitor}, return_when=asyncio.FIRST_COMPLETED)
                if work.done():
                    return work.result()
            finally:
                work.cancel()
                visitor.cancel()
                await asyncio.wait({work, visitor})

    async def _judge_row(self, row: "BenchmarkRow") -> Judgement:
        sampling = Sampling(max_new_tokens=self.args.max_new_tokens)
        engines = [engine for engine in (self.models.cloud, self.models.classic) if engine is not None]
        asked = [engine.score(row.prompt, response, sampling) for engine in engines for response in row.responses]
        scores = await asyncio.gather(*asked)
        return Judgement(*[(scores[i], scores[i + 1]) for i in range(0, len(scores), 2)])


# ------------------------------------------------------------------------------------------------------ waiting line


class Visitor(NamedTuple):
    """The sender of a request: a browser tab or API client, and its network address."""

    session: str
    address: str


class WaitingLine:
    """
    Queue of requests for a model. Each request is told its position. A queue belongs to one event loop.

    At most `places` requests are served concurrently, and at most `max_waiting` requests wait. Of all these, at most `max_per_user` come
    from one user, and at most `max_per_address` from one address. Addresses take turns: the first request from an address precedes the
    second from another.
    """

    def __init__(self, places: int, max_waiting: int, max_per_user: int, max_per_address: int):
        self.places = places
        self.max_waiting = max_waiting
        self.max_per_user = max_per_user
        self.max_per_address = max_per_address
        self._waiting: list[Ticket] = []
        self._served: list[Ticket] = []
        self._changed = asyncio.Event()

    @contextmanager
    def join(self, user: Visitor) -> Iterator["Ticket"]:
        """
        Queue a request for the duration of the block.

        Raises:
            `Problem`: If the queue is full, or the user or the user's address has reached the limit.
        """
        under_way = [ticket.user for ticket in (*self._served, *self._waiting)]
        own, here = under_way.count(user), sum(other.address == user.address for other in under_way)
        if own >= self.max_per_user:
            raise Problem(
                f"You have {own} requests under way, which is the limit for one visitor. Wait for one to finish."
            )
        if here >= self.max_per_address:
            raise Problem(
                f"Your network address has {here} requests under way, which is the limit for one address. Wait for one to finish."
            )
        if len(self._waiting) >= self.max_waiting:
            raise Problem(f"{len(self._waiting)} requests are waiting, which is the limit. Try again in a minute.")
        ticket = Ticket(self, user)
        self._waiting.insert(self._place_of(here), ticket)
        self._move()
        try:
            yield ticket
        finally:
            (self._waiting if ticket in self._waiting else self._served).remove(ticket)
            self._move()

    def _place_of(self, earlier: int) -> int:
        """Return the index at which to queue a request from an address with `earlier` requests under way, so that addresses take turns."""
        counts = Counter(ticket.user.address for ticket in self._served)
        for place, ticket in enumerate(self._waiting):
            counts[ticket.user.address] += 1
            if counts[ticket.user.address] > earlier + 1:
                return place
        return len(self._waiting)

    @property
    def is_empty(self) -> bool:
        """Whether no request is waiting or being served."""
        return not self._waiting and not self._served

    async def until(self, is_empty: bool):
        """Wait until the queue is empty or, with `is_empty=False`, until it is not."""
        while self.is_empty != is_empty:
            await self._changed.wait()

    def _move(self):
        while self._waiting and len(self._served) < self.places:
            self._served.append(self._waiting.pop(0))
        # Each change has its own event, so whoever waits from now on waits for the next change
        self._changed.set()
        self._changed = asyncio.Event()


class Ticket:
    """One request in a [`WaitingLine`]."""

    def __init__(self, line: WaitingLine, user: Visitor):
        self.user = user
        self._line = line

    async def positions(self) -> AsyncGenerator[tuple[int, int], None]:
        """Yield the request's position (from 1) and the queue length at every heartbeat or change, until its turn comes."""
        while self in self._line._waiting:
            changed = self._line._changed
            yield self._line._waiting.index(self) + 1, len(self._line._waiting)
            # Not `wait_for`, which may swallow a cancellation (https://github.com/python/cpython/issues/86296)
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT):
                    await changed.wait()
