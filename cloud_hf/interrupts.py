"""Handle Ctrl-C in two steps: the first press stops a run after the work in progress, the second stops it immediately."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any


class Interrupts:
    """State of [`deferred_interrupts`]."""

    def __init__(self):
        self.pending = False

    def check(self):
        """Raise `KeyboardInterrupt` if Ctrl-C was pressed. Call this at points where all work so far has been saved."""
        if self.pending:
            raise KeyboardInterrupt


@contextmanager
def deferred_interrupts(on_first: Callable[[], Any] = lambda: None) -> Iterator[Interrupts]:
    """
    Defer Ctrl-C within the block: the first press only calls `on_first`, and [`Interrupts.check`] or the end of the block then raises
    `KeyboardInterrupt`. The second press acts as it would outside the block.

    Outside the main thread, and in processes that ignore Ctrl-C, the block changes nothing.
    """
    interrupts, before = Interrupts(), signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN or threading.current_thread() is not threading.main_thread():
        yield interrupts
        return

    def handle(*_):
        signal.signal(signal.SIGINT, before)
        interrupts.pending = True
        print("\nStopping after the work in progress. Press Ctrl-C again to stop now.", file=sys.stderr, flush=True)
        on_first()

    signal.signal(signal.SIGINT, handle)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)
    interrupts.check()


@contextmanager
def processes_without_interrupts() -> Iterator[None]:
    """
    Keep Ctrl-C from stopping processes started within the block, because these must finish their work. A terminal sends Ctrl-C to all of
    its foreground processes.
    """
    # Start the resource tracker now: Python 3.11 would start it with the first process, and unblock signals while doing so
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
