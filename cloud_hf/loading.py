"""Load a reward model and its tokenizer by one name: a Hub id, a folder, or a LoRA adapter."""

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from peft import PeftConfig, PeftModel, PeftType, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils.save_and_load import load_peft_weights
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import cached_file

from .configuration_cloud import CLoudConfig, read_config
from .model_identity import hash_of_weights
from .modeling_cloud import CLoudForRewardModeling
from .published import HUB_KWARGS, is_published


# Which base an adapter was trained on, beside the adapter
BASE_RECORD = "base_model.json"
# What an adapter's base must agree in
_ARCHITECTURE = (
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads",
)  # fmt: skip
# Where PEFT's names of a language model's layers begin, in the language model and in the reward model around it
_PLAIN, _NESTED = "base_model.model.", "base_model.model.language_model."


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
        `ValueError`: If `name` is not a CLoud model, or an adapter's base is missing or another one.
    """
    hub_kwargs = {key: kwargs[key] for key in HUB_KWARGS if key in kwargs}
    architecture = {key: kwargs[key] for key in ("base_model_name_or_path", "text_config") if key in kwargs}
    check_reward_model(name, read_model_config(name, **architecture, **hub_kwargs))
    if "device_map" not in kwargs and torch.cuda.is_available():
        kwargs["device_map"] = "cuda"
    if is_adapter(name, **hub_kwargs):
        model = load_merged(name, **kwargs)
    else:
        model = CLoudForRewardModeling.from_pretrained(name, **kwargs)
    return model.eval(), AutoTokenizer.from_pretrained(tokenizer_source(name, **hub_kwargs), **hub_kwargs)


def load_merged(name: str, base: str | None = None, **kwargs) -> CLoudForRewardModeling:
    """
    A reward model from an adapter trained with [`CLoudTrainer`], merged into its base.

    Args:
        name (`str`):
            Hub id or folder of the adapter.
        base (`str`, *optional*):
            Where the base is, if no longer where it was in training.
        **kwargs:
            Passed to `from_pretrained` of the base; `revision`, `subfolder` and `token` are the adapter's.

    Raises:
        `ValueError`: If the base is missing, or another one than in training.
    """
    hub_kwargs = {key: kwargs.pop(key) for key in HUB_KWARGS if key in kwargs}
    config = read_model_config(name, **hub_kwargs)
    model = load_adapter_base(name, config, base, hub_kwargs, **kwargs)
    return attach_adapter(model, name, **hub_kwargs).merge_and_unload()


def load_critic(name: str, config: CLoudConfig, **kwargs) -> CLoudForRewardModeling:
    """
    A language model, or an adapter of one that is merged into it, as a CLoud model whose reward head is random.

    Args:
        name (`str`):
            Hub id or folder.
        config ([`CLoudConfig`]):
            From [`CLoudForRewardModeling.config_from_base`].
        **kwargs:
            Passed to `from_pretrained`.
    """
    if not is_adapter(name):
        return CLoudForRewardModeling.from_language_model(name, config, **kwargs)
    base, revision = adapter_base(name)
    model = CLoudForRewardModeling.from_language_model(base, config, revision=revision, **kwargs)
    return attach_adapter(model, name).merge_and_unload()


def load_adapter_base(
    name: str, config: CLoudConfig, base: str | None = None, hub_kwargs: dict[str, Any] | None = None, **kwargs
) -> CLoudForRewardModeling:
    """The reward model that an adapter adapts: its base under the adapter's config, `base` read from elsewhere if given."""
    base, revision = adapter_base(name, base, **(hub_kwargs or {}))
    kwargs = {"revision": revision, **_of_base(hub_kwargs or {}), **kwargs}
    options = {key: kwargs[key] for key in HUB_KWARGS if key in kwargs}
    base_dict, _ = CLoudConfig.get_config_dict(base, **options)
    is_cloud = is_published(base_dict) or base_dict.get("model_type") == CLoudConfig.model_type
    if not is_published(base_dict):
        base_config = read_config(base, **options)
        _check_architecture(name, config, base, base_config.text_config if is_cloud else base_config)
    if "quantization_config" not in base_dict and hasattr(config, "quantization_config"):
        del config.quantization_config  # the base was quantised in training only
    load = CLoudForRewardModeling.from_pretrained if is_cloud else CLoudForRewardModeling.from_language_model
    # The adapter carries its model's config, architecture included
    return load(base, config=config, **kwargs)


