"""Load a reward model and its tokenizer by one name: a Hub id, a folder, or a LoRA adapter."""

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import cached_file

from .configuration_cloud import CLoudConfig, read_config
from .modeling_cloud import CLoudForRewardModeling


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
    architecture = {key: kwargs[key] for key in ("base_model_name_or_path", "text_config") if key in kwargs}
    config = read_model_config(name, **architecture)
    check_reward_model(name, config)
    if "device_map" not in kwargs and torch.cuda.is_available():
        kwargs["device_map"] = "cuda"
    load = _load_adapter if _has_file(name, "adapter_config.json") else _load_whole
    model = load(name, config, **kwargs)
    return model.eval(), AutoTokenizer.from_pretrained(name)


def read_model_config(name: str, **kwargs):
    """The config of a model, or of an adapter trained with [`CLoudTrainer`], which carries its model's."""
    if not _has_file(name, "config.json"):
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
    if not _has_file(name, "adapter_config.json"):
        return
    if _has_file(name, "config.json"):
        merge = f"model, tokenizer = load_reward_model({name!r}) (cloud_hf.loading)"
    else:
        merge = f"model = AutoPeftModelForCausalLM.from_pretrained({name!r}).merge_and_unload() (peft)"
    raise ValueError(
        f"{name} is a LoRA adapter. Merge it into its base first: {merge}, then `save_pretrained` the model and its "
        "tokenizer to a new folder."
    )


def _has_file(name: str, file: str) -> bool:
    return cached_file(name, file, _raise_exceptions_for_missing_entries=False) is not None


def _load_whole(name: str, config: CLoudConfig, **kwargs) -> CLoudForRewardModeling:
    return CLoudForRewardModeling.from_pretrained(name, **kwargs)


def _load_adapter(name: str, config: CLoudConfig, **kwargs) -> CLoudForRewardModeling:
    from peft import PeftConfig, PeftModel

    base = PeftConfig.from_pretrained(name).base_model_name_or_path
    if isinstance(read_config(base), CLoudConfig):
        model = CLoudForRewardModeling.from_pretrained(base, **kwargs)
    else:
        model = CLoudForRewardModeling.from_language_model(base, config, **kwargs)
    return PeftModel.from_pretrained(model, name).merge_and_unload()
