"""ArenaHard: best-of-N responses against the baseline's, before a judge."""

from .win_rate import *  # noqa: F403
