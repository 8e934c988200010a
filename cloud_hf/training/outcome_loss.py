"""Losses for pairs whose critiques are latent variables: the likelihood of a pair, and each critique's contribution to it.

Shape suffixes: N pairs, K critiques of each response.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn import functional as F


class OutcomeLoss(NamedTuple):
    """
    Losses of N pairs. If the critiques were sampled from the policy, the gradient of `direct + policy` is an unbiased
    estimate of the gradient of `direct`'s expected value over critiques.

    Args:
        direct (`torch.Tensor` of shape `(N,)`):
            The negative objective. Its gradient flows only into the rewards.
        policy (`torch.Tensor` of shape `(N,)`):
            Its value is zero, and its gradient is the policy gradient. For K = 1, the gradient is also zero, because
            there is no other critique to compare with.
        log_sigmoid (`torch.Tensor` of shape `(N, K, K)`):
            log σ(chosen reward - rejected reward), for each combination of a chosen and a rejected critique.
    """

    direct: torch.Tensor
    policy: torch.Tensor
    log_sigmoid: torch.Tensor


def outcome_loss(
    rewards_chosen_NK: torch.Tensor,
    rewards_rejected_NK: torch.Tensor,
    logprobs_chosen_NK: torch.Tensor,
    logprobs_rejected_NK: torch.Tensor,
    objective: str = "likelihood",
) -> OutcomeLoss:
    """
    Compute the losses of pairs with K sampled critiques of each response.

    Let Δ_ij be the reward of chosen critique i minus the reward of rejected critique j. The objective is log
    mean_ij σ(Δ_ij) (`"likelihood"`), or mean_ij log σ(Δ_ij) (`"mean_log"`). The return of a critique is how much it
    raises the objective: the objective over all critiques minus the objective without this one. The latter does not
    depend on this critique, so it is an unbiased baseline.

    Args:
        rewards_chosen_NK, rewards_rejected_NK (`torch.Tensor` of shape `(N, K)`):
            The reward at the end of each critique.
        logprobs_chosen_NK, logprobs_rejected_NK (`torch.Tensor` of shape `(N, K)`):
            Log-probability of each critique under the policy, with gradient.
        objective (`str`, *optional*, defaults to `"likelihood"`):
            A key of `OBJECTIVES`.

    Examples:

    ```python
    >>> rewards, logprobs = torch.zeros(1, 4), torch.full((1, 4), -10.0)
    >>> outcome_loss(rewards, rewards, logprobs, logprobs).direct
    tensor([0.6931])
    ```
    """
    mean = OBJECTIVES[objective]
    log_sigmoid_NKK = F.logsigmoid(rewards_chosen_NK[:, :, None] - rewards_rejected_NK[:, None, :])
    objective_N = mean(log_sigmoid_NKK.flatten(1), 1)
    policy_N = torch.zeros_like(objective_N)
    for dim, logprobs_NK in ((2, logprobs_chosen_NK), (1, logprobs_rejected_NK)):
        returns_NK = (objective_N[:, None] - _without_each(mean(log_sigmoid_NKK, dim), mean)).detach()
        # The subtraction makes the value zero and leaves only the gradient
        policy_N = policy_N - (returns_NK * (logprobs_NK - logprobs_NK.detach())).sum(1)
    return OutcomeLoss(-objective_N, policy_N, log_sigmoid_NKK)


def _without_each(values_NK: torch.Tensor, mean: Callable[[torch.Tensor, int], torch.Tensor]) -> torch.Tensor:
    """Return, for each value, the mean of the other values in its row; for K = 1, the value itself."""
    K = values_NK.shape[1]
    if K == 1:
        return values_NK
    others = torch.tensor([[k for k in range(K) if k != left_out] for left_out in range(K)], device=values_NK.device)
    return mean(values_NK[:, others], 2)


def _log_mean_exp(values: torch.Tensor, dim: int) -> torch.Tensor:
    return values.logsumexp(dim) - torch.tensor(values.shape[dim], dtype=values.dtype).log()


# For each objective, the function that averages over critiques: given log σ(Δ), it returns the log of the mean of σ(Δ), or the
# mean of log σ(Δ). Averaging over one side and then over the other gives the same result as averaging over all combinations
OBJECTIVES: dict[str, Callable[[torch.Tensor, int], torch.Tensor]] = {
    "likelihood": _log_mean_exp,
    "mean_log": torch.mean,
}
