"""The CLoud model in vLLM: any causal LM that vLLM serves, plus the reward head. `plugin.py` explains the method.

Shape suffixes: N tokens in a batch, S sampled sequences, H hidden, F flag columns, V vocabulary.
"""

import copy
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

import torch
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from vllm.config import VllmConfig
from vllm.distributed import get_pp_group
from vllm.model_executor.layers.pooler import DispatchPooler
from vllm.model_executor.layers.pooler.activations import PoolerIdentity
from vllm.model_executor.layers.pooler.seqwise import LastPool, pooler_for_classify
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.models.interfaces import SupportsLoRA, SupportsPP
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    PPMissingLayer,
    init_vllm_registered_model,
    maybe_prefix,
)
from vllm.platforms import current_platform
from vllm.sequence import IntermediateTensors

from ...configuration_cloud import hidden_width
from ...end_tokens import join_ids
from ...modeling_cloud import RewardHead
from .reward_logits import encode_rewards


# Width in bytes of the flag columns, which mark the rows that carry a reward. 16 bytes keep the rows aligned
_FLAG_BYTES = 16


class CLoudForVLLM(nn.Module, SupportsLoRA, SupportsPP):
    """A vLLM causal LM whose critiques end with the reward token. After it, the logit of the end-of-turn token is the reward."""

    _head_is_stale = False

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        self.config: Any = vllm_config.model_config.hf_config
        text_config = copy.deepcopy(self.config.text_config)
        if text_config.model_type == "cohere2":
            text_config.sliding_window -= 1  # vLLM adds 1, transformers does not
        generation_config = vllm_config.model_config.try_get_generation_config()
        self.language_model: Any = init_vllm_registered_model(
            vllm_config=vllm_config,
            prefix=maybe_prefix(prefix, "language_model"),
            hf_config=text_config,
            architectures=[MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[text_config.model_type]],
        )
        self.hidden_size = hidden_width(text_config)
        self.end_id, self.reward_id = self.config.critique_end_token_id, self.config.reward_token_id
        # As in `CritiqueFormat.stop_ids`. At those in the generation config, vLLM would stop without a reward
        eos = {*join_ids(text_config.eos_token_id, generation_config.get("eos_token_id"))}
        # Kept on the device: indexing with a list would copy the list to the device at every step and make the host wait
        self.end_ids = torch.tensor([self.end_id, *sorted(eos - {self.end_id})])
        self.reward_head = PPMissingLayer()
        if get_pp_group().is_last_rank:
            self.reward_head = RewardHead(self.config).float()
        # Allocated once, because a CUDA graph reads its inputs from the addresses that they had at capture
        self.fed_ids = torch.zeros(vllm_config.scheduler_config.max_num_batched_tokens, dtype=torch.int32)
        dtype = vllm_config.model_config.dtype
        self.flag_columns = _FLAG_BYTES // dtype.itemsize
        self.packed_modules_mapping = getattr(self.language_model, "packed_modules_mapping", {})
        # vLLM declares these two on the class; here they depend on the inner model
        self.embedding_modules = getattr(self.language_model, "embedding_modules", {})  # pyright: ignore
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors  # pyright: ignore

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.language_model.embed_input_ids(self._without_reward_token(input_ids))

    def _without_reward_token(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Replace the reward token with the end-of-turn token, in a buffer that the next call overwrites."""
        fed_N = self.fed_ids[: len(input_ids)]
        return fed_N.copy_(torch.where(input_ids == self.reward_id, self.end_id, input_ids))

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor | IntermediateTensors:
        """Compute hidden states of shape `(N, H + F)`, whose flag columns are 1 where the input is the reward token."""
        hidden_NH = self.language_model(
            self._without_reward_token(input_ids), positions, intermediate_tensors, inputs_embeds, **kwargs
        )
        if isinstance(hidden_NH, IntermediateTensors):  # not the last stage of the pipeline
            return hidden_NH
        # vLLM passes only hidden states to `compute_logits`, so they carry the flag
        flag_N = (input_ids == self.reward_id).to(hidden_NH.dtype)
        return torch.cat((hidden_NH, flag_N[:, None].expand(-1, self.flag_columns)), dim=-1)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Compute fp32 logits of shape `(S, V)` for the critique's next token. In flagged rows, the only finite logit is the reward."""
        hidden_SH = hidden_states[:, : self.hidden_size].contiguous()
        is_reward_S = hidden_states[:, self.hidden_size] > 0.5
        if self._head_is_stale:
            self._repack_head()
        logits_SV = self.language_model.compute_logits(hidden_SH)
        if logits_SV is None:  # another rank samples
            return None
        logits_SV = logits_SV.float()
        # The reward token gets the logit of the likeliest end token; the real end tokens are never sampled
        logits_SV[:, self.reward_id] = logits_SV.index_select(1, self.end_ids).amax(-1)
        logits_SV.index_fill_(1, self.end_ids, -torch.inf)
        if self.config.format == "cloud":
            # vLLM returns raw logits (see `plugin.py`), so turn them into logprobs here. In the reference format, keep the
            # logits, because the repetition penalty depends on their sign
            logits_SV = logits_SV.log_softmax(-1)
        logits_SV.masked_fill_(is_reward_S[:, None], -torch.inf)
        rewards_S = self._rewards(hidden_SH)[:, 0]
        # The reference format reads rewards only from the re-tokenised text, so it has no partial rewards
        inner = encode_rewards(rewards_S) if self.config.format == "cloud" else -torch.inf
        logits_SV[:, self.end_id] = torch.where(is_reward_S, rewards_S, inner)
        return logits_SV

    def _rewards(self, hidden_SH: torch.Tensor) -> torch.Tensor:
        return (self.reward_head(hidden_SH) - self.config.reward_mean) / self.config.reward_std

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load a checkpoint. If its vocabulary has no spare id, add a row of zeros for the id that the plugin has added."""
        for module in self.modules():
            if isinstance(module, VocabParallelEmbedding):
                for parameter in module.parameters(recurse=False):
                    # During a reload, this may be vLLM's own wrapper around the loader, or still our wrapper from the previous reload
                    load: Any = getattr(parameter, "weight_loader", module.weight_loader)
                    if getattr(load, "vocab_size", None) is None:
                        parameter.weight_loader = _padded(load, module.org_vocab_size)  # pyright: ignore[reportAttributeAccessIssue]
        self._head_is_stale = current_platform.is_cpu()
        return AutoWeightsLoader(self).load_weights(weights)

    def _repack_head(self):
        """Pack the LM head again. On a CPU, vLLM multiplies by a packed copy, which a reload does not update if embeddings are tied."""
        for module in self.modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)
        self._head_is_stale = False


class ClassicForPooling(CLoudForVLLM):
    """A classic model for vLLM's pooling runner: the reward is read at the prompt's last token."""

    is_pooling_model = True

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        pooler_config = vllm_config.model_config.pooler_config
        assert pooler_config is not None, "vLLM sets it for the pooling runner"
        # By default, vLLM would apply a sigmoid to the reward
        classify = pooler_for_classify(
            pooler_config, pooling=LastPool(), classifier=self._rewards, act_fn=PoolerIdentity()
        )
        self.pooler = DispatchPooler({"classify": classify})

    def forward(self, *args, **kwargs) -> torch.Tensor | IntermediateTensors:
        """Compute hidden states of shape `(N, H)`."""
        return self.language_model(*args, **kwargs)


def _padded(load: Callable, vocab_size: int) -> Callable:
    @wraps(load)
    def load_padded(param: nn.Parameter, loaded_weight: torch.Tensor):
        if len(loaded_weight) == vocab_size - 1:
            loaded_weight = torch.cat((loaded_weight, torch.zeros_like(loaded_weight[:1])))
        load(param, loaded_weight)

    load_padded.vocab_size = vocab_size  # pyright: ignore[reportAttributeAccessIssue]  # marks it
    return load_padded
