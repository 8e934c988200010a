"""vLLM plugin for CLoud models. vLLM calls `register` in each of its processes (entry point `vllm.general_plugins`).

One request returns both critique and reward. To make this possible, an unused vocabulary id, the config's `reward_token_id`, replaces
the end of turn that closes the critique, but no other end of turn. A vocabulary without an unused id gets an extra one in the engine.

1. The model (`model.py`) never samples the end of turn that closes a critique; it samples the reward token instead.
2. The reward token is embedded as the end of turn, so the reward is read from the same hidden state as in training.
3. After the reward token, only the end of turn can follow. It stops the request, and its logit, which vLLM returns as its logprob,
   is the reward. In all other rows, the logit of the end of turn carries the reward at the previous token, for requests that ask
   for partial rewards (`reward_logits.py`).

A logits processor (`logits_processor.py`, `logits_processor_v2.py`) closes critiques that run out of budget, so that each gets a reward,
and a renderer (`renderer.py`) opens the critique turn after chat messages. Classic models can also be served with vLLM's
pooling runner, which needs none of this: its pooler reads the reward.
"""

from typing import Any

from vllm import ModelRegistry  # pyright: ignore[reportAttributeAccessIssue]
from vllm.config import ModelConfig, VllmConfig
from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig
from vllm.renderers.registry import RENDERER_REGISTRY
from vllm.tokenizers import detokenizer_utils
from vllm.tokenizers.registry import TokenizerRegistry

import cloud_hf  # also registers the config with transformers
from cloud_hf.configuration_cloud import reward_token_in_vllm
from cloud_hf.critique_format import format_class


_ARCHITECTURE = cloud_hf.CLoudForRewardModeling.__name__
# A separate architecture, because by default, vLLM uses the pooling runner for an architecture that supports both runners
_POOLING_ARCHITECTURE = "ClassicForPooling"

# vLLM chooses the renderer by the tokenizer mode
_TOKENIZER_MODE = "cloud"

# Sampling options for requests that do not set them: greedy, as in `score`, regardless of the base model's generation config
_SAMPLING = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}


class CLoudEngineConfig(VerifyAndUpdateConfig):
    """Engine settings on which the rewards depend."""

    @staticmethod
    def verify_and_update_model_config(model_config: ModelConfig) -> None:
        config: Any = model_config.hf_config
        if model_config.enable_prompt_embeds:
            raise ValueError("A CLoud model accepts no prompt embeddings: its reward is read at a token.")
        model_config.tokenizer_mode = _TOKENIZER_MODE
        if model_config.runner_type == "pooling":
            if config.critique:
                raise ValueError(
                    "This CLoud model writes critiques, which the pooling runner cannot do: serve it with `--runner generate`."
                )
            config.architectures, model_config.convert_type = [_POOLING_ARCHITECTURE], "none"
            return
        if config.reward_token_id is None:
            # Checkpoints keep their vocabulary size: the model adds the row for the extra id while it loads the weights
            config.reward_token_id = reward_token_in_vllm(config)
            config.text_config.vocab_size += 1
            model_config.model_arch_config = model_config.get_model_arch_config()  # also contains the vocabulary size
        # The reward is a raw logit: log-softmax would turn the logit of the only possible token into 0
        model_config.logprobs_mode = "raw_logits"
        penalty = format_class(config.format).repetition_penalty
        defaults = {**_SAMPLING, "repetition_penalty": penalty}
        model_config.override_generation_config = {**defaults, **model_config.override_generation_config}

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        model_config = vllm_config.model_config
        if model_config.runner_type == "pooling":
            return
        if vllm_config.parallel_config.use_ubatching:
            raise ValueError(
                "A CLoud model cannot be served with dual batch overlap: the two half-batches would share a buffer."
            )
        if vllm_config.speculative_config is not None:
            raise ValueError("A CLoud model cannot be served with speculative decoding: its rewards would be lost.")
        if vllm_config.structured_outputs_config.reasoning_parser:
            raise ValueError(
                "A reasoning parser would move the text of critiques to another field: start vLLM without `--reasoning-parser`."
            )
        # Two modules, because each runner has its own processor interface, which must not be imported under the other runner
        module = "logits_processor_v2" if vllm_config.use_v2_model_runner else "logits_processor"
        processor = f"cloud_hf.serving.vllm.{module}:CloseCritique"
        if processor not in (model_config.logits_processors or []):
            model_config.logits_processors = [*(model_config.logits_processors or []), processor]


def register():
    """Register the model with vLLM. Calling it again is harmless."""
    ModelRegistry.register_model(_ARCHITECTURE, "cloud_hf.serving.vllm.model:CLoudForVLLM")
    ModelRegistry.register_model(_POOLING_ARCHITECTURE, "cloud_hf.serving.vllm.model:ClassicForPooling")
    TokenizerRegistry.tokenizers[_TOKENIZER_MODE] = TokenizerRegistry.tokenizers["hf"]
    RENDERER_REGISTRY.renderers[_TOKENIZER_MODE] = ("cloud_hf.serving.vllm.renderer", "CLoudRenderer")
    MODELS_CONFIG_MAP[_ARCHITECTURE] = CLoudEngineConfig
    _decode_ids_without_a_token()


def _decode_ids_without_a_token():
    """
    Make vLLM decode ids that have no token, which may include the reward token's id, to empty text. With the tokenizers of Mistral, Gemma
    and others, logprobs of such an id would crash vLLM's server: https://github.com/vllm-project/vllm/pull/56100
    """
    restore = detokenizer_utils._restore_leading_spaces
    detokenizer_utils._restore_leading_spaces = lambda raw, text, marker: restore(raw or "", text, marker)
