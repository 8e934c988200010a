"""Carry the reward at each critique token in a logit that vLLM never samples from.

While a critique continues, the logit of its end of turn is unused. A huge negative number there changes neither samples nor
ranks nor top logprobs, and can be requested by its id (`SamplingParams.logprob_token_ids`): the reward, in the same pass.
"""

import math

import torch


# The number is -exp(54 + 2.8 asinh(reward)). It keeps fp32's precision for rewards up to 80,000, and is below -1e8, as no logit is
_OFFSET, _SCALE = 54.0, 2.8
_LOWEST = 20.0


def encode_rewards(reward_S: torch.Tensor) -> torch.Tensor:
    """Encode rewards as fp32 logits of the same shape."""
    return -(_OFFSET + _SCALE * reward_S.double().asinh()).clamp(min=_LOWEST).exp().float()


def decode_reward(logit: float) -> float:
    """Decode the reward from a logit; not a finite number if the reward was too large."""
    exponent = math.log(-logit)
    return math.sinh((exponent - _OFFSET) / _SCALE) if exponent > _LOWEST + 1e-3 else -math.inf
