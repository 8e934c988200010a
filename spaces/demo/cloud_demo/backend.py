"""State of the page: models that load in the background, the queue, and the reward distribution."""

import asyncio
import logging
import math
import os
import statistics
import threading
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from cloud_hf.scores import NotFinite, Sampling

from . import Problem
from .arguments import DemoArguments


if TYPE_CHECKING:
    from cloud_hf.evaluation.rows import BenchmarkRow

    from .engines import Models


logger = logging.getLogger(__name__)

# Seconds between heartbeats. Gradio notices that a visitor has left only when it sends them something.
HEARTBEAT = 0.5
# Visitors for whom the policy server writes concurrently
_MOST_POLICY_REQUESTS = 4


class Backend:
    """Models, waiting line and reward distribution of one demo."""

    def __init__(self, args: DemoArguments):
        self.args = args
        limits = (args.max_waiting, args.max_waiting_per_user, args.max_waiting_per_address)
        self.line = WaitingLine(args.concurrency or 1, *limits)
        self.policy_line = WaitingLine(_MOST_POLICY_REQUESTS, *limits)
        self.distribution = RewardDistribution(source="", wanted=0)
        self._models: Future[Models] = Future()
        self._begun = threading.Lock()
        self._measuring: asyncio.Task | None = None

    def load(self):
        """Open the models unless loading has already started."""
        if not self._begun.acquire(blocking=False):
            return
        from .engines import open_models  # takes seconds

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
        """Whether the models are open."""
        return self.is_loaded and self._models.exception() is None

    @property
    def models(self) -> "Models":
        """The models, once loaded. Raises `Problem` if they could not be opened."""
        return self._models.result(timeout=0)

    async def loaded(self) -> "Models":
        """Wait for the models. Raises `Problem` if they could not be opened."""
        models = await asyncio.shield(asyncio.wrap_future(self._models))
        if self._measuring is None:
            self._measuring = asyncio.create_task(self._measure())
        return models

    async def wait_for_turn(self, ticket: "Ticket") -> AsyncGenerator[str, None]:
        """Yield at every heartbeat why a request waits, until its turn comes."""
        loading = asyncio.ensure_future(self.loaded())
        try:
            while not loading.done():
                await asyncio.wait({loading}, timeout=HEARTBEAT)
                if not loading.done():
                    yield "The model is being loaded…"
            loading.result()
        finally:
            loading.cancel()
        async for position, length in ticket.positions():
            yield f"In the queue: number {position} of {length}…"

    # --------------------------------------------------------------------------------------- reward distribution

    async def _measure(self):
        """Score the first rows while no request waits."""
        if os.environ.get("SPACES_ZERO_GPU") == "true":
            self.distribution.problem = "On ZeroGPU the rewards of this model are not measured: GPUs are for visitors."
            return
        rows = self.models.rows[: self.args.reference_rows]
        if self.models.rows and 2 * len(rows) < RewardDistribution.FEWEST:
            self.distribution.problem = (
                f"This model's rewards are not measured: {len(rows)} reference rows are too few to compare with. "
                f"`--reference_rows` is {self.args.reference_rows} and there are {len(self.models.rows)} rows; "
                f"it takes at least {RewardDistribution.FEWEST // 2}."
            )
            return
        self.distribution = RewardDistribution(self.args.rows or "", 2 * len(rows))
        await self._measure_rows(rows, self.distribution)

    async def _measure_rows(self, rows: Sequence["BenchmarkRow"], distribution: "RewardDistribution"):
        for row in rows:
            try:
                rewards = await self._score_row(row)
            except (ValueError, Problem, NotFinite) as error:
                logger.warning("Row %s is left out of the reward distribution. %s", row.id, error)
                distribution.wanted -= 2
            except Exception as error:
                logger.error("The reward distribution could not be measured", exc_info=error)
                distribution.wanted = len(distribution.rewards)
                break
            else:
                for reward in rewards:
                    distribution.add(reward)
        if distribution.wanted < 2 * len(rows) and not distribution.is_usable:
            distribution.problem = "This model's rewards could not be measured; see the log of the demo."

    async def _score_row(self, row: "BenchmarkRow") -> list[float]:
        """Return the rewards of both responses."""
        return [await self._score_while_idle(row.prompt, response) for response in row.responses]

    async def _score_while_idle(self, prompt, response: str) -> float:
        """Score a response while the queue is empty. A visitor's request interrupts it; it restarts when the queue is empty again."""
        while True:
            await self.line.until(is_empty=True)
            sampling = Sampling(max_new_tokens=self.args.max_new_tokens)
            work = asyncio.ensure_future(self.models.cloud.score(prompt, response, sampling))
            visitor = asyncio.ensure_future(self.line.until(is_empty=False))
            try:
                await asyncio.wait({work, visitor}, return_when=asyncio.FIRST_COMPLETED)
                if work.done():
                    return work.result().reward
            finally:
                work.cancel()
                visitor.cancel()
                await asyncio.wait({work, visitor})


