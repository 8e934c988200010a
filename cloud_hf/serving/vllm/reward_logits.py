"""Carry the reward at each critique token in a logit that vLLM never samples from.

While a critique continues, the logit of its end of turn is unused. A huge negative number there changes neither samples nor ranks nor top
logprobs. The number encodes the reward. To get it in the same pass, a client requests the logprob of the end of turn's id
(`SamplingParams.logprob_token_ids`).
"""

import math

import torch


# The number is -exp(54 + 2.8 asinh(reward)). For rewards between -80,000 and 80,000, the exponent is between 20 and 88, so the number is
# below -1e8, unlike any logit, and fits in fp32, whose maximum is exp(88.7). Rounding to fp32 changes the number by at most 6e-8 of its
# value, and asinh(reward) by at most 2.2e-8, so the reward keeps fp32 precision.
_OFFSET, _SCALE = 54.0, 2.8
_LOWEST = 20.0


def encode_rewards(reward_S: torch.Tensor) -> torch.Tensor:
    """Encode rewards as fp32 logits of the same shape."""
    return -(_OFFSET + _SCALE * reward_S.double().asinh()).clamp(min=_LOWEST).exp().float()


def decode_reward(logit: float) -> float:
    """Decode the reward from a logit. If the reward was too large, the result is not finite."""
    exponent = math.log(-logit)
    return math.sinh((exponent - _OFFSET) / _SCALE) if exponent > _LOWEST + 1e-3 else -math.inf
