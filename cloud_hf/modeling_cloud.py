"""The CLoud reward model: a causal language model with its LM head, plus a reward head.

Shape suffixes: B batch, T tokens, H hidden, V vocabulary, P labelled positions, S segments, N tokens of a flattened batch.
"""

import inspect
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers import initialization as init
from transformers.core_model_loading import revert_weight_conversion
from transformers.dynamic_module_utils import custom_object_save
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.modeling_utils import set_zero3_state
from transformers.utils.generic import ModelOutput, is_flash_attention_requested

from .base_checks import check_logits, check_segments, runnable
from .chunked_loss import ChunkedCrossEntropy
from .configuration_cloud import (
    CLoudConfig,
    caps_attention,
    has_scalar_head,
    hidden_width,
    lacks_lm_head,
    language_config,
    read_config,
)
from .critique_format import IGNORE_INDEX, CritiqueFormat
from .end_tokens import add_end_ids
from .packed_attention import PACKED_SDPA, packed_arguments
from .published import (
    NATIVE_PREFIX,
    PUBLISHED_PREFIX,
    check_shapes,
    find_weights,
    has_file,
    hub_options,
    is_published,
    native_key,
    read_shapes,
)
from .quantized_checkpoints import check_spared, decompress
from .reward_positions import RewardFinder
from .scores import NotFinite, Score
from .scoring import score_with_transformers
from .template_dates import pin_date


logger = logging.getLogger(__name__)

# Vocabulary entries per chunk of the LM loss, by default. The number of chunks must not depend on the batch: sharded
# ranks must all call the LM head the same number of times.
_VOCABULARY_PER_CHUNK = 16_384

_QUANTIZATION_OPTIONS = tuple(inspect.signature(BitsAndBytesConfig).parameters.keys() - {"kwargs"})

# Names of the language model's weights in multimodal checkpoints, as old and new versions of transformers write them
_MULTIMODAL_KEYS = {
    r"^(?:model\.)?(?:language|text)_model\.(?:model\.)?(?!lm_head|model\.)": "model.",
    r"^model\.(?=embed_tokens|layers|norm)": "model.",
    r"^(?:language_model\.)?lm_head": "lm_head",
}

# `aminmax` does not support the 8-bit floats of quantised weights
_CHECKED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass
class CLoudOutput(ModelOutput):
    """
    Output of [`CLoudForRewardModeling`].

    Args:
        logits (`torch.Tensor` of shape `(B, 1)`):
            The rewards in fp32, named `logits` because reward-model tools look for them under that name.
        lm_loss (`torch.Tensor` of shape `()`, *optional*):
            Mean cross-entropy over the labelled tokens, if `labels` are given; 0 if no token is labelled.
        lm_loss_sums (`torch.Tensor` of shape `(B,)`, *optional*):
            Summed cross-entropy of each sequence, detached from the graph.
        lm_loss_counts (`torch.Tensor` of shape `(B,)`, *optional*):
            Number of labelled tokens in each sequence.
        inner_rewards (`torch.Tensor` of shape `(B, R)`, *optional*):
            Rewards at `inner_positions`, if these are given.
        token_losses (`torch.Tensor` of shape `(P,)`, *optional*):
            Cross-entropy of each labelled token, attached to the graph. The tokens of a sequence are contiguous and in order.
        token_sequences (`torch.Tensor` of shape `(P,)`, *optional*):
            Index of the sequence that each labelled token belongs to.
    """

    logits: torch.Tensor | None = None
    lm_loss: torch.Tensor | None = None
    lm_loss_sums: torch.Tensor | None = None
    lm_loss_counts: torch.Tensor | None = None
    inner_rewards: torch.Tensor | None = None
    token_losses: torch.Tensor | None = None
    token_sequences: torch.Tensor | None = None