# ------------------------------------------------------------------------------------------------------ waiting line


class Visitor(NamedTuple):
    """Whose request it is: a browser tab or program, and the network address that it comes from."""

    session: str
    address: str


class WaitingLine:
    """
    Queue for the model that tells every request its position. It belongs to one event loop.

    At most `places` requests are served at once, and `max_waiting` wait; of these, `max_per_user` are of one user and
    `max_per_address` of one address. Addresses take turns: the first request of one comes before the second of another.
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
            `Problem`: If the queue is full, or the user or their address has reached its limit.
        """
        under_way = [ticket.user for ticket in (*self._served, *self._waiting)]
        own, here = under_way.count(user), sum(other.address == user.address for other in under_way)
        if own >= self.max_per_user:
            raise Problem(f"You have {own} requests under way, the limit for one visitor. Wait for one to end.")
        if here >= self.max_per_address:
            raise Problem(
                f"Your network address has {here} requests under way, the limit for one. Wait for one to end."
            )
        if len(self._waiting) >= self.max_waiting:
            raise Problem(f"{len(self._waiting)} requests are waiting, the limit. Try again in a minute.")
        ticket = Ticket(self, user)
        self._waiting.insert(self._place_of(here), ticket)
        self._move()
        try:
            yield ticket
        finally:
            (self._waiting if ticket in self._waiting else self._served).remove(ticket)
            self._move()

    def _place_of(self, earlier: int) -> int:
        """Return where a request waits whose address has `earlier` ones: before those whose addresses have more."""
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
        """Wait until the queue is empty, or until it is not."""
        while self.is_empty != is_empty:
            await self._changed.wait()

    def _move(self):
        while self._waiting and len(self._served) < self.places:
            self._served.append(self._waiting.pop(0))
        # A new event per change, so that current waiters wait for the next change
        self._changed.set()
        self._changed = asyncio.Event()


class Ticket:
    """One request in a [`WaitingLine`]."""

    def __init__(self, line: WaitingLine, user: Visitor):
        self.user = user
        self._line = line

    async def positions(self) -> AsyncGenerator[tuple[int, int], None]:
        """Yield the position (from 1) and the queue's length at every heartbeat or change, until the request's turn."""
        while self in self._line._waiting:
            changed = self._line._changed
            yield self._line._waiting.index(self) + 1, len(self._line._waiting)
            # Not `wait_for`, which may swallow a cancellation (https://github.com/python/cpython/issues/86296)
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT):
                    await changed.wait()


# ----------------------------------------------------------------------------------------------------------- rewards


@dataclass
class RewardDistribution:
    """Rewards of the reference rows known so far, in ascending order. `wanted` is their final number, two per row."""

    source: str
    wanted: int
    rewards: list[float] = field(default_factory=list)
    # Reason why no more rewards will follow
    problem: str | None = None

    # Fewer rewards say little about another reward's rank
    FEWEST = 8

    @property
    def is_usable(self) -> bool:
        """Whether there are enough rewards to compare with."""
        return len(self.rewards) >= self.FEWEST

    def add(self, reward: float):
        """Insert a reward."""
        self.rewards.insert(bisect_left(self.rewards, reward), reward)

    def percentile(self, reward: float) -> float:
        """Return the percentage of lower rewards; equal ones count half."""
        below, up_to = bisect_left(self.rewards, reward), bisect_right(self.rewards, reward)
        return 100 * (below + up_to) / 2 / len(self.rewards)

    def describe(self, reward: float) -> str:
        """Describe in one sentence where `reward` falls."""
        if self.problem is not None:
            return self.problem
        if not self.is_usable:
            if not self.wanted:
                return "The rewards of this model are not known; name rows with --rows to compare with theirs."
            return f"This model's rewards are still being measured ({len(self.rewards)} of {self.wanted})."
        mean, std = statistics.fmean(self.rewards), statistics.pstdev(self.rewards)
        unfinished = f" ({self.wanted} in the end)" if len(self.rewards) < self.wanted else ""
        deviations = f", {(reward - mean) / std:+.1f} standard deviations from their mean" if std > 0 else ""
        return (
            f"Higher than {self.percentile(reward):.0f} % of {len(self.rewards)} rewards{unfinished} that this model gave "
            f"to right and wrong responses of {self.wanted // 2} rows of {self.source}{deviations}."
        )


def preference(reward: float, other: float) -> float:
    """Return the Bradley-Terry probability that the response with `reward` is preferred to the one with `other`."""
    margin = reward - other
    return 1 / (1 + math.exp(-margin)) if margin >= 0 else math.exp(margin) / (1 + math.exp(margin))


def rank_of(rewards: Sequence[float], index: int) -> int:
    """Return a reward's rank from 1; equal rewards share one."""
    return 1 + sum(reward > rewards[index] for reward in rewards)
