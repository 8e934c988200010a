"""Load the model and the tokenizer to train, and choose which weights to train."""

import logging
from typing import Any

import torch
from accelerate.utils import is_peft_model
from peft import PeftModel
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from trl.trainer.utils import get_config_model_id

from ..adapters import check_mergeable
from ..configuration_cloud import CLoudConfig
from ..loading import adapt, adapter_base, is_adapter, load_adapter_base, read_model_config
from ..modeling_cloud import CLoudForRewardModeling
from ..published import HUB_KWARGS, hub_options
from .arguments import set_chat_template
from .config import CLoudTrainingConfig
from .lora import check_adapter, check_quantization, complete_lora, continue_adapter, report_dropout, spare_head


logger = logging.getLogger(__name__)

# Options that are stored in the model's config, and must not change once the model exists
_MODEL_OPTIONS = ("critique", "critique_prompt", "critique_role", "keep_thinking", "format", "reward_head")


def prepare_tokenizer(tokenizer: Any, model: Any, args: CLoudTrainingConfig) -> PreTrainedTokenizerBase:
    """Load the model's tokenizer unless one is given, and set the chat template that `args` names."""
    name = model if isinstance(model, str) else get_config_model_id(model.config)
    if tokenizer is None:
        if not name:
            raise ValueError("The model was not loaded by name: pass its tokenizer as `processing_class`.")
        given: Any = args.model_init_kwargs or {}  # TRL also accepts a string, but it is already parsed here
        hub_kwargs = hub_options(given) if isinstance(model, str) else model._hub_kwargs
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=args.trust_remote_code, **hub_kwargs)
    if args.chat_template_path is not None:
        # TRL would set the template only after the critique format has been built from it
        set_chat_template(tokenizer, args.chat_template_path)
        args.chat_template_path = None
    return tokenizer


def load_model(
    name: str,
    args: CLoudTrainingConfig,
    tokenizer: PreTrainedTokenizerBase,
    quantization_config=None,
    peft_config=None,
) -> CLoudForRewardModeling | PeftModel:
    """
    Load a model for training by name: a CLoud model, a plain language model (which becomes a CLoud model), or a LoRA
    adapter for either, attached to its base.
    """
    given: Any = args.model_init_kwargs or {}
    kwargs: dict[str, Any] = dict(given)
    kwargs.setdefault("dtype", "float32")  # bf16 weights would lose small updates
    hub_kwargs = hub_options(kwargs)
    config_kwargs = {key: kwargs[key] for key in ("base_model_name_or_path", "text_config") if key in kwargs}
    config = read_model_config(name, **hub_kwargs, **config_kwargs)
    adapter = name if is_adapter(name, **hub_kwargs) else None
    check_quantization(quantization_config, adapter is not None or peft_config is not None)
    if isinstance(config, CLoudConfig):
        _check_options(name, config, args)
        if quantization_config is not None:
            kwargs["quantization_config"] = spare_head(quantization_config, config)
        if adapter is None:
            return CLoudForRewardModeling.from_pretrained(name, **kwargs)
        # Hub options, such as a revision, belong to the adapter; the base has its own
        own = {key: value for key, value in kwargs.items() if key not in HUB_KWARGS}
        model = load_adapter_base(adapter, config, None, hub_kwargs, **own)
    else:
        if adapter is not None:
            name, kwargs["revision"] = adapter_base(adapter, **hub_kwargs)
        model = _make_model(name, args, tokenizer, quantization_config, kwargs)
    return model if adapter is None else continue_adapter(adapter, model, tokenizer, peft_config, **hub_kwargs)


def _make_model(
    name: str, args: CLoudTrainingConfig, tokenizer, quantization_config, kwargs
) -> CLoudForRewardModeling:
    """Create a reward model from a plain language model, with a new reward head."""
    config = CLoudForRewardModeling.config_from_base(
        name,
        tokenizer,
        **{option: getattr(args, option) for option in _MODEL_OPTIONS},
        **hub_options(kwargs, "trust_remote_code"),
    )
    if quantization_config is not None:
        kwargs["quantization_config"] = spare_head(quantization_config, config)
    torch.manual_seed(args.seed)  # the reward head is initialised here, before the Trainer sets the seed
    return CLoudForRewardModeling.from_language_model(name, config, **kwargs)


def _check_options(name: str, config: CLoudConfig, args: CLoudTrainingConfig):
    """Check that a CLoud model is trained with the options that it was created with."""
    for option in _MODEL_OPTIONS:
        value = getattr(args, option)
        # If an option is left at its default, the model's value applies; `critique` must always match, because it selects the loss
        follows = option != "critique" and value == getattr(CLoudTrainingConfig, option)
        if not follows and getattr(config, option) != value:
            raise ValueError(
                f"{name} was created with {option}={getattr(config, option)!r}, but `{option}` is {value!r}. Start from its "
                "base model, or change the option."
            )


def check_model(model: Any, quantization_config, peft_config):
    """Check that a model instance can be trained with these options."""
    if quantization_config is not None:
        raise ValueError("`quantization_config` applies only to models loaded by name; load `model` with it instead.")
    if peft_config is not None and is_peft_model(model):
        raise ValueError("`model` is already an adapter; omit `peft_config`, or merge the adapter first.")
    if not isinstance(model.config, CLoudConfig):
        raise ValueError(
            f"`model` is a {type(model).__name__}. Pass a CLoudForRewardModeling (`from_base` creates one), or a name."
        )


def disable_numeric_dropout(model: torch.nn.Module):
    """
    Turn off the dropout whose rate a module keeps as a number and passes to a function, as the attention of Llama and Qwen does.

    TRL's `disable_dropout` turns off only modules of type `torch.nn.Dropout`.
    """
    for module in model.modules():
        for name in [name for name, value in vars(module).items() if "dropout" in name and isinstance(value, float)]:
            setattr(module, name, 0.0)


def choose_trained_weights(model: Any, peft_config, disable_dropout: bool) -> Any:
    """Wrap the model in the adapter, if one is requested, check that the reward head is trained, and freeze an unused LM head."""
    if peft_config is not None and not is_peft_model(model):
        if folder := model._hub_kwargs.get("subfolder"):
            raise ValueError(
                f"The model was loaded from the `subfolder` {folder!r} of {model.config.name_or_path}, which an adapter cannot record. "
                "Copy the subfolder to a separate folder, and start from that."
            )
        complete_lora(peft_config, model)
        peft_config.revision = model._hub_kwargs.get("revision")
        model = adapt(model, peft_config)
    if is_peft_model(model):
        check_adapter(model)
        check_mergeable(model)
        report_dropout(model, disable_dropout)
    if getattr(model.config.text_config, "output_router_logits", False):
        logger.warning(
            "The language model's config sets `output_router_logits`, but the loss of this stage does not include the router's load-balancing "
            "loss."
        )
    if not model.config.critique and not model.config.tie_word_embeddings:
        # A classic model generates nothing, so its LM head would get no gradient, and DDP would wait for that gradient
        model.get_output_embeddings().requires_grad_(False)
    return model