def attach_adapter(
    model: CLoudForRewardModeling, name: str, peft_config: PeftConfig | None = None, trainable=False, **hub_kwargs
) -> PeftModel:
    """
    An adapter around the model it was trained on. One of a language model goes around a reward model with that language
    model inside.

    Args:
        model ([`CLoudForRewardModeling`]):
            The base.
        name (`str`):
            Hub id or folder of the adapter.
        peft_config (`PeftConfig`, *optional*):
            Instead of the adapter's own. `modules_to_save` may name more; those keep the base's weights.
        trainable (`bool`, *optional*, defaults to `False`):
            Whether training goes on.

    Raises:
        `ValueError`: If names or shapes of the weights do not fit the model.
    """
    own_config = PeftConfig.from_pretrained(name, **hub_kwargs)
    if own_config.peft_type != PeftType.LORA:
        raise ValueError(f"{name} is a {own_config.peft_type.value} adapter; LoRA adapters can be used.")
    peft_config = peft_config or own_config
    weights = load_peft_weights(name, device="cpu", **hub_kwargs)
    if not isinstance(read_model_config(name, **hub_kwargs), CLoudConfig):
        if isinstance(peft_config.target_modules, str):  # a pattern of whole names
            peft_config.target_modules = rf"language_model\.(?:{peft_config.target_modules})"
        weights = {_NESTED + key.removeprefix(_PLAIN): weight for key, weight in weights.items()}
    peft_config.inference_mode = not trainable
    adapted = adapt(model, peft_config)
    own_weights = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    if not is_deepspeed_zero3_enabled():  # there a parameter's shape is not its own
        _check_weights(name, weights, own_weights)
    set_peft_model_state_dict(adapted, {**own_weights, **weights})
    return adapted


def adapt(model: CLoudForRewardModeling, peft_config: PeftConfig) -> PeftModel:
    """A fresh adapter around a model."""
    # ZeRO-3 gathers parameters of one data type only, see https://github.com/huggingface/trl/issues/6089
    one_dtype = is_deepspeed_zero3_enabled() and not getattr(model, "is_quantized", False)
    return get_peft_model(model, peft_config, autocast_adapter_dtype=not one_dtype)


def _check_weights(name: str, weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]):
    for key, weight in weights.items():
        if key not in expected:
            raise ValueError(f"{name} was trained over another base: this one has no {key}.")
        if weight.shape != expected[key].shape:
            shape, needed = tuple(weight.shape), tuple(expected[key].shape)
            raise ValueError(f"{name} was trained over another base: {key} has shape {shape}, but {needed} is needed.")
    # What is not in the file is the reward head, where an adapter of a language model gets one
    missing = [key for key in expected if key not in weights and "lora_" in key]
    if missing:
        raise ValueError(f"{name} lacks {len(missing)} weights that its base needs, such as {missing[0]}.")


# ------------------------------------------------------------------------------------------------------- what is where


def is_adapter(name: str, **hub_kwargs) -> bool:
    """Whether `name` is a LoRA adapter (or another one of PEFT's)."""
    return _has_file(name, "adapter_config.json", **hub_kwargs)


def adapter_base(name: str, base: str | None = None, **hub_kwargs) -> tuple[str, str | None]:
    """
    The base of an adapter.

    Args:
        name (`str`):
            Hub id or folder of the adapter.
        base (`str`, *optional*):
            Where the base is, if no longer where it was in training.

    Returns:
        `tuple[str, str | None]`: Its Hub id or folder, and its revision.

    Raises:
        `ValueError`: If it is missing, an adapter itself, or not the one that the adapter was trained on.
    """
    peft_config = PeftConfig.from_pretrained(name, **hub_kwargs)
    recorded, revision = base or peft_config.base_model_name_or_path, None if base else peft_config.revision
    moved = "If it has moved, give its place to `examples/merge_adapter.py --base_model_name_or_path`."
    if not recorded:
        raise ValueError(f"{name} does not say which model it adapts. {moved}")
    try:
        found = _has_file(recorded, "config.json", revision=revision, **_of_base(hub_kwargs))
    except OSError as error:
        raise ValueError(f"{name} adapts {recorded}, which cannot be read: {error} {moved}") from error
    if is_adapter(recorded, revision=revision, **_of_base(hub_kwargs)):
        raise ValueError(f"{name} adapts {recorded}, which is an adapter itself. Merge that one first.")
    if not found:
        raise ValueError(f"{name} adapts {recorded}, where there is no model. {moved}")
    _check_identity(name, recorded, **hub_kwargs)
    return recorded, revision


