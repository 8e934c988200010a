"""What the page's events share: models that load while the page is already up, the line before them, their rewards."""

import asyncio
import logging
import math
import os
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future
from typing import TYPE_CHECKING

from .arguments import DemoArguments
from .policy import VISITORS_AT_ONCE
from .problems import Problem
from .reward_distribution import RewardDistribution
from .waiting_line import HEARTBEAT, Ticket, WaitingLine


if TYPE_CHECKING:
    from cloud_hf.evaluation.rows import BenchmarkRow

    from .models import Models


logger = logging.getLogger(__name__)


class Backend:
    """
    Models, line, turns of the policy server and reward distribution of one demo.

    Args:
        args ([`DemoArguments`]):
            What to open.
    """

    def __init__(self, args: DemoArguments):
        self.args = args
        self.line = WaitingLine(args.concurrency, args.max_waiting, args.max_waiting_per_user)
        self.policy_turns = asyncio.Semaphore(VISITORS_AT_ONCE)
        self.distribution = RewardDistribution(source="", wanted=0)
        self._models: Future[Models] = Future()
        self._begun = threading.Lock()
        self._measuring: asyncio.Task | None = None

    def load(self):
        """Open the models, unless that has begun already."""
        if not self._begun.acquire(blocking=False):
            return
        from .models import open_models

        try:
            self._models.set_result(open_models(self.args))
        except Problem as problem:
            logger.error("%s", problem)
            self._models.set_exception(problem)
        except Exception as error:
            logger.error("The models could not be opened", exc_info=error)
            self._models.set_exception(Problem("The model could not be opened; the log of the demo says why."))

    def load_in_background(self, after: float = 0.0):
        """Open the models in a thread, `after` so many seconds."""
        timer = threading.Timer(after, self.load)
        timer.daemon = True
        timer.start()

    @property
    def is_loaded(self) -> bool:
        """Whether the models are open, or could not be opened."""
        return self._models.done()

    @property
    def is_usable(self) -> bool:
        """Whether the models are open."""
        return self.is_loaded and self._models.exception() is None

    @property
    def models(self) -> "Models":
        """The models, once they are loaded. Raises `Problem` if they could not be opened."""
        return self._models.result(timeout=0)

    async def loaded(self) -> "Models":
        """Wait for the models. Raises `Problem` if they could not be opened."""
        models = await asyncio.shield(asyncio.wrap_future(self._models))
        if self._measuring is None:
            self._measuring = asyncio.create_task(self._measure())
        return models

    async def wait_for_turn(self, ticket: Ticket) -> AsyncIterator[str]:
        """What a request waits for, in words, now and then, until its turn has come."""
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

    async def _measure(self):
        """Judge the first rows while nobody waits, to know the model's rewards."""
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
        distribution = self.distribution = RewardDistribution(self.args.rows or "", 2 * len(rows))
        for row in rows:
            try:
                rewards = await self._judge_row(row)
            except (ValueError, Problem) as error:
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
            distribution.problem = "This model's rewards could not be measured; the log of the demo says why."

    async def _judge_row(self, row: "BenchmarkRow") -> list[float]:
        """The rewards of both responses. Raises `Problem` if one is no finite number."""
        rewards = [await self._judge_while_idle(row.prompt, response) for response in row.responses]
        if not all(map(math.isfinite, rewards)):
            raise Problem(f"The model gave it the rewards {rewards}.")
        return rewards

    async def _judge_while_idle(self, prompt, response: str) -> float:
        """A reward; the work is given up for whoever comes, and begun again when they have gone."""
        while True:
            await self.line.until(is_empty=True)
            engine, budget = self.models.cloud, self.args.max_new_tokens
            work = asyncio.ensure_future(engine.score(prompt, response, max_new_tokens=budget))
            visitor = asyncio.ensure_future(self.line.until(is_empty=False))
            try:
                await asyncio.wait({work, visitor}, return_when=asyncio.FIRST_COMPLETED)
                if work.done():
                    return work.result().reward
            finally:
                work.cancel()
                visitor.cancel()
                await asyncio.wait({work, visitor})