class RewardProjection(nn.Linear):
    """Linear layer that computes in fp32 whatever the model's data type: bf16 would round small reward differences away."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.float()
        with torch.autocast(device_type=x.device.type, enabled=False):
            return F.linear(x.float(), self.weight.float(), bias)


class RewardHead(nn.Module):
    """
    Map a hidden state to a reward. By default the head computes `out_proj(tanh(dense(h)))`, as in the published checkpoints. If
    `config.reward_head` is `"linear"`, it computes `out_proj(h)` without bias, as in transformers' sequence classifiers.
    """

    def __init__(self, config: CLoudConfig):
        super().__init__()
        size, is_linear = hidden_width(config.text_config), config.reward_head == "linear"
        self.dense = None if is_linear else RewardProjection(size, size)
        self.out_proj = RewardProjection(size, 1, bias=not is_linear)

    def forward(self, hidden_BH: torch.Tensor) -> torch.Tensor:
        return self.out_proj(hidden_BH if self.dense is None else torch.tanh(self.dense(hidden_BH)))


class CLoudForRewardModeling(PreTrainedModel, GenerationMixin):
    r"""
    A reward model that writes a critique before it scores (arXiv 2408.11791), or a classic one (`config.critique=False`).

    Args:
        config ([`CLoudConfig`]):
            Configuration, whose `text_config` describes the language model: any causal LM in transformers.

    Examples:

    ```python
    >>> from cloud_hf import CLoudForRewardModeling
    >>> model = CLoudForRewardModeling.from_base("Qwen/Qwen3-0.6B")
    >>> [score] = model.score(["What is 2+2?"], ["4"], tokenizer)
    >>> score.critique, score.reward
    ```
    """

    config: CLoudConfig
    config_class = CLoudConfig
    # With this prefix, a plain language model loads into the wrapper, and only the reward head is missing
    base_model_prefix = "language_model"
    _keep_in_fp32_modules_strict = ["reward_head"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # The loss does not accept `num_items_in_batch`: CLoudTrainer scales the loss itself
    accepts_loss_kwargs = False

    def __init__(self, config: CLoudConfig, **options):
        _set_options(config, options)
        super().__init__(config)
        # `sdpa` would silently ignore the cap on attention logits
        if caps_attention(config.text_config) and config._attn_implementation == "sdpa":
            config._attn_implementation = "eager"
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.reward_head = RewardHead(config)
        # The Hub options that the model was loaded with, which also locate the tokenizer
        self._hub_kwargs: dict[str, Any] = {}
        # Name of the adapter that was merged into the weights after they were loaded
        self.merged_adapter: str | None = None
        self._accepts_position_ids = "position_ids" in inspect.signature(self.trunk.forward).parameters
        self.generation_config = self.language_model.generation_config
        # The base's sampling defaults apply only to `generate`; critiques are sampled with the caller's options
        self.language_model.generation_config = GenerationConfig()
        self.post_init()

    @classmethod
    def from_base(
        cls,
        base: str | Path,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        critique: bool = True,
        critique_prompt: str | None = None,
        critique_role: str = "user",
        keep_thinking: bool = False,
        chat_template_kwargs: dict[str, Any] | None = None,
        format: str = "cloud",
        reward_head: str | None = None,
        **kwargs,
    ) -> "CLoudForRewardModeling":
        r"""
        Create a reward model from a causal language model's weights and a new, random reward head, or from a scalar reward model's
        weights.

        Args:
            base (`str` or `Path`):
                Hub id or folder of a causal language model, or of a scalar reward model (`*ForSequenceClassification`). Only the
                language model of a multimodal model is used.
            tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
                Tokenizer with the chat template to train with. Defaults to the tokenizer of `base`.
            critique, critique_prompt, critique_role, keep_thinking, chat_template_kwargs, format:
                See [`CLoudConfig`].
            reward_head (`str`, *optional*):
                See [`CLoudConfig`]. For a classic model created from a scalar reward model with one label, the default is `"linear"`,
                which keeps the scalar model's head. Otherwise, the default is `"mlp"`.
            **kwargs:
                Passed to `from_pretrained` (`dtype`, `attn_implementation`, `device_map`, `revision`, …, and keys of the config).

        Raises:
            `ValueError`: If `base` is already a CLoud model or contains no causal language model; if critiques are requested but `base` is
                a scalar reward model, which has no LM head; or if the chat template cannot represent a critique turn.
        """
        config = cls.config_from_base(
            base,
            tokenizer,
            critique=critique,
            critique_prompt=critique_prompt,
            critique_role=critique_role,
            keep_thinking=keep_thinking,
            chat_template_kwargs=chat_template_kwargs,
            format=format,
            reward_head=reward_head,
            **hub_options(kwargs, "trust_remote_code"),
        )
        return cls.from_language_model(base, config, **kwargs)

    @staticmethod
    def config_from_base(
        base: str | Path,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        critique: bool = True,
        critique_prompt: str | None = None,
        critique_role: str = "user",
        keep_thinking: bool = False,
        chat_template_kwargs: dict[str, Any] | None = None,
        format: str = "cloud",
        reward_head: str | None = None,
        **hub_kwargs,
    ) -> CLoudConfig:
        """Create the config for [`CLoudForRewardModeling.from_base`] without loading weights. The arguments are the same."""
        base_config = read_config(base, **hub_kwargs)
        if isinstance(base_config, CLoudConfig):
            raise ValueError(f"{base} is already a CLoud model; load it with `from_pretrained`.")
        text_config = language_config(base_config)
        add_end_ids(text_config, base, **hub_options(hub_kwargs))
        if lacks_lm_head(base_config):
            if critique:
                raise ValueError(
                    f"{base} is a reward model without an LM head, so it cannot write critiques. Create a classic model from it "
                    "(`examples/train_classic.py`, `critique=False`), or start from its language model."
                )
            text_config.tie_word_embeddings = True  # a classic model never uses its LM head
        tokenizer = cast(PreTrainedTokenizerBase, tokenizer or AutoTokenizer.from_pretrained(base, **hub_kwargs))
        config = CLoudConfig(
            text_config=text_config,
            critique=critique,
            critique_prompt=critique_prompt,
            critique_role=critique_role,
            keep_thinking=keep_thinking,
            chat_template_kwargs=pin_date(tokenizer, chat_template_kwargs),
            format=format,
            reward_head=reward_head or ("linear" if has_scalar_head(base_config) and not critique else "mlp"),
        )
        config.critique_end_token_id = CritiqueFormat.from_config(config, tokenizer).end_token_id
        config.reward_token_id = unused_token_id(tokenizer, text_config.vocab_size)
        return config

    @classmethod
    def from_language_model(cls, base: str | Path, config: CLoudConfig, **kwargs) -> "CLoudForRewardModeling":
        """
        Load a language model's weights and add a new reward head, with a given config ([`from_base`] also creates the config). A classic
        model with a linear head keeps the head of the scalar reward model that it starts from.
        """
        base_config = read_config(base, **hub_options(kwargs, "trust_remote_code"))
        takes_head = not config.critique and config.reward_head == "linear" and has_scalar_head(base_config)
        if language_config(base_config) is not base_config:
            kwargs["key_mapping"] = {key: f"{NATIVE_PREFIX}{name}" for key, name in _MULTIMODAL_KEYS.items()}
            # transformers reads these lists from the class
            cls._keys_to_ignore_on_load_unexpected = [r"."]  # weights of the vision and audio parts
        if takes_head:
            kwargs["key_mapping"] = {**kwargs.get("key_mapping", {}), r"^score\.": "reward_head.out_proj."}
            logger.warning("The reward head is taken from %s.", base)
        else:
            cls._keys_to_ignore_on_load_missing = [r"^reward_head\."]  # do not warn about the new head
        try:
            loaded: Any = super().from_pretrained(base, config=config, output_loading_info=True, **kwargs)
        finally:
            cls._keys_to_ignore_on_load_missing = cls._keys_to_ignore_on_load_unexpected = None
        model, _ = _complete(base, loaded, kwargs)
        check_weights(str(base), model)
        if not is_deepspeed_zero3_enabled():  # under ZeRO-3, the engine sets the data types
            model.reward_head.float()
        with runnable(model):
            check_logits(model)
        model._hub_kwargs = hub_options(kwargs)
        return model

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs) -> Any:
        r"""
        Load a reward model: a native model, a checkpoint published by the paper's authors (which gets `format="reference"`), or an
        adapter, which is merged into its base. Unlike in transformers, missing weights are an error, because rewards from a random head
        look like any others.

        Args:
            text_config (`PreTrainedConfig` or `dict`, *optional*):
                Architecture of the language model, if the base named by a published checkpoint cannot be reached. The
                weights always come from the checkpoint.
            base_model_name_or_path (`str`, *optional*):
                Hub id or folder to read the architecture from, instead of the base that the checkpoint names.
            **kwargs:
                As in transformers (`dtype`, `device_map`, `revision`, …, and keys of the config).

        Raises:
            `ValueError`: If weights are missing or pickled, or do not fit the architecture, or if an option is unknown.
        """
        name = pretrained_model_name_or_path
        hub_kwargs = hub_options(kwargs)
        adapter = (kwargs.get("adapter_kwargs") or {}).get("_adapter_model_path")  # set by the Auto classes
        # As transformers does, take a Hub that cannot be reached for one without the file: the model itself may be cached
        found = {**hub_kwargs, "_raise_exceptions_for_connection_errors": False}
        if adapter is None and name is not None and has_file(name, "adapter_config.json", **found):
            if kwargs.get("config") is not None and "adapter_kwargs" not in kwargs:
                raise ValueError(f"{name} is an adapter, which is loaded with its own config; drop `config`.")
            adapter = name
        if adapter is not None:
            return cls._load_adapter(name, str(adapter), kwargs, hub_kwargs)
        config_dict = {} if name is None else CLoudConfig.get_config_dict(name, **hub_kwargs)[0]
        published = is_published(config_dict)
        if kwargs.get("config") is None and config_dict.get("model_type", "cloud") != "cloud":
            CLoudConfig.from_dict(config_dict)  # raises an error before any weights are loaded
        _read_quantization(kwargs)
        if published:
            cls._prepare_published(name, kwargs, hub_kwargs)
        elif name is not None and not {"gguf_file", "state_dict", "variant"} & {*kwargs}:
            files = find_weights(str(name), **hub_kwargs)  # rejects pickles and files outside the folder
            if "quantization_config" in config_dict:
                check_spared(str(name), files)
        loaded: Any = super().from_pretrained(name, *args, output_loading_info=True, **kwargs)
        model, loading = _complete(name, loaded, kwargs)
        decompress(model)
        check_weights(str(name), model)
        model._hub_kwargs = hub_kwargs
        return (model, loading) if output_loading_info else model

    @classmethod
    def _prepare_published(cls, name, kwargs: dict[str, Any], hub_kwargs: dict[str, Any]):
        """Check a published checkpoint, and add two options for `from_pretrained`: its config, and a mapping of its weight names."""
        fields = {key: kwargs.pop(key) for key in CLoudConfig.__annotations__ if key in kwargs}
        if kwargs.get("config") is None:
            kwargs["config"] = CLoudConfig.from_pretrained(name, **fields, **hub_kwargs)
        cls.check_checkpoint(str(name), kwargs["config"], read_shapes(find_weights(name, **hub_kwargs)))
        kwargs.pop("force_download", None)  # the line above has already downloaded the checkpoint
        kwargs["key_mapping"] = {f"^{PUBLISHED_PREFIX}": NATIVE_PREFIX}

    @classmethod
    def _load_adapter(
        cls, name, adapter: str, kwargs: dict[str, Any], hub_kwargs: dict[str, Any]
    ) -> "CLoudForRewardModeling":
        """
        Load an adapter and merge it into its base. The Auto classes pass the base's name as `name`, except for a local adapter with a
        `config.json`, for which they pass the adapter's folder.
        """
        # An absolute import in a `try`, so that transformers neither copies `adapters.py` next to saved models nor requires PEFT
        try:
            from cloud_hf.adapters import load_merged
        except ImportError as error:
            raise ImportError(f"{name} is an adapter; install the package cloud-hf to load adapters.") from error
        kwargs = {key: value for key, value in kwargs.items() if key not in ("adapter_kwargs", "config", *hub_kwargs)}
        return load_merged(cls, adapter, **(hub_kwargs if adapter == str(name) else {}), **kwargs)

    @classmethod
    def without_weights(cls, config: CLoudConfig) -> "CLoudForRewardModeling":
        """Build the architecture on the meta device."""
        # `set_zero3_state` turns off ZeRO-3, which would partition the inner language model
        with torch.device("meta"), set_zero3_state():
            return cls(config)

    @classmethod
    def check_checkpoint(cls, name: str, config: CLoudConfig, shapes: dict[str, tuple[int, ...]]):
        """Raise `ValueError` unless weights with these (published or native) names and shapes fit `config`."""
        model = cls.without_weights(config)
        # Compare names as they are on disk: for some architectures, transformers renames or fuses weights in memory
        weights = revert_weight_conversion(model, model.state_dict())
        expected = {key: tuple(weight.shape) for key, weight in weights.items()}
        found = {native_key(key): shape for key, shape in shapes.items()}
        check_shapes(name, found, expected, set(model.all_tied_weights_keys))

    # ------------------------------------------------------------------------------------------------------- forward

    @property
    def trunk(self) -> PreTrainedModel:
        """The decoder without its LM head."""
        decoder = self.language_model.base_model
        # Llama 4's language model has the `base_model_prefix` of the multimodal model, so `base_model` returns the model itself
        return cast(PreTrainedModel, self.language_model.model if decoder is self.language_model else decoder)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        reward_positions: torch.Tensor | None = None,
        inner_positions: torch.Tensor | None = None,
        segments: torch.Tensor | Sequence[Sequence[int]] | None = None,
        target_positions: torch.Tensor | None = None,
        lm_loss_chunks: int | None = None,
        margin: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> CLoudOutput | tuple:
        r"""
        Run the decoder once, and compute rewards and the LM loss only at the positions that need them.

        Other tools call this method with chats that they have rendered and encoded themselves, without `reward_positions`. Each of their
        sequences must then consist of the ids that [`CLoudForRewardModeling.score`] would produce: a complete conversation and, for a
        CLoud model, its critique. Such a sequence gets the same reward as from `score`; a second BOS, and any tokens after the last
        end-of-turn token, are skipped. All other sequences are rejected.

        Args:
            input_ids (`torch.LongTensor` of shape `(B, T)`, *optional*):
                Sequences from [`CritiqueFormat.encode`], padded on either side. With `segments`, this and all tensors of
                the same shape are flattened to `(1, N)`.
            attention_mask (`torch.Tensor` of shape `(B, T)`, *optional*):
                1 on real tokens. Required if sequences are padded.
            position_ids (`torch.LongTensor` of shape `(B, T)`, *optional*):
                Default to positions that skip padding. Required with `segments`.
            inputs_embeds (`torch.Tensor` of shape `(B, T, H)`, *optional*):
                Used instead of `input_ids`.
            labels (`torch.LongTensor` of shape `(B, T)`, *optional*):
                Unshifted labels for the critique LM loss, with `-100` outside of critiques. With `segments`, the label of each
                segment's first token must also be `-100`.
            reward_positions (`torch.LongTensor` of shape `(B,)`, *optional*):
                Positions at which to read the rewards. Default to the end of the last turn of each sequence. With
                `segments`, these are the positions of each sequence's last token in the flattened row, in any order.
            inner_positions (`torch.LongTensor` of shape `(B, R)`, *optional*):
                Further positions within each sequence at which to read rewards. They require `reward_positions`, and use the same
                indexing.
            segments (`torch.LongTensor` of shape `(S, 2)` or nested sequence, *optional*):
                Length and parent of each segment of a flattened batch; see [`~packed_attention.packed_arguments`]. A
                sequence consists of a segment and its ancestors.
            target_positions (`torch.LongTensor` of shape `(P,)`, *optional*):
                Indices at which `labels[:, 1:].flatten()` is not `-100`. Computed from `labels` by default, which makes the host wait for
                the device.
            lm_loss_chunks (`int`, *optional*):
                Number of chunks in which the logits of the labelled tokens are computed. A single chunk is fastest; with more,
                only one chunk is in memory at a time, and the backward pass recomputes each chunk. Defaults to one chunk per
                16,384 vocabulary entries.
            margin (`torch.Tensor`, *optional*):
                Ignored. Accepted because [`~trl.RewardTrainer`] passes its entire batch to the model.
            token_type_ids (`torch.Tensor`, *optional*):
                Accepted because tokenizers return them. Ignored, because some language models would add embeddings for them.
            return_dict (`bool`, *optional*):
                Whether to return a [`CLoudOutput`] or a tuple. Defaults to the config's.

        Raises:
            `ValueError`: If `segments` are given and the model's attention implementation cannot keep them apart, or
                if a sequence does not consist of the ids that [`CLoudForRewardModeling.score`] would produce.
        """
        is_foreign = reward_positions is None and segments is None
        if segments is not None:
            if position_ids is None or reward_positions is None:
                raise ValueError(
                    "A flattened batch needs `position_ids` and `reward_positions` in addition to `segments`."
                )
            kwargs |= packed_arguments(self.trunk.config, segments, position_ids.device)
        else:
            if reward_positions is None:
                attention_mask, reward_positions = self._find_rewards(input_ids, attention_mask)
            if position_ids is None and attention_mask is not None and self._accepts_position_ids:
                # Count positions as `generate` does, so that left padding does not change any reward
                position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
            kwargs["attention_mask"] = attention_mask
        if position_ids is not None:
            kwargs["position_ids"] = position_ids
        kwargs |= {"input_ids": input_ids, "inputs_embeds": inputs_embeds, "return_dict": True}
        hidden_BTH = self.trunk(**kwargs).last_hidden_state
        device = hidden_BTH.device  # with a device_map, the trunk's first and last layers can be on different devices
        positions_B = reward_positions.to(device)
        rows_B = torch.arange(len(positions_B), device=device) if segments is None else torch.zeros_like(positions_B)
        reward_B1 = self.reward_from_hidden(hidden_BTH[rows_B, positions_B])
        # Scoring and training check this themselves; other tools do not
        if is_foreign and not reward_B1.isfinite().all():
            raise NotFinite(
                f"The batch has rewards that are NaN or infinite; its rewards are {reward_B1[:, 0].tolist()}."
            )
        output = CLoudOutput(logits=reward_B1)
        if inner_positions is not None:
            hidden_BRH = hidden_BTH[rows_B[:, None], inner_positions.to(device)]
            output.inner_rewards = self.reward_from_hidden(hidden_BRH)[..., 0]
        if labels is not None:
            labels_BT = labels[:, 1:].to(device)
            places_P = labelled(labels_BT) if target_positions is None else target_positions.to(device)
            sequence_P = _labelled_sequences(places_P, labels_BT.shape[1], None if segments is None else positions_B)
            loss_P = self._lm_losses(hidden_BTH[:, :-1], labels_BT, places_P, lm_loss_chunks)
            self._add_lm_losses(output, loss_P, sequence_P)
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    @staticmethod
    def _add_lm_losses(output: CLoudOutput, loss_P: torch.Tensor, sequence_P: torch.Tensor):
        output.lm_loss = loss_P.sum() / max(1, len(sequence_P))
        loss_P = loss_P[: len(sequence_P)]  # without labels, this contains a single zero that belongs to no sequence
        zeros_B = loss_P.new_zeros(len(cast(torch.Tensor, output.logits)))
        output.lm_loss_sums = zeros_B.index_add(0, sequence_P, loss_P.detach())
        # Not with `bincount`, which would make the host wait for the device
        output.lm_loss_counts = zeros_B.index_add(0, sequence_P, torch.ones_like(sequence_P, dtype=zeros_B.dtype))
        output.token_losses, output.token_sequences = loss_P, sequence_P

    def _find_rewards(
        self, input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return an attention mask that also hides a second BOS, and the reward positions, for sequences that another tool encoded."""
        if input_ids is None:
            raise ValueError(
                "`inputs_embeds` requires `reward_positions`, because the end of a turn can be found only in `input_ids`."
            )
        starts, ends = self._reward_finder.find(input_ids, attention_mask)
        mask_BT = torch.ones_like(input_ids) if attention_mask is None else attention_mask.clone()
        for row, start in enumerate(starts):
            mask_BT[row, :start] = 0
        return mask_BT, torch.tensor(ends)

    @cached_property
    def _reward_finder(self) -> RewardFinder:
        name = self.config.name_or_path
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, config=self.config, **self._hub_kwargs)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"There is no tokenizer in {name!r}, and without one the end of a sequence's last turn cannot be found. Save the "
                "tokenizer with the model, pass `reward_positions`, or call `model.score(prompts, responses, tokenizer)`."
            ) from error
        return RewardFinder(self.config, tokenizer)

    def reward_from_hidden(self, hidden_BH: torch.Tensor) -> torch.Tensor:
        """Compute fp32 rewards of shape `(B, 1)` from final hidden states of shape `(B, H)`."""
        return (self.reward_head(hidden_BH) - self.config.reward_mean) / self.config.reward_std

    def _lm_losses(
        self, hidden_BTH: torch.Tensor, labels_BT: torch.Tensor, places_P: torch.Tensor, chunks: int | None
    ) -> torch.Tensor:
        """
        Compute the cross-entropy at each labelled position, with the logits of only one chunk in memory at a time.
        Returns a single zero if no position is labelled.
        """
        if places_P.numel() == 0:
            # One ignored position keeps the LM head in the graph: in sharded training, every rank must call it
            places_P = places_P.new_zeros(1)
        width = labels_BT.shape[1]
        place_P = places_P // width, places_P % width  # flattening the states would copy them
        return self._losses_in_pieces(hidden_BTH[place_P], labels_BT[place_P], chunks)

    def _losses_in_pieces(self, hidden_PH: torch.Tensor, labels_P: torch.Tensor, chunks: int | None) -> torch.Tensor:
        """Compute the cross-entropies in chunks of positions; by default, the number of chunks depends on the vocabulary size."""
        if chunks is None:
            chunks = max(1, self.config.text_config.vocab_size // _VOCABULARY_PER_CHUNK)
        head = self.language_model.get_output_embeddings()
        if chunks == 1:
            return self._loss_from_logits(head(hidden_PH), labels_P).to(hidden_PH.device)
        # Whether the head is a plain matrix: not sharded, offloaded, quantised or adapted
        is_plain = type(head) is nn.Linear and head.weight.shape == (head.out_features, head.in_features)
        if is_plain and head.bias is None and head.weight.device == hidden_PH.device:
            return ChunkedCrossEntropy.apply(hidden_PH, head.weight, labels_P, chunks, self._loss_from_logits)
        pieces = zip(hidden_PH.tensor_split(chunks), labels_P.tensor_split(chunks), strict=True)
        losses = [
            checkpoint(lambda h, y: self._loss_from_logits(head(h), y), hidden, labels, use_reentrant=False)
            for hidden, labels in pieces
        ]
        return torch.cat(losses).to(hidden_PH.device)

    def _loss_from_logits(self, logits_PV: torch.Tensor, labels_P: torch.Tensor) -> torch.Tensor:
        logits_PV = self.scale_logits(logits_PV.float())
        labels_P = labels_P.to(logits_PV.device)
        return F.cross_entropy(logits_PV, labels_P, ignore_index=IGNORE_INDEX, reduction="none")

    def scale_logits(self, logits_PV: torch.Tensor) -> torch.Tensor:
        """Scale or cap the logits after the LM head, as the configs of some architectures require."""
        config = self.config.text_config.to_dict()
        if (scale := config.get("logit_scale") or config.get("lm_head_multiplier")) is not None:  # Cohere, Falcon-H1
            logits_PV = logits_PV * scale
        if (divisor := config.get("logits_scaling")) is not None:  # Granite
            logits_PV = logits_PV / divisor
        if (cap := config.get("final_logit_softcapping")) is not None:  # Gemma 2
            logits_PV = torch.tanh(logits_PV / cap) * cap
        return logits_PV

    def prepare_for_segments(self, shared_prompt: bool):
        """
        Set the attention implementation that flattened batches need, unless the model uses FlashAttention. With `shared_prompt`,
        segments have parents.

        Raises:
            `ValueError`: If the sequences of a flattened batch would see each other in this model, or could not share a prompt.
        """
        config, name = self.trunk.config, type(self.language_model).__name__
        option = "`shared_prompt`" if shared_prompt else "`padding_free`"
        # Other layer types carry state from token to token, or choose the tokens to attend to by position
        others = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
        if self.trunk._is_stateful or others:
            kinds = ", ".join(sorted(others)) or "state-space layers"
            raise ValueError(f"{option} cannot be used with {name}: its {kinds} would mix the sequences in a batch.")
        if not self._accepts_position_ids or not self.trunk._can_set_attn_implementation():
            raise ValueError(
                f"{option} cannot be used with {name}, which does not allow setting positions or the attention implementation."
            )
        if is_flash_attention_requested(config) and not shared_prompt:
            # FlashAttention's kernels receive the segment lengths. The kernels are not checked here, because they need a GPU, and the model
            # may still be on the CPU
            return
        if caps_attention(config):
            raise ValueError(
                f"{option} cannot be used with {name}, which caps its attention logits: "
                f"{'no attention implementation' if shared_prompt else 'only flash_attention_2'} supports that combination."
            )
        if config._attn_implementation not in ("sdpa", PACKED_SDPA):
            usable = "'sdpa'" if shared_prompt else "'sdpa' or 'flash_attention_2'"
            raise ValueError(
                f"{option} cannot be used with the attention implementation {config._attn_implementation!r}; load the "
                f"model with `attn_implementation` {usable}."
            )
        self.set_attn_implementation(PACKED_SDPA)
        if self.device.type != "meta":
            with runnable(self):
                check_segments(self, shared_prompt)

    def _init_weights(self, module: nn.Module):
        # The language model initialises its own modules
        if isinstance(module, RewardProjection):
            # Preserves the variance of the input, so that initial rewards are neither all equal nor large
            init.normal_(module.weight, mean=0.0, std=module.in_features**-0.5)
            if module.bias is not None:
                init.zeros_(module.bias)

    # ---------------------------------------------------------------------------------------------- use and delegation

    def score(self, prompts: list, responses: list[str], tokenizer: PreTrainedTokenizerBase, **kwargs) -> list[Score]:
        """Judge responses. The arguments, return value and errors are those of [`score_with_transformers`]."""
        return score_with_transformers(self, tokenizer, prompts, responses, **kwargs)

    def predict_reward(
        self,
        user_prompts: list,
        assistant_responses: list[str],
        tokenizer: PreTrainedTokenizerBase,
        critique_prompt: str | None = None,
        temp: float = 0.0,
        max_tokens: int = 1024,
    ) -> tuple[list[float], list[str]]:
        r"""
        Judge responses, with the signature of the reference implementation. Returns rewards and critiques (`""` for a classic model) in
        input order. See [`CLoudForRewardModeling.score`] for the arguments; `temp` and `max_tokens` are the reference's names for
        `temperature` and `max_new_tokens`.
        """
        scores = self.score(
            user_prompts,
            assistant_responses,
            tokenizer,
            critique_prompt=critique_prompt,
            temperature=temp,
            max_new_tokens=max_tokens,
        )
        return [score.reward for score in scores], [score.critique for score in scores]

    def generate(self, *args, **kwargs):
        """Generate with the language model. To write critiques, call [`CLoudForRewardModeling.score`]."""
        kwargs.setdefault("generation_config", self.generation_config)
        return self.language_model.generate(*args, **kwargs)

    def prepare_inputs_for_generation(self, *args, **kwargs):
        return self.language_model.prepare_inputs_for_generation(*args, **kwargs)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module):
        self.language_model.set_output_embeddings(value)

    def get_decoder(self) -> nn.Module:
        return self.trunk

    def save_pretrained(self, *args, **kwargs):
        """Save as in transformers, together with this code, so that the folder loads without this package."""
        self._add_to_auto_map()
        own_class = type(self)
        # FSDP2 replaces the class with a generated subclass, whose source file would be saved as the model's code
        self.__class__ = next(base for base in own_class.__mro__ if not issubclass(base, FSDPModule))
        try:
            super().save_pretrained(*args, **kwargs)
        finally:
            self.__class__ = own_class

    def save_without_weights(self, folder: str | Path):
        """Write the configs and the code as [`CLoudForRewardModeling.save_pretrained`] does, but not the weights."""
        self.config.architectures = [type(self).__name__]
        self._add_to_auto_map()
        custom_object_save(self, folder, config=self.config)  # pyright: ignore[reportArgumentType]  # annotated as a dict
        self.generation_config.save_pretrained(folder)
        self.config.save_pretrained(folder)

    def _add_to_auto_map(self):
        auto_map = getattr(self.config, "auto_map", None) or {}
        self.config.auto_map = {
            **auto_map,
            "AutoModelForSequenceClassification": f"modeling_cloud.{CLoudForRewardModeling.__name__}",
        }


