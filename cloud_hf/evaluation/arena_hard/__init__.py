"""ArenaHard: a judge compares best-of-N responses with a baseline model's answers."""

from .win_rate import *  # noqa: F403