def read_model_config(name: str, base: str | None = None, **kwargs):
    """
    The config of a model; of an adapter the one it carries, if it is a reward model's, else its base's, read from `base`
    if that is given.

    Raises:
        `FileNotFoundError`: If there is no such folder, and `name` cannot be one of the Hub's.
    """
    _check_name(name)
    hub_kwargs = {key: kwargs[key] for key in HUB_KWARGS if key in kwargs}
    if not is_adapter(name, **hub_kwargs):
        return read_config(name, **kwargs)
    if _has_file(name, "config.json", **hub_kwargs):
        config = read_config(name, **kwargs)
        if isinstance(config, CLoudConfig):
            return config
    base, revision = adapter_base(name, base, **hub_kwargs)
    config = read_config(base, revision=revision, **_of_base(hub_kwargs))
    if isinstance(config, CLoudConfig):
        raise ValueError(
            f"{name} adapts the CLoud model {base}, but holds no config.json: it was not saved by CLoudTrainer."
        )
    return config


def _check_name(name: str):
    if not Path(name).exists():
        try:
            validate_repo_id(name)
        except HFValidationError:
            raise FileNotFoundError(
                f"There is no folder {name}, and a model on the Hub cannot have that name."
            ) from None


def check_reward_model(name: str, config):
    """Raise `ValueError` unless `config` is that of a reward model."""
    if not isinstance(config, CLoudConfig):
        raise ValueError(
            f"{name} is a {config.model_type} model, not a CLoud model. Train it with `examples/train_cloud.py` or "
            "`examples/train_classic.py`, or make a fresh one with `CLoudForRewardModeling.from_base`."
        )


def tokenizer_source(name: str, base: str | None = None, **hub_kwargs) -> str:
    """Where a model's tokenizer is: with it, or for an adapter that was saved without one, with its base."""
    if is_adapter(name, **hub_kwargs) and not _has_file(name, "tokenizer_config.json", **hub_kwargs):
        return adapter_base(name, base, **hub_kwargs)[0]
    return name


def record_base(folder: str | Path, model: PeftModel):
    """Write beside an adapter which weights its base has; [`adapter_base`] compares. Of a Hub id the name is enough."""
    base = model.peft_config["default"].base_model_name_or_path
    if base and Path(base).is_dir():
        record = {"version": 1, "model": base, "weights": hash_of_weights(base)}
        (Path(folder) / BASE_RECORD).write_text(json.dumps(record, indent=2) + "\n")


def _check_identity(name: str, base: str, **hub_kwargs):
    path = cached_file(name, BASE_RECORD, _raise_exceptions_for_missing_entries=False, **hub_kwargs)
    if path is None or not Path(base).is_dir():
        return  # names and shapes are compared later
    recorded = json.loads(Path(path).read_text())
    if hash_of_weights(base) != recorded["weights"]:
        raise ValueError(
            f"{name} was trained over another base: the weights in {base} are not those that {recorded['model']} had then."
        )


def _of_base(hub_kwargs: dict[str, Any]) -> dict[str, Any]:
    """The options of an adapter's repository that hold for its base's, too."""
    return {key: value for key, value in hub_kwargs.items() if key not in ("revision", "subfolder")}


def _check_architecture(name: str, config: CLoudConfig, base: str, base_config):
    for field in _ARCHITECTURE:
        ours, theirs = getattr(config.text_config, field, None), getattr(base_config, field, None)
        if ours != theirs:
            raise ValueError(
                f"{name} was trained over another base: `{field}` was {ours!r} there, but is {theirs!r} in {base}."
            )


def _has_file(name: str, file: str, **hub_kwargs) -> bool:
    return cached_file(name, file, _raise_exceptions_for_missing_entries=False, **hub_kwargs) is not None
