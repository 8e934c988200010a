"""vLLM plugin for CLoud models. vLLM calls `register` in each of its processes (entry point `vllm.general_plugins`).

One request returns both critique and reward. For that, an unused vocabulary id, the config's `reward_token_id`, replaces
the end of turn that closes the critique, but no other end of turn.

1. The model (`model.py`) never samples the end of turn that closes a critique; it samples the reward token instead.
2. The reward token is embedded as the end of turn, so the reward is read from the same hidden state as in training.
3. After it, only the end of turn can follow. It stops the request, and its logit, which vLLM returns as its logprob, is the
   reward.

A logits processor (`processor.py`, `processor_v2.py`) closes critiques that run out of budget, so that each has a reward.
"""

from vllm import ModelRegistry  # pyright: ignore[reportAttributeAccessIssue]
from vllm.config import ModelConfig, VllmConfig
from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig

import cloud_hf  # also registers the config with transformers


_ARCHITECTURE = cloud_hf.CLoudForRewardModeling.__name__


class CLoudEngineConfig(VerifyAndUpdateConfig):
    """Engine settings on which the rewards depend."""

    @staticmethod
    def verify_and_update_model_config(model_config: ModelConfig) -> None:
        config = model_config.hf_config
        if config.reward_token_id is None:
            raise ValueError(
                "This CLoud model has no `reward_token_id`: its vocabulary had no unused id, which vLLM needs to tell the "
                "end of the critique from other ends of turn. Resize its embeddings by one and set it in the config."
            )
        # The reward is a raw logit: log-softmax would turn the logit of the only possible token into 0
        model_config.logprobs_mode = "raw_logits"
        if config.critique_end_token_id is not None:
            # The base's generation config often stops at another token than the one that closes the critique
            model_config.override_generation_config = {
                **model_config.override_generation_config,
                "eos_token_id": config.critique_end_token_id,
            }

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        model_config = vllm_config.model_config
        if vllm_config.speculative_config is not None:
            raise ValueError("A CLoud model cannot be served with speculative decoding: its rewards would be lost.")
        # Two modules, because each runner has its own processor interface, which must not be imported under the other
        module = "processor_v2" if vllm_config.use_v2_model_runner else "processor"
        processor = f"cloud_hf.serving.vllm.{module}:CloseCritique"
        if processor not in (model_config.logits_processors or []):
            model_config.logits_processors = [*(model_config.logits_processors or []), processor]


def register():
    """Register the model with vLLM. Calling it again is harmless."""
    ModelRegistry.register_model(_ARCHITECTURE, "cloud_hf.serving.vllm.model:CLoudForVLLM")
    MODELS_CONFIG_MAP[_ARCHITECTURE] = CLoudEngineConfig
