"""Configuration of a CLoud model: a language model's config, the critique's wording, the reward scale."""

import math
from typing import Any

from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig
from transformers.generation import GenerationConfig


# The sentence the published CLoud checkpoints were trained with: models and data are interchangeable only if it is kept.
DEFAULT_CRITIQUE_PROMPT = (
    "The following is a break down on the correctness and usefulness of the assistant's response to my question:"
)

# What transformers itself writes into or hands to a composite config, beside the fields of its base class.
_LIBRARY_KEYS = {
    "attn_implementation",
    "auto_map",
    "bos_token_id",
    "eos_token_id",
    "experts_implementation",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "pad_token_id",
    "per_layer_config",
    "quantization_config",
    "tie_word_embeddings",
    "torch_dtype",
    "use_cache",
    *GenerationConfig._get_default_generation_params(),
}


class CLoudConfig(PreTrainedConfig):
    r"""
    Configuration of a [`CLoudForRewardModeling`]: any causal language model plus a reward head.

    Args:
        text_config (`PreTrainedConfig` or `dict`, *optional*):
            Config of the causal language model. A `dict` needs its `model_type`. Defaults to a Llama config.
        critique (`bool`, *optional*, defaults to `True`):
            `True`: the model writes a critique and the reward is read at its end (arXiv 2408.11791, section 2).
            `False`: the classic reward model, whose reward is read at the end of the response.
        critique_prompt (`str`, *optional*):
            Text that opens the critique turn. It ends without white space; one space joins the critique to it. Defaults
            to the sentence of the published checkpoints.
        critique_role (`str`, *optional*, defaults to `"user"`):
            Role of the turn that holds the critique, `"user"` or `"assistant"`. The latter is for chat templates that
            close only assistant turns.
        keep_thinking (`bool`, *optional*, defaults to `False`):
            Whether reasoning blocks (`<think>…</think>`) of the judged conversation are shown to the reward model where
            its chat template would drop them.
        chat_template_kwargs (`dict[str, Any]`, *optional*):
            Variables for the chat template, such as `{"date_string": "26 Jul 2024"}`. [`CLoudForRewardModeling.from_base`]
            pins the date of templates that would write today's.
        critique_end_token_id (`int`, *optional*):
            Id of the end-of-turn token at which the reward is read. Set by [`CLoudForRewardModeling.from_base`].
        reward_token_id (`int`, *optional*):
            A vocabulary id that never occurs in text, for engines that need to tell the critique's end from other
            ends of turn. `None` where the vocabulary has no spare id.
        reward_mean (`float`, *optional*, defaults to `0.0`):
            Subtracted from the head's output.
        reward_std (`float`, *optional*, defaults to `1.0`):
            The centred output is divided by it.

    Raises:
        `ValueError`: If a key is unknown or a value is not usable; the message names the key.

    Examples:

    ```python
    >>> from cloud_hf import CLoudConfig
    >>> config = CLoudConfig(text_config={"model_type": "llama", "hidden_size": 64}, critique_role="user")
    >>> config.text_config.hidden_size
    64
    ```
    """

    model_type = "cloud"
    sub_configs = {"text_config": AutoConfig}

    text_config: Any = None
    critique: bool = True
    critique_prompt: str = DEFAULT_CRITIQUE_PROMPT
    critique_role: str = "user"
    keep_thinking: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    critique_end_token_id: int | None = None
    reward_token_id: int | None = None
    reward_mean: float = 0.0
    reward_std: float = 1.0

    def __post_init__(self, **kwargs):
        self._refuse_unknown_keys(kwargs)
        if self.text_config is None:
            self.text_config = AutoConfig.for_model("llama")
        elif isinstance(self.text_config, dict):
            if "model_type" not in self.text_config:
                raise ValueError(
                    "CLoudConfig: `text_config` has no `model_type`; say which language model it describes."
                )
            self.text_config = AutoConfig.for_model(**self.text_config)
        self.critique_prompt = self.critique_prompt.rstrip()
        self._check_values()
        kwargs["num_labels"] = kwargs.get("num_labels", 1)
        if kwargs["num_labels"] != 1:
            raise ValueError(
                f"CLoudConfig: `num_labels` is {kwargs['num_labels']}, but a reward is one number: use 1."
            )
        # transformers ties weights by the outermost config, and the language model's embeddings are the ones to tie
        kwargs["tie_word_embeddings"] = self.text_config.tie_word_embeddings
        super().__post_init__(**kwargs)

    def _refuse_unknown_keys(self, kwargs: dict[str, Any]):
        if kwargs.get("model_type", "cloud") != "cloud":
            raise ValueError(
                f"This is the config of a {kwargs['model_type']} model, not of a CLoud model. Make one from it with "
                "`CLoudForRewardModeling.from_base`."
            )
        unknown = sorted(key for key in kwargs if key not in _LIBRARY_KEYS and not key.startswith("_"))
        if unknown:
            own = ", ".join(CLoudConfig.__annotations__)
            raise ValueError(f"CLoudConfig: unknown key(s) {', '.join(unknown)}. Its own keys are: {own}.")

    def _check_values(self):
        if self.critique_role not in ("user", "assistant"):
            raise ValueError(f"CLoudConfig: `critique_role` is {self.critique_role!r}; use 'user' or 'assistant'.")
        if self.critique and not self.critique_prompt:
            raise ValueError("CLoudConfig: `critique_prompt` is empty; the critique turn needs words to open it.")
        if not 0 < self.reward_std < math.inf:
            raise ValueError(f"CLoudConfig: `reward_std` is {self.reward_std}; it must be above 0.")
