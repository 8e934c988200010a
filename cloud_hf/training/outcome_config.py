"""Options of [`CLoudOutcomeTrainer`]."""

from dataclasses import dataclass

from ..argument_help import check_bounds, documented
from .config import CLoudTrainingConfig, check_weights
from .outcome_loss import OBJECTIVES


@documented
@dataclass
class CLoudOutcomeConfig(CLoudTrainingConfig):
    r"""
    Configuration class for the [`CLoudOutcomeTrainer`].

    This class lists only the parameters that it adds to [`CLoudTrainingConfig`] or whose meaning it changes. Options
    that also exist in [`~trl.GRPOConfig`] have the same names as there.

    Parameters:
        > Parameters that control the generation of critiques

        num_generations (`int`, *optional*, defaults to `4`):
            K, the number of critiques to write for each response at each step. With 0, train on the dataset's
            critiques, as stage 3 does. With 1, `policy_weight` must be 0.
        max_completion_length (`int`, *optional*, defaults to `256`):
            Maximum length of a critique in tokens, not counting the end token.
        generation_batch_size (`int`, *optional*, defaults to `64`):
            Number of critiques that a device writes in parallel. It does not affect their text. vLLM ignores this option
            and forms its own batches.
        use_vllm (`bool`, *optional*, defaults to `False`):
            Write critiques with vLLM, which reloads the weights at every step. Requires a single process and full
            fine-tuning.
        vllm_gpu_memory_utilization (`float`, *optional*, defaults to `0.3`):
            Share of the GPU's memory to give to vLLM, which keeps its own copy of the weights.

        > Parameters that control the loss

        outcome_objective (`str`, *optional*, defaults to `"likelihood"`):
            Loss that replaces the Bradley-Terry loss: minus the log of the mean of σ(Δ) over a pair's critiques (`"likelihood"`), or minus
            the mean of log σ(Δ) (`"mean_log"`). `bradley_terry_weight` is its weight.
        policy_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the policy gradient. If this and `bradley_terry_weight` are both 1, each step follows the
            gradient of the objective. With 0, the critiques that are sampled at each step train only the reward.
        beta (`float`, *optional*, defaults to `0.001`):
            Weight of the KL divergence (in nats per critique) from the reference model. With 0, no reference model is
            loaded.
        ref_model (`str`, *optional*):
            Name of the reference model. Defaults to the model that training starts from; for a new adapter, to the
            model without the adapter.
        lm_loss_weight (`float`, *optional*, defaults to `0.25`):
            λ, the weight of the LM loss on the dataset's critiques.
    """

    num_generations: int = 4
    max_completion_length: int = 256
    generation_batch_size: int = 64
    use_vllm: bool = False
    vllm_gpu_memory_utilization: float = 0.3
    outcome_objective: str = "likelihood"
    policy_weight: float = 1.0
    beta: float = 0.001
    ref_model: str | None = None
    lm_loss_weight: float = 0.25

    def __post_init__(self):
        check_bounds(self, num_generations=0, max_completion_length=1, generation_batch_size=1)
        check_weights(self, "policy_weight", "beta")
        if self.outcome_objective not in OBJECTIVES:
            raise ValueError(
                f"`outcome_objective` is {self.outcome_objective!r}; it must be one of {', '.join(OBJECTIVES)}."
            )
        if not 0 < self.vllm_gpu_memory_utilization <= 1:
            raise ValueError(
                f"`vllm_gpu_memory_utilization` is {self.vllm_gpu_memory_utilization}; it must be above 0 and at most 1."
            )
        if self.use_vllm and not self.num_generations:
            raise ValueError(
                "`use_vllm` is set, but with `num_generations` 0 no critiques are written. Omit `use_vllm`."
            )
        if self.num_generations:
            self._check_generation()
        super().__post_init__()

    def _check_generation(self):
        if self.num_generations == 1 and self.policy_weight:
            raise ValueError(
                "`num_generations` is 1, but a critique's return is measured against the other critiques of its response. Set "
                "it to 2 or more (4 to 8 are usual), or `policy_weight` to 0."
            )
        if self.ref_model is not None and not self.beta:
            raise ValueError(
                "`ref_model` is set, but `beta` is 0, so it would not be used. Omit `ref_model`, or set `beta` above 0."
            )
        fixed = {
            "critique": True, "format": "cloud", "token_budget": None, "center_rewards_coefficient": None,
            "auto_find_batch_size": False, "partial_reward_weight": 0.0, "neftune_noise_alpha": None,
        }  # fmt: skip
        for name, value in fixed.items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"`{name}` is {getattr(self, name)!r}, but training on outcomes (`num_generations` > 0) needs {value!r}."
                )
