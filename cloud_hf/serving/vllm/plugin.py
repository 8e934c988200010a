"""Makes vLLM know CLoud models. vLLM calls `register` in each of its processes (entry point `vllm.general_plugins`).

How one request gives critique and reward: an unused vocabulary id, the config's `reward_token_id`, stands in for the end
of turn that closes a critique, and only for that one.

1. The model (vllm_model.py) never lets the end of turn itself be sampled, but the reward token in its place.
2. When the reward token is fed, it is embedded as the end of turn: the hidden state is the one the reward is read from.
3. After it, only the end of turn can follow; it stops the request, and its logit is the reward. vLLM returns it as that
   token's logprob.

A processor of logits (vllm_processor.py) closes critiques that run out of budget, so that each request has a reward.
"""

from vllm import ModelRegistry
from vllm.config import ModelConfig, VllmConfig
from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig

import cloud_hf  # registers the config with transformers


_ARCHITECTURE = cloud_hf.CLoudForRewardModeling.__name__


class CLoudEngineConfig(VerifyAndUpdateConfig):
    """Engine settings without which rewards would be wrong."""

    @staticmethod
    def verify_and_update_model_config(model_config: ModelConfig) -> None:
        config = model_config.hf_config
        if config.reward_token_id is None:
            raise ValueError(
                "This CLoud model has no `reward_token_id`: its vocabulary had no unused id, which vLLM needs to tell the "
                "end of the critique from other ends of turn. Resize its embeddings by one and set it in the config."
            )
        # A reward is a raw logit; the log-softmax over the one token that can be sampled there is 0
        model_config.logprobs_mode = "raw_logits"
        if config.critique_end_token_id is not None:
            # Bases often stop at another token than the one that closes the critique
            model_config.override_generation_config = {
                **model_config.override_generation_config,
                "eos_token_id": config.critique_end_token_id,
            }

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        model_config = vllm_config.model_config
        if vllm_config.speculative_config is not None:
            raise ValueError("A CLoud model cannot be served with speculative decoding: its rewards would be lost.")
        module = "vllm_processor_v2" if vllm_config.use_v2_model_runner else "vllm_processor"
        processor = f"cloud_hf.serving.{module}:CloseCritique"
        if processor not in (model_config.logits_processors or []):
            model_config.logits_processors = [*(model_config.logits_processors or []), processor]


def register():
    """Register the model with vLLM; it may be called more than once."""
    ModelRegistry.register_model(_ARCHITECTURE, "cloud_hf.serving.vllm.model:CLoudForVLLM")
    MODELS_CONFIG_MAP[_ARCHITECTURE] = CLoudEngineConfig
