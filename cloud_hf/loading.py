"""Load a reward model and its tokenizer by one name: a Hub id, a folder, or a LoRA adapter."""

from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import cached_file

from .configuration_cloud import CLoudConfig, read_config
from .modeling_cloud import CLoudForRewardModeling
from .published import HUB_KWARGS, is_published


def load_reward_model(name: str, **kwargs) -> tuple[CLoudForRewardModeling, PreTrainedTokenizerBase]:
    """
    Load a CLoud or classic model for scoring.

    Args:
        name (`str`):
            Hub id or folder of a model, or of a LoRA adapter trained with [`CLoudTrainer`]. An adapter is merged into
            its base.
        **kwargs:
            Passed to `from_pretrained` (`dtype`, `device_map`, `attn_implementation`; for a published checkpoint
            `base_model_name_or_path` or `text_config`, …). Without a `device_map` the model goes to the GPU if there is
            one.

    Returns:
        `tuple`: The model in evaluation mode and its tokenizer.

    Raises:
        `ValueError`: If `name` is not a CLoud model.
    """
    hub_kwargs = {key: kwargs[key] for key in HUB_KWARGS if key in kwargs}
    architecture = {key: kwargs[key] for key in ("base_model_name_or_path", "text_config") if key in kwargs}
    config = read_model_config(name, **architecture, **hub_kwargs)
    check_reward_model(name, config)
    if "device_map" not in kwargs and torch.cuda.is_available():
        kwargs["device_map"] = "cuda"
    if is_adapter(name, **hub_kwargs):
        model = _load_adapter(name, config, hub_kwargs, **kwargs)
    else:
        model = CLoudForRewardModeling.from_pretrained(name, **kwargs)
    return model.eval(), AutoTokenizer.from_pretrained(name, **hub_kwargs)


def read_model_config(name: str, **kwargs):
    """The config of a model, or of an adapter trained with [`CLoudTrainer`], which carries its model's."""
    hub_kwargs = {key: kwargs[key] for key in HUB_KWARGS if key in kwargs}
    if not _has_file(name, "config.json", **hub_kwargs):
        refuse_adapter(name)
    return read_config(name, **kwargs)


def check_reward_model(name: str, config):
    """Raise `ValueError` unless `config` is that of a reward model."""
    if not isinstance(config, CLoudConfig):
        raise ValueError(
            f"{name} is a {config.model_type} model, not a CLoud model. Train it with `examples/train_cloud.py` or "
            "`examples/train_classic.py`, or make a fresh one with `CLoudForRewardModeling.from_base`."
        )


def refuse_adapter(name: str):
    """
    Raise `ValueError` if `name` is a LoRA adapter: training and critique writing start from whole models.
    """
    if not is_adapter(name):
        return
    if _has_file(name, "config.json"):
        merge = f"model, tokenizer = load_reward_model({name!r}) (cloud_hf.loading)"
    else:
        merge = f"model = AutoPeftModelForCausalLM.from_pretrained({name!r}).merge_and_unload() (peft)"
    raise ValueError(
        f"{name} is a LoRA adapter. Merge it into its base first: {merge}, then `save_pretrained` the model and its "
        "tokenizer to a new folder."
    )


def is_adapter(name: str, **hub_kwargs) -> bool:
    """Whether `name` is a LoRA adapter."""
    return _has_file(name, "adapter_config.json", **hub_kwargs)


def _has_file(name: str, file: str, **hub_kwargs) -> bool:
    return cached_file(name, file, _raise_exceptions_for_missing_entries=False, **hub_kwargs) is not None


def _load_adapter(name: str, config: CLoudConfig, hub_kwargs: dict[str, Any], **kwargs) -> CLoudForRewardModeling:
    from peft import PeftConfig, PeftModel

    base = PeftConfig.from_pretrained(name, **hub_kwargs).base_model_name_or_path
    kwargs = {key: value for key, value in kwargs.items() if key not in ("revision", "subfolder")}  # the adapter's
    base_config, _ = CLoudConfig.get_config_dict(base)
    is_cloud = is_published(base_config) or base_config.get("model_type") == CLoudConfig.model_type
    load = CLoudForRewardModeling.from_pretrained if is_cloud else CLoudForRewardModeling.from_language_model
    # The adapter carries its model's config, architecture included
    model = load(base, config=config, **kwargs)
    return PeftModel.from_pretrained(model, name, **hub_kwargs).merge_and_unload()
