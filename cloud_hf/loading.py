"""Load a reward model and its tokenizer by one name: a Hub id, a folder, or a LoRA adapter."""

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import cached_file

from .configuration_cloud import CLoudConfig
from .modeling_cloud import CLoudForRewardModeling


def load_reward_model(name: str, **kwargs) -> tuple[CLoudForRewardModeling, PreTrainedTokenizerBase]:
    """
    Load a CLoud or classic model for scoring.

    Args:
        name (`str`):
            Hub id or folder of a model, or of a LoRA adapter trained with [`CLoudTrainer`]. An adapter is merged into
            its base.
        **kwargs:
            Passed to `from_pretrained` (`dtype`, `device_map`, `attn_implementation`, …). Without a `device_map` the
            model goes to the GPU if there is one.

    Returns:
        `tuple`: The model in evaluation mode and its tokenizer.

    Raises:
        `ValueError`: If `name` is not a CLoud model.
    """
    config = AutoConfig.from_pretrained(name)
    if not isinstance(config, CLoudConfig):
        raise ValueError(
            f"{name} is a {config.model_type} model, not a CLoud model. Train it with `examples/train_cloud.py` or "
            "`examples/train_classic.py`, or make a fresh one with `CLoudForRewardModeling.from_base`."
        )
    if "device_map" not in kwargs and torch.cuda.is_available():
        kwargs["device_map"] = "cuda"
    adapter_file = cached_file(name, "adapter_config.json", _raise_exceptions_for_missing_entries=False)
    model = (
        CLoudForRewardModeling.from_pretrained(name, **kwargs)
        if adapter_file is None
        else _load_adapter(name, config, **kwargs)
    )
    return model.eval(), AutoTokenizer.from_pretrained(name)


def _load_adapter(name: str, config: CLoudConfig, **kwargs) -> CLoudForRewardModeling:
    from peft import PeftConfig, PeftModel

    base = PeftConfig.from_pretrained(name).base_model_name_or_path
    if isinstance(AutoConfig.from_pretrained(base), CLoudConfig):
        model = CLoudForRewardModeling.from_pretrained(base, **kwargs)
    else:
        model = CLoudForRewardModeling.from_language_model(base, config, **kwargs)
    return PeftModel.from_pretrained(model, name).merge_and_unload()
