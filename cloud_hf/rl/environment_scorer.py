"""Read the settings of a trainer's reward function, without importing torch."""

import math
import re
from typing import TYPE_CHECKING

from ..serving.client import CLoudClient


if TYPE_CHECKING:
    from ..cascade import CascadeScorer


def served_scorer(urls: str, api_key: str | None = None, fit: str | None = None) -> "CLoudClient | CascadeScorer":
    """
    Return a client for a reward server or, if `fit` names a file that contains a [`CascadeFit`], a cascade of several reward servers.
    Both clients and cascades have an `ascore` method.

    In `urls`, commas separate replicas of a server, and spaces separate the stages of a cascade, the cheapest stage first. Each stage
    writes one greedy critique. `api_key` is the key for all servers. Raises `ValueError` if there are several stages but no fit, or if the
    fit is for a different number of stages.
    """
    stages = re.split(r"(?<!,)\s+", urls.strip())
    if fit is None and len(stages) > 1:
        raise ValueError(
            f"CLOUD_REWARD_URL has {len(stages)} addresses separated by spaces, one for each stage of a cascade, but "
            "CLOUD_REWARD_CASCADE does not name the cascade's fit. Separate replicas of one model with commas."
        )
    clients = [CLoudClient(stage, api_key or None) for stage in stages]
    if fit is None:
        return clients[0]
    from ..cascade import CascadeFit, CascadeScorer  # imported here, because it needs NumPy, which clients do not

    return CascadeScorer(clients, CascadeFit.load(fit))


def read_reward(name: str, value) -> float:
    """Return a reward that is set as a number or as text. Raises a `ValueError` that names the setting unless it is finite."""
    try:
        reward = float(value)
    except (TypeError, ValueError):
        reward = math.nan
    if not math.isfinite(reward):
        raise ValueError(f"`{name}` is {value!r:.60}; it must be a finite number.")
    return reward