def load_language_model(base: str, **kwargs) -> PreTrainedModel:
    """Load a causal language model, or the language model of a multimodal checkpoint. Raises `ValueError` if weights are missing."""
    config = read_config(base, **hub_options(kwargs))
    if language_config(config) is not config:
        kwargs |= {"config": language_config(config), "key_mapping": _MULTIMODAL_KEYS}
    loaded: Any = AutoModelForCausalLM.from_pretrained(base, output_loading_info=True, **kwargs)
    return _complete(base, loaded, kwargs)[0]


def _set_options(config: CLoudConfig, options: dict[str, Any]):
    """
    Set keys of a config that were given to `from_pretrained` in addition to the config. Raises `ValueError` if there is no such key, or the
    model cannot have the value.
    """
    if "use_cache" in options:
        config.text_config.use_cache = options.pop("use_cache")
    checked = CLoudConfig.from_dict({**config.to_dict(), **options}) if options else config
    for key, value in options.items():
        if (needed := getattr(checked, key, None)) != value:
            raise ValueError(f"`{key}` is {value!r}, but this model needs {needed!r}; omit the option.")
        setattr(config, key, value)


def _complete(name: Any, loaded: tuple[Any, dict[str, Any]], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return a model and the loading info that `from_pretrained` returned with it. Raises `ValueError` if weights are missing."""
    model, loading = loaded
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(
            f"{name} lacks {len(missing)} of the weights of a CLoud model: {', '.join(missing[:4])}. If it is a plain language model, "
            "create a reward model from it with `CLoudForRewardModeling.from_base`; if it is the base of an adapter, load the adapter with "
            "`cloud_hf.loading.load_reward_model`."
        )
    # Otherwise `save_pretrained` would write the weight names of the layout that the model was loaded from
    renamed = set(kwargs.get("key_mapping") or ())
    model._weight_conversions = [
        conversion
        for conversion in getattr(model, "_weight_conversions", None) or []
        if not renamed & set(conversion.source_patterns)
    ]
    return model, loading


def _read_quantization(kwargs: dict[str, Any]):
    """Convert options from earlier versions of transformers, such as `load_in_8bit`, which other tools still pass."""
    options = {key: kwargs.pop(key) for key in _QUANTIZATION_OPTIONS if key in kwargs}
    if options.get("load_in_8bit") or options.get("load_in_4bit"):
        if kwargs.get("quantization_config") is not None:
            raise ValueError(
                "Set `load_in_8bit` or `load_in_4bit` inside `quantization_config`, not in addition to it."
            )
        kwargs["quantization_config"] = BitsAndBytesConfig(**options)


def check_weights(name: str, model: nn.Module):
    """Raise [`NotFinite`] if any of a model's weights is NaN or infinite. In a sharded model, each rank checks only its own shards."""
    for key, weight in model.named_parameters():
        local = weight.to_local() if isinstance(weight, DTensor) else weight
        if local.dtype in _CHECKED_DTYPES and local.numel() and not local.is_meta:
            least, most = torch.aminmax(local.detach())  # NaN if any value is NaN
            if not (math.isfinite(least) and math.isfinite(most)):
                raise NotFinite(f"{name} has weights that are NaN or infinite, such as {key}.")


def labelled(labels_BT: torch.Tensor) -> torch.Tensor:
    """Return a `(P,)` tensor with the index of each labelled position in the flattened labels."""
    return (labels_BT != IGNORE_INDEX).flatten().nonzero()[:, 0]


def _labelled_sequences(places_P: torch.Tensor, width: int, reward_positions: torch.Tensor | None) -> torch.Tensor:
    """
    Return a `(P,)` tensor with the index of the sequence that each labelled position belongs to: the position's row or, in a flattened
    batch, the sequence with the next reward position.
    """
    if reward_positions is None:
        return places_P // max(width, 1)
    order_B = reward_positions.argsort()
    return order_B[torch.searchsorted(reward_positions[order_B], places_P)]


def unused_token_id(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> int | None:
    """Return the id of a token that no text encodes to: a reserved token, else a padding row of the embeddings, else `None`."""
    words = ("reserved", "unused", "placeholder", "dummy", "extra_id", "control_")
    spare = [
        token_id
        for token_id, token in tokenizer.added_tokens_decoder.items()
        if any(word in token.content.lower() for word in words)
        and token.content not in str(tokenizer.chat_template)
        and token_id not in (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    ]
    padding_row = vocab_size - 1 if vocab_size > len(tokenizer) else None
    return max(spare, default=padding_row)
