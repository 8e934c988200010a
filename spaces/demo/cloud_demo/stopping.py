"""
Stop buttons. A run is ended from within, so that "Stopped." is the last that it says.

Gradio's own `cancels` would let the page go on to show what has arrived before, and write it over that word.
"""

import asyncio
import functools
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

import gradio as gr

from .markup import status


class Runs:
    """
    What visitors have started in one tab.

    Args:
        said (`gr.HTML`):
            Says how far a run has come; an output of all handlers.
    """

    def __init__(self, said: gr.HTML):
        self._said = said
        self._stops: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    def stoppable(self, handler: Callable[..., AsyncIterator]) -> Callable[..., AsyncIterator]:
        """Make [`Runs.stop`] end an event handler, an asynchronous generator whose first argument is the `gr.Request`."""

        @functools.wraps(handler)
        async def run(request: gr.Request, *args):
            visitor, stop = request.session_hash, asyncio.Event()
            self._stops[visitor].add(stop)
            try:
                async with aclosing(_until(stop, handler(request, *args))) as updates:
                    async for update in updates:
                        yield update
                if stop.is_set():
                    yield {self._said: status("Stopped.")}
            finally:
                self._stops[visitor].remove(stop)
                if not self._stops[visitor]:
                    del self._stops[visitor]

        return run

    async def stop(self, request: gr.Request):
        """End what a visitor has started."""
        for stop in self._stops.get(request.session_hash, ()):
            stop.set()


async def _until(stop: asyncio.Event, updates: AsyncIterator) -> AsyncIterator:
    """The same updates; they end where they are when `stop` is set."""
    stopped, step, end = asyncio.ensure_future(stop.wait()), None, object()
    async with aclosing(updates):
        try:
            while True:
                step = asyncio.ensure_future(anext(updates, end))
                await asyncio.wait({step, stopped}, return_when=asyncio.FIRST_COMPLETED)
                if not step.done() or step.result() is end:
                    break
                yield step.result()
        finally:
            for task in (step, stopped):
                task.cancel()
            await asyncio.gather(step, stopped, return_exceptions=True)
