"""Configuration of a CLoud model: the language model's config, the critique prompt, and the scale of the rewards."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar

import torch
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from huggingface_hub.utils import validate_repo_id
from transformers import AutoConfig, GenerationConfig
from transformers.configuration_utils import PreTrainedConfig

from .published import hub_options, is_published, native_config
from .quantized_checkpoints import spare_reward_head


# The critique prompt of the published CLoud checkpoints. Changing it would break compatibility with these models and their data
DEFAULT_CRITIQUE_PROMPT = (
    "The following is a break down on the correctness and usefulness of the assistant's response to my question:"
)

# Conversation formats: ours, and that of the published checkpoints
FORMATS = ("cloud", "reference")

# Kinds of reward head: as in the published checkpoints, and as in transformers' sequence classifiers
REWARD_HEADS = ("mlp", "linear")

# Keys that transformers writes into a composite config, in addition to the fields of its base class
_LIBRARY_KEYS = {
    "attn_implementation", "auto_map", "bos_token_id", "eos_token_id", "experts_implementation", "model_type", "name_or_path",
    "num_labels", "output_attentions", "pad_token_id", "per_layer_config", "quantization_config", "sentence_transformers",
    "tie_word_embeddings", "torch_dtype", "use_cache", *GenerationConfig._get_default_generation_params(),
}  # fmt: skip

# Types of our keys, and of keys whose types transformers does not check
_OWN_TYPES: dict[str, tuple[type, ...]] = {
    "text_config": (PreTrainedConfig, dict, NoneType), "critique": (bool,), "critique_prompt": (str, NoneType),
    "critique_role": (str,), "format": (str,), "keep_thinking": (bool,), "chat_template_kwargs": (dict, NoneType),
    "critique_end_token_id": (int, NoneType), "reward_token_id": (int, NoneType), "reward_mean": (int, float),
    "reward_std": (int, float), "reward_head": (str,), "base_model_name_or_path": (str, NoneType),
}  # fmt: skip
_LIBRARY_TYPES: dict[str, tuple[type, ...]] = {
    "model_type": (str,), "auto_map": (dict,), "id2label": (dict, NoneType), "quantization_config": (dict, NoneType),
    "dtype": (str, dict, torch.dtype, NoneType), "torch_dtype": (str, dict, torch.dtype, NoneType),
    "layer_types": (list, tuple, NoneType),
}  # fmt: skip

# Attributes that tools read from any config; a CLoud config looks them up in its `text_config`
_OF_TEXT_CONFIG = (
    "bos_token_id", "eos_token_id", "hidden_size", "max_position_embeddings", "num_attention_heads", "num_hidden_layers",
    "num_key_value_heads", "pad_token_id", "vocab_size",
)  # fmt: skip


class CLoudConfig(PreTrainedConfig):
    r"""
    Configuration of a [`CLoudForRewardModeling`]: any causal language model plus a reward head.

    Args:
        text_config (`PreTrainedConfig` or `dict`, *optional*):
            Config of the causal language model. A `dict` needs its `model_type`. Defaults to a Llama config.
        critique (`bool`, *optional*, defaults to `True`):
            `True` for a model that writes a critique and whose reward is read at the end of the critique (arXiv 2408.11791,
            section 2). `False` for a classic reward model, whose reward is read at the end of the response.
        critique_prompt (`str`, *optional*):
            Text that opens the critique turn. Trailing white space is removed, and one space separates the text from the
            critique. Defaults to the critique prompt of the published checkpoints. (With `format="reference"`, the text is
            used unchanged.)
        critique_role (`str`, *optional*, defaults to `"user"`):
            Role of the critique turn, `"user"` or `"assistant"`. The latter is for chat templates that close only
            assistant turns.
        format (`str`, *optional*, defaults to `"cloud"`):
            `"cloud"`, which gives the same ids in training and in scoring, or `"reference"`, the format of the authors'
            published checkpoints (see [`ReferenceFormat`]).
        keep_thinking (`bool`, *optional*, defaults to `False`):
            Whether to keep reasoning blocks (`<think>…</think>`) that the chat template would drop from the judged
            conversation.
        chat_template_kwargs (`dict[str, Any]`, *optional*):
            Variables for the chat template, such as `{"date_string": "26 Jul 2024"}`. For templates that write the
            date, `strftime_now` sets a fixed day (`"2024-07-26"`). [`CLoudForRewardModeling.from_base`] sets the day for
            templates that would otherwise write the current date.
        critique_end_token_id (`int`, *optional*):
            Id of the end-of-turn token at which the reward is read. [`CLoudForRewardModeling.from_base`] sets it.
        reward_token_id (`int`, *optional*):
            A vocabulary id that never occurs in text. vLLM uses it to distinguish the end of the critique from other ends of
            turn. `None` if the vocabulary has no spare id; vLLM then extends the vocabulary by one id.
        reward_mean (`float`, *optional*, defaults to `0.0`):
            Subtracted from the head's output.
        reward_std (`float`, *optional*, defaults to `1.0`):
            Divides the centred output.
        reward_head (`str`, *optional*, defaults to `"mlp"`):
            `"mlp"` (two layers with a tanh, as in the published checkpoints) or `"linear"` (one layer without bias, as in
            transformers' `*ForSequenceClassification`, to which a classic model with this head can be converted).
        base_model_name_or_path (`str`, *optional*):
            Base model that a published checkpoint names. Informational only.

    Raises:
        `ValueError`: If a key is unknown or a value is invalid; the message names the key.

    Examples:

    ```python
    >>> from cloud_hf import CLoudConfig
    >>> config = CLoudConfig(text_config={"model_type": "llama", "hidden_size": 64}, critique_role="user")
    >>> config.text_config.hidden_size
    64
    ```
    """

    model_type = "cloud"
    sub_configs = {"text_config": AutoConfig}  # pyright: ignore[reportAssignmentType]  # as transformers' own do

    # Outputs to exclude from the Trainer's predictions, so that only the rewards remain
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "past_key_values", "lm_loss", "lm_loss_sums", "lm_loss_counts", "inner_rewards", "token_losses",
        "token_sequences",
    ]  # fmt: skip

    text_config: Any = None
    critique: bool = True
    critique_prompt: str | None = None
    critique_role: str = "user"
    format: str = "cloud"
    keep_thinking: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    critique_end_token_id: int | None = None
    reward_token_id: int | None = None
    reward_mean: float = 0.0
    reward_std: float = 1.0
    reward_head: str = "mlp"
    base_model_name_or_path: str | None = None

    def __post_init__(self, **kwargs):
        self._refuse_unknown_keys(kwargs)
        check_types(vars(self), _OWN_TYPES)
        if self.text_config is None:
            self.text_config = AutoConfig.for_model("llama")
        elif isinstance(self.text_config, dict):
            if "model_type" not in self.text_config:
                raise ValueError(
                    "CLoudConfig: `text_config` has no `model_type`; set it to the type of the language model."
                )
            check_types(self.text_config, _LIBRARY_TYPES, "text_config.")
            self.text_config = AutoConfig.for_model(**self.text_config)
        self.critique_prompt = spell_critique_prompt(self.critique_prompt, self.format)
        self._check_values()
        if kwargs.setdefault("num_labels", 1) != 1:
            raise ValueError(
                f"CLoudConfig: `num_labels` is {kwargs['num_labels']}, but a reward is one number: use 1."
            )
        # Rewards are unbounded: without these settings, pipelines and sentence-transformers would apply a sigmoid
        self.problem_type = "regression"
        kwargs["sentence_transformers"] = {"activation_fn": "torch.nn.modules.linear.Identity"}
        # transformers reads this from the outermost config, but it is the language model's embeddings that are tied
        kwargs["tie_word_embeddings"] = self.text_config.tie_word_embeddings
        if isinstance(quantization := kwargs.get("quantization_config"), dict):
            kwargs["quantization_config"] = spare_reward_head(quantization)
        unset = [key for key in _OF_TEXT_CONFIG if kwargs.get(key, 0) is None]
        super().__post_init__(**{key: value for key, value in kwargs.items() if key not in unset})

    def __getattr__(self, name: str) -> Any:
        text_config = self.__dict__.get("text_config")
        # With a `vocab_size`, PEFT would load the base's config again to compare vocabularies. For a published checkpoint, that
        # needs the checkpoint's own base, which may be inaccessible
        is_hidden = name == "vocab_size" and self.__dict__.get("format") == "reference"
        if name in _OF_TEXT_CONFIG and isinstance(text_config, PreTrainedConfig) and not is_hidden:
            return getattr(text_config, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _remove_keys_not_serialized(self, d: dict[str, Any]):
        super()._remove_keys_not_serialized(d)
        text_config = d.get("text_config")
        # A saved config must not contain a path from the machine on which it was created
        if isinstance(text_config, dict) and is_local(text_config.get("_name_or_path")):
            del text_config["_name_or_path"]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs) -> "CLoudConfig":
        r"""
        Load a config. A language model's config becomes the `text_config` of a default config. A published checkpoint's config, which has a
        `feedback_method` and no `text_config`, becomes a config with `format="reference"`. For `text_config` and
        `base_model_name_or_path`, see [`CLoudForRewardModeling.from_pretrained`].

        Raises:
            `ValueError`: If the config is in neither the native nor the published layout, or a published checkpoint's base cannot be read.
        """
        hub_kwargs = hub_options(kwargs)
        config_dict, kwargs = cls.get_config_dict(pretrained_model_name_or_path, **kwargs)
        with _named_errors(pretrained_model_name_or_path):
            check_types(config_dict, _LIBRARY_TYPES)
            if config_dict.get("model_type", "cloud") != "cloud" and not is_published(config_dict):
                # To compare vocabularies, PEFT loads the base's config with the config class of the adapted model
                config_dict = {"text_config": config_dict}
            return cls.from_dict(config_dict, hub_kwargs=hub_kwargs, **kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs) -> "CLoudConfig":
        """Create a config from a dictionary in the native or the published layout; see [`CLoudConfig.from_pretrained`]."""
        hub_kwargs = kwargs.pop("hub_kwargs", {})
        if is_published(config_dict):
            text_config, base = kwargs.pop("text_config", None), kwargs.pop("base_model_name_or_path", None)
            config_dict = native_config(config_dict, text_config, base, hub_kwargs)
        elif "text_config" not in config_dict and config_dict.get("model_type", "cloud") == "cloud":
            raise ValueError(_NEITHER_LAYOUT)
        return super().from_dict(config_dict, **kwargs)

    def _refuse_unknown_keys(self, kwargs: dict[str, Any]):
        if kwargs.get("model_type", "cloud") != "cloud":
            raise ValueError(
                f"This is the config of a {kwargs['model_type']} model, not of a CLoud model. Create a CLoud model from it with "
                "`CLoudForRewardModeling.from_base`."
            )
        unknown = sorted(key for key in kwargs if key not in _LIBRARY_KEYS and not key.startswith("_"))
        if unknown:
            own = ", ".join(CLoudConfig.__annotations__)
            raise ValueError(f"CLoudConfig: unknown key(s) {', '.join(unknown)}. Its own keys are: {own}.")

    def _check_values(self):
        choices = {"critique_role": ("user", "assistant"), "format": FORMATS, "reward_head": REWARD_HEADS}
        for key, allowed in choices.items():
            if (value := getattr(self, key)) not in allowed:
                raise ValueError(f"CLoudConfig: `{key}` is {value!r}; use {' or '.join(map(repr, allowed))}.")
        if self.format == "reference" and (self.critique_role != "user" or self.keep_thinking):
            raise ValueError("CLoudConfig: `format` 'reference' supports neither `critique_role` nor `keep_thinking`.")
        if self.critique and not (self.critique_prompt or "").strip():
            raise ValueError("CLoudConfig: `critique_prompt` is empty; the critique turn needs text to open it.")
        if not 0 < self.reward_std < math.inf:
            raise ValueError(f"CLoudConfig: `reward_std` is {self.reward_std}; it must be a finite number above 0.")
        if not abs(self.reward_mean) < math.inf:
            raise ValueError(f"CLoudConfig: `reward_mean` is {self.reward_mean}; it must be a finite number.")


_NEITHER_LAYOUT = (
    "The config is neither that of a CLoud model, which has a `text_config`, nor that of a published checkpoint, which has a "
    "`feedback_method`."
)


def spell_critique_prompt(critique_prompt: str | None, format: str) -> str:
    """Return a critique prompt (by default, the published one) as `format` uses it: only `"reference"` keeps trailing white space."""
    if format == "reference":
        return f"{DEFAULT_CRITIQUE_PROMPT} " if critique_prompt is None else critique_prompt
    return DEFAULT_CRITIQUE_PROMPT if critique_prompt is None else critique_prompt.rstrip()


def read_config(name: str | Path, **kwargs) -> Any:
    """Load any model's config, including one in the published layout, which [`~transformers.AutoConfig`] cannot load."""
    with _named_errors(name):
        config_dict, _ = PreTrainedConfig.get_config_dict(name, **kwargs)
        check_types(config_dict, _LIBRARY_TYPES)
        if "model_type" not in config_dict and not is_published(config_dict):
            raise ValueError(f"{name}: {_NEITHER_LAYOUT}")
        return (CLoudConfig if is_published(config_dict) else AutoConfig).from_pretrained(name, **kwargs)


@contextmanager
def _named_errors(name: str | Path) -> Iterator[None]:
    """Turn transformers' errors about wrong types in a config, which name only the field, into a `ValueError` that names the model."""
    try:
        yield
    except (StrictDataclassError, ArithmeticError, AttributeError, LookupError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{name}: the config cannot be used ({type(error).__name__}: {reason:.300}).") from error


def check_types(config: Any, types: dict[str, tuple[type, ...]], path: str = "", place: str = "The config"):
    """
    Raise `ValueError` if the type of a value is not among those that `types` allows for its key. In the message, `place` names the config,
    and `path` precedes the key.
    """
    if not isinstance(config, dict):
        raise ValueError(f"{place} is {config!r:.60}; it must be an object with named values.")
    for key, allowed in types.items():
        if key not in config:
            continue
        value = config[key]
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            names = " or ".join("null" if kind is NoneType else kind.__name__ for kind in allowed)
            raise ValueError(f"{place} is invalid: `{path}{key}` is {value!r:.60}; its type must be {names}.")
        if "dtype" in key and isinstance(value, str) and not isinstance(getattr(torch, value, None), torch.dtype):
            raise ValueError(
                f"In the config, `{path}{key}` is the data type {value!r:.60}, which torch does not support."
            )


def reward_token_in_vllm(config: CLoudConfig) -> int:
    """Return the `reward_token_id` or, if the vocabulary has no spare id, the id that vLLM appends to the vocabulary."""
    return config.text_config.vocab_size if config.reward_token_id is None else config.reward_token_id


def position_switch(text_config) -> int | None:
    """
    Return the length in tokens beyond which a sequence's position embeddings depend on the longest sequence in its
    batch; `None` if they never do. Longrope (Phi 3 and 4 with long contexts) switches its factors at this length, for all
    sequences in a batch at once.
    """
    parameters = getattr(text_config, "rope_parameters", None) or {}
    scopes = [parameters] if "rope_type" in parameters else [value for value in parameters.values() if value]
    limits = [scope["original_max_position_embeddings"] for scope in scopes if scope["rope_type"] == "longrope"]
    return min(limits, default=None)


def longest_sequence(text_config) -> int | None:
    """Return a language model's maximum sequence length in tokens; `None` if its config sets no limit."""
    limits = [getattr(text_config, "max_position_embeddings", None), position_switch(text_config)]
    return min((limit for limit in limits if limit is not None), default=None)


# Maps language model types that exist only inside multimodal models to the text-only types that give the same results on text,
# where positions are one-dimensional
_PLAIN_TYPES = {"qwen2_vl_text": "qwen2", "qwen2_5_vl_text": "qwen2", "qwen3_vl_text": "qwen3"}


def language_config(config: Any) -> Any:
    """
    Return the config of the language model inside a multimodal model's config. A language model's config is returned unchanged. Raises
    `ValueError` if transformers has no causal language model of this type.
    """
    # Not imported at the top of the file, because this module is itself imported while transformers imports `modeling_auto`
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    text_config = config.get_text_config(decoder=True)
    plain_type = _PLAIN_TYPES.get(text_config.model_type, text_config.model_type)
    if plain_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(
            f"{config.name_or_path or 'The base'} is a {config.model_type} model, and transformers has no causal language model of "
            f"the type {plain_type}. Start from a supported one, such as Llama, Qwen or Gemma."
        )
    if text_config is config:
        return config
    # For tied weights and special tokens, the outermost config is the one that counts
    outer = ("tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "dtype")
    options = text_config.to_dict()
    options |= {name: value for name in outer if (value := getattr(config, name, None)) is not None}
    if options.pop("model_type") in _PLAIN_TYPES:
        rope = {key: value for key, value in (options.get("rope_parameters") or {}).items() if "mrope" not in key}
        rope["rope_type"] = str(rope.get("rope_type", "default")).replace("mrope", "default")
        options["rope_parameters"] = rope
    return AutoConfig.for_model(str(plain_type), **options)


def lacks_lm_head(config: Any) -> bool:
    """Return whether a checkpoint is a scalar reward model or another classifier, and thus saved without an LM head."""
    return not config.tie_word_embeddings and _is_classifier(config)


def has_scalar_head(config: Any) -> bool:
    """Return whether a config describes transformers' own sequence classifier with one label, whose head is one linear layer."""
    return _is_classifier(config) and not getattr(config, "auto_map", None) and config.num_labels == 1


def _is_classifier(config: Any) -> bool:
    return any(name.endswith("ForSequenceClassification") for name in config.architectures or ())


def caps_attention(text_config: Any) -> bool:
    """Return whether a language model caps its attention logits (Gemma 2); transformers' `sdpa` silently ignores the cap."""
    return getattr(text_config, "attn_logit_softcapping", None) is not None


def hidden_width(text_config: Any) -> int:
    """Return the width of a language model's last hidden states. OPT can project them to the width of its embeddings."""
    return getattr(text_config, "word_embed_proj_dim", text_config.hidden_size)


def is_local(name: str | None) -> bool:
    """Return whether a model's name is a path on this or another machine rather than a Hub id."""
    return bool(name) and (Path(name).is_absolute() or Path(name).exists())


def check_name(name: str, subfolder: str | None = None):
    """Raise `FileNotFoundError` if `name` is neither a folder with a config (in its `subfolder`) nor a possible Hub id."""
    if Path(name).exists():
        folder = Path(name, subfolder or "")
        if not any((folder / config).exists() for config in ("config.json", "adapter_config.json")):
            raise FileNotFoundError(f"{folder} is not a model: it has neither config.json nor adapter_config.json.")
    else:
        try:
            validate_repo_id(name)
        except HFValidationError:
            raise FileNotFoundError(
                f"There is no folder {name}, and no model on the Hub can have that name."
            ) from None
