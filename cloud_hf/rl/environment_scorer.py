"""Make a scorer from the server addresses in a trainer's environment. Does not import torch."""

import re
from typing import TYPE_CHECKING

from ..serving.client import CLoudClient


if TYPE_CHECKING:
    from ..cascade import CascadeScorer


def served_scorer(urls: str, api_key: str | None = None, fit: str | None = None) -> "CLoudClient | CascadeScorer":
    """
    Return a client of a reward server, or with `fit`, the file of a [`CascadeFit`], a cascade over several. Both have an `ascore`.

    In `urls`, commas separate replicas, and spaces separate the stages of a cascade, the cheapest first. Each stage writes one greedy
    critique. `api_key` is the key of all servers. Raises `ValueError` if the fit is missing, or for another number of stages.
    """
    stages = re.split(r"(?<!,)\s+", urls.strip())
    if fit is None and len(stages) > 1:
        raise ValueError(
            f"CLOUD_REWARD_URL has {len(stages)} addresses separated by spaces, the stages of a cascade, but CLOUD_REWARD_CASCADE does "
            "not name its fit. Separate replicas of one model by commas."
        )
    clients = [CLoudClient(stage, api_key) for stage in stages]
    if fit is None:
        return clients[0]
    from ..cascade import CascadeFit, CascadeScorer  # imports NumPy, which clients do without

    return CascadeScorer(clients, CascadeFit.load(fit))
