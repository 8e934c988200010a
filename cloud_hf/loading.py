"""Load a reward model and its tokenizer by name: a Hub id, a folder, or a LoRA adapter."""

from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from . import adapters
from .adapters import adapt, adapter_base, attach_adapter, is_adapter, read_model_config, record_base
from .configuration_cloud import CLoudConfig
from .modeling_cloud import CLoudForRewardModeling
from .published import has_file, hub_options
from .scalar_models import is_scalar_model


__all__ = [
    "adapt",
    "adapter_base",
    "attach_adapter",
    "check_reward_model",
    "is_adapter",
    "load_adapter_base",
    "load_critic",
    "load_merged",
    "load_reward_model",
    "read_model_config",
    "record_base",
    "tokenizer_source",
]


def load_reward_model(name: str, **kwargs) -> tuple[CLoudForRewardModeling, PreTrainedTokenizerBase]:
    """
    Load a CLoud or classic model for scoring.

    Args:
        name (`str`):
            Hub id or folder of a model, or of a LoRA adapter trained with [`CLoudTrainer`]. An adapter is merged into
            its base.
        **kwargs:
            Passed to `from_pretrained` (`dtype`, `device_map`, `attn_implementation`; for a published checkpoint,
            `base_model_name_or_path` or `text_config`, …). Without a `device_map`, the model is loaded onto the GPU if
            there is one.

    Returns:
        `tuple`: The model in evaluation mode and its tokenizer.

    Raises:
        `ValueError`: If `name` is not a CLoud or classic model, or an adapter's base is missing or is not the one it was trained on.
    """
    hub_kwargs = hub_options(kwargs)
    architecture = {key: kwargs[key] for key in ("base_model_name_or_path", "text_config") if key in kwargs}
    check_reward_model(name, read_model_config(name, **architecture, **hub_kwargs))
    if "device_map" not in kwargs and torch.cuda.is_available():
        kwargs["device_map"] = "cuda"
    load: Any = load_merged if is_adapter(name, **hub_kwargs) else CLoudForRewardModeling.from_pretrained
    model = load(name, **kwargs)
    source = tokenizer_source(name, **hub_kwargs)
    return model.eval(), AutoTokenizer.from_pretrained(
        source, **(hub_kwargs if source == name else adapters.of_base(hub_kwargs))
    )


def load_merged(name: str, base: str | None = None, **kwargs) -> CLoudForRewardModeling:
    """
    Load an adapter trained with [`CLoudTrainer`] and merge it into its base.

    Args:
        name (`str`):
            Hub id or folder of the adapter.
        base (`str`, *optional*):
            Location of the base, if it has moved since training.
        **kwargs:
            Passed to the base's `from_pretrained`. Hub options, such as `token`, also apply to the adapter; `revision` and
            `subfolder` apply only to the adapter.

    Raises:
        `ValueError`: If the base is missing, or is not the one that the adapter was trained on.
    """
    return adapters.load_merged(CLoudForRewardModeling, name, base, **kwargs)


def load_critic(name: str, config: CLoudConfig, **kwargs) -> CLoudForRewardModeling:
    """
    Load a language model as a CLoud model with a random reward head. `name` may also be a language model's adapter, which is then merged
    into its base. `config` comes from [`CLoudForRewardModeling.config_from_base`].
    """
    if not is_adapter(name):
        return CLoudForRewardModeling.from_language_model(name, config, **kwargs)
    base, revision = adapter_base(name)
    model = CLoudForRewardModeling.from_language_model(base, config, revision=revision, **kwargs)
    return adapters.merge(attach_adapter(model, name), name)


def load_adapter_base(
    name: str, config: CLoudConfig, base: str | None = None, hub_kwargs: dict[str, Any] | None = None, **kwargs
) -> CLoudForRewardModeling:
    """Load an adapter's base as a reward model, with the adapter's `config`; `base` overrides the recorded base."""
    return adapters.load_adapter_base(CLoudForRewardModeling, name, config, base, **(hub_kwargs or {}), **kwargs)


def check_reward_model(name: str, config):
    """Raise `ValueError` unless `config` describes a CLoud or classic model."""
    if is_scalar_model(config):
        raise ValueError(
            f"{name} is a third-party scalar model ({', '.join(config.architectures or ['remote code'])}), not a CLoud "
            "model. Score it in this process, with `backend` 'transformers' (`ScalarScorer`)."
        )
    if not isinstance(config, CLoudConfig):
        raise ValueError(
            f"{name} is a {config.model_type} model, not a CLoud model. Train it with `examples/train_cloud.py` or "
            "`examples/train_classic.py`, or create a reward model from it with `CLoudForRewardModeling.from_base`."
        )


def tokenizer_source(name: str, base: str | None = None, **hub_kwargs) -> str:
    """Return the location of a model's tokenizer: the model itself or, for an adapter saved without a tokenizer, its base."""
    if is_adapter(name, **hub_kwargs) and not has_file(name, "tokenizer_config.json", **hub_kwargs):
        return adapter_base(name, base, **hub_kwargs)[0]
    return name
