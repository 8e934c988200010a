"""Make a scorer from the server addresses in a trainer's environment. Does not import torch."""

import re
from typing import TYPE_CHECKING

from ..serving.client import CLoudClient


if TYPE_CHECKING:
    from ..cascade import CascadeScorer


def served_scorer(urls: str, api_key: str | None = None, fit: str | None = None) -> "CLoudClient | CascadeScorer":
    """
    Return a client of a reward server, or a cascade over several. Both have an `ascore`.

    Args:
        urls (`str`):
            Addresses. Commas separate replicas; spaces separate a cascade's stages, the cheapest first.
        api_key (`str`, *optional*):
            Key of all servers.
        fit (`str`, *optional*):
            File of a [`CascadeFit`]. Each stage writes one greedy critique.

    Raises:
        `ValueError`: If there are several stages and no fit, or the fit is for another number of stages.
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
