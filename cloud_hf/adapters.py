"""
LoRA adapters: find and check an adapter's base model, attach the adapter, and merge it.

Functions that load a model take its class as an argument instead of importing it: the model's module imports this one, and
a saved model that runs its own copy of the class (`trust_remote_code`) must pass that copy.
"""

import json
import os
import re
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    PeftType,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME, AuxiliaryTrainingWrapper
from peft.utils.save_and_load import load_peft_weights
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.utils.hub import cached_file

from .configuration_cloud import CLoudConfig, check_name, check_types, language_config, read_config
from .model_identity import hash_of_weights
from .published import has_file, hub_options, is_published
from .safe_paths import check_links


# File in an adapter's folder that records which base the adapter was trained on
BASE_RECORD = "base_model.json"
# Config fields that must match between the loaded base and the base that the adapter was trained on
_ARCHITECTURE = (
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads",
)  # fmt: skip
# Types of the adapter config fields that determine which base is loaded and which layers are added
_ADAPTER_TYPES: dict[str, tuple[type, ...]] = {
    "base_model_name_or_path": (str, NoneType), "revision": (str, NoneType), "r": (int,), "lora_alpha": (int, float),
    "lora_dropout": (int, float), "target_modules": (str, list, set, NoneType), "modules_to_save": (list, NoneType),
    "rank_pattern": (dict, NoneType), "alpha_pattern": (dict, NoneType),
}  # fmt: skip
# Prefixes of PEFT's weight names: for a language model on its own, and for one inside a reward model
_PLAIN, _NESTED = "base_model.model.", "base_model.model.language_model."


def load_merged(model_class: Any, name: str, base: str | None = None, **kwargs) -> Any:
    """Load an adapter and merge it into its base, which is loaded with `model_class`; see [`loading.load_merged`]."""
    hub_kwargs = hub_options(kwargs)
    config = read_model_config(name, base, **hub_kwargs)
    if not isinstance(config, CLoudConfig):
        raise ValueError(
            f"{name} is an adapter of a language model, not of a reward model. Train a reward model from it with "
            "`examples/train_cloud.py`."
        )
    model = load_adapter_base(model_class, name, config, base, **kwargs)
    merged = merge(attach_adapter(model, name, **hub_kwargs), name)
    merged.config.name_or_path, merged._hub_kwargs = name, hub_kwargs  # where to load the tokenizer from
    return merged


def merge(adapted: PeftModel, name: str) -> Any:
    """Merge the adapter `name` into the reward model that it is attached to."""
    merged: Any = adapted.merge_and_unload()
    merged.name_or_path = merged.merged_adapter = name  # no longer the base
    # If the adapter has an LM head or embeddings of its own, PEFT unties the two, but only in the outermost config
    merged.config.text_config.tie_word_embeddings = merged.config.tie_word_embeddings
    return merged


def load_adapter_base(model_class: Any, name: str, config: CLoudConfig, base: str | None = None, **kwargs) -> Any:
    """Load an adapter's base as a reward model with the adapter's `config`. `base`, if given, replaces the recorded base."""
    base, revision = adapter_base(name, base, **hub_options(kwargs))
    kwargs = {**of_base(kwargs), "revision": revision}
    options = hub_options(kwargs)
    base_dict, _ = CLoudConfig.get_config_dict(base, **options)
    is_cloud = is_published(base_dict) or base_dict.get("model_type") == CLoudConfig.model_type
    if not is_published(base_dict):
        _check_architecture(name, config, base, language_config(read_config(base, **options)))
    if "quantization_config" not in base_dict and hasattr(config, "quantization_config"):
        delattr(config, "quantization_config")  # the base was quantised only during training
    load = model_class.from_pretrained if is_cloud else model_class.from_language_model
    return load(base, config=config, **kwargs)


def attach_adapter(
    model: PreTrainedModel, name: str, peft_config: LoraConfig | None = None, trainable=False, **hub_kwargs
) -> PeftModel:
    """
    Attach an adapter to the model it was trained on. A language model's adapter is attached to the language model inside the
    reward model.

    Args:
        peft_config (`LoraConfig`, *optional*):
            Config to use instead of the adapter's own. A module that is listed in `modules_to_save` here, but not in
            the adapter's config, keeps the base's weights.
        trainable (`bool`, *optional*, defaults to `False`):
            Whether the adapter's weights are trainable, to continue training.

    Raises:
        `ValueError`: If the names or shapes of the adapter's weights do not match the model's.
    """
    own_config = read_adapter_config(name, **hub_kwargs)
    check_lora(name, own_config)
    config = own_config if peft_config is None else peft_config
    _check_file(name, **hub_kwargs)
    weights = load_peft_weights(name, device="cpu", **hub_kwargs)
    if not isinstance(read_model_config(name, **hub_kwargs), CLoudConfig):
        _nest_patterns(config)
        weights = {_NESTED + key.removeprefix(_PLAIN): weight for key, weight in weights.items()}
    config.inference_mode = not trainable
    adapted = adapt(model, config)
    check_mergeable(adapted)
    own_weights = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    # For adapted embeddings and LM heads, PEFT also saves the base weights; skip them, but not trained biases
    weights = {key: weight for key, weight in weights.items() if key in own_weights or ".base_layer." not in key}
    if not is_deepspeed_zero3_enabled():  # partitioned parameters have placeholder shapes
        _check_weights(name, weights, own_weights)
    set_peft_model_state_dict(adapted, {**own_weights, **weights})
    return adapted


def _nest_patterns(config: LoraConfig):
    """Make the patterns of a language model's adapter match the same layers inside a reward model."""

    def nest(pattern: str) -> str:
        # `^` or `\A`, but not `[^`
        return re.sub(r"(?<![\[\\])\^|\\A", r"(?<=^language_model[.])", pattern)

    for field in ("target_modules", "exclude_modules"):
        if isinstance(pattern := getattr(config, field), str):  # matches complete names
            setattr(config, field, rf"language_model\.(?:{nest(pattern)})")
    for field in ("rank_pattern", "alpha_pattern"):  # match complete names or their last parts
        values = (getattr(config, field) or {}).items()
        setattr(config, field, {rf"language_model\.(?:.*\.)?(?:{nest(key)})": value for key, value in values})


def adapt(model: PreTrainedModel, peft_config: PeftConfig) -> PeftModel:
    """Attach a new adapter to a model."""
    # ZeRO-3 can only gather parameters of a single data type, see https://github.com/huggingface/trl/issues/6089
    one_dtype = is_deepspeed_zero3_enabled() and not getattr(model, "is_quantized", False)
    adapted = get_peft_model(model, peft_config, autocast_adapter_dtype=not one_dtype)
    assert isinstance(adapted, PeftModel)  # it is a PeftMixedModel only with `mixed=True`
    return adapted


def check_lora(name: str, config: PeftConfig):
    """Raise `ValueError` unless an adapter is a LoRA adapter that can be loaded into a reward model again."""
    if config.peft_type != PeftType.LORA:
        kind = getattr(config.peft_type, "value", config.peft_type)
        raise ValueError(f"{name} is a {kind} adapter; only LoRA adapters can be used.")
    lora: Any = config
    if lora.layer_replication:
        raise ValueError(
            f"{name} has `layer_replication` {lora.layer_replication}, but PEFT cannot repeat the layers of a reward model's "
            "language model. Omit the option, or repeat the layers in the base."
        )
    if str(lora.init_lora_weights).startswith(("pissa_niter", "corda", "lora_ga")):
        raise ValueError(
            f"{name} has `init_lora_weights` {lora.init_lora_weights!r}, which changes the base's weights in a way that cannot be repeated "
            "when the adapter is loaded. Use 'pissa' or 'olora', whose changes can."
        )


def check_mergeable(model: PeftModel):
    """
    Raise `ValueError` if an adapter changes the LM head or the embeddings of a model that ties them, or adds a bias to a layer
    without one.
    """
    layers = {"LM head": model.get_output_embeddings(), "embeddings": model.get_input_embeddings()}
    for layer, module in layers.items():
        if model.config.tie_word_embeddings and isinstance(module, BaseTunerLayer):
            raise ValueError(
                f"The adapter's `target_modules` include the {layer}, but the model's LM head and embeddings share their "
                f"weights (`tie_word_embeddings`), so merging the adapter would change both. Leave the {layer} out."
            )
    for name, module in model.named_modules():
        biased: Any = isinstance(module, BaseTunerLayer) and model.active_peft_config.to_dict()["lora_bias"]
        if biased and module.get_base_layer().bias is None:
            raise ValueError(
                f"`lora_bias` is True, but the layer {name.removeprefix(_PLAIN)} has no bias to merge the adapter's bias into. Omit "
                "`lora_bias`, or adapt only layers that have a bias."
            )


def check_tied_copies(model: Any):
    """Raise `ValueError` if an adapter trains a copy of tied embeddings or their LM head, which FSDP2 cannot shard."""
    layers = (model.get_output_embeddings(), model.get_input_embeddings())
    if model.config.tie_word_embeddings and any(isinstance(layer, AuxiliaryTrainingWrapper) for layer in layers):
        raise ValueError(
            "The adapter trains the LM head or embeddings in full (`modules_to_save`) or in part (`trainable_token_indices`), but FSDP2 cannot "
            "shard them in this model, which ties the two. Leave them out, or use DDP."
        )


def _check_file(name: str, **hub_kwargs):
    """Raise `ValueError` unless an adapter's weights are safetensors inside its folder."""
    path = cached_file(name, SAFETENSORS_WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False, **hub_kwargs)
    if path is None:
        raise ValueError(
            f"{name} has no {SAFETENSORS_WEIGHTS_NAME}. Pickled weights are not loaded: they can run code."
        )
    check_links(Path(path).parent, [path])


def _check_weights(name: str, weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]):
    for key, weight in weights.items():
        if key not in expected:
            raise ValueError(f"{name} was trained on another base: the loaded base has no {key}.")
        if weight.shape != expected[key].shape:
            shape, needed = tuple(weight.shape), tuple(expected[key].shape)
            raise ValueError(
                f"{name} was trained on another base: {key} has shape {shape}, but the loaded base needs {needed}."
            )
    # A missing reward head is allowed: a language model's adapter has none, and the model then keeps its new head
    missing = [key for key in expected if key not in weights and ("lora_" in key or ".base_layer." in key)]
    if missing:
        raise ValueError(f"{name} lacks {len(missing)} weights that its base needs, such as {missing[0]}.")


# ------------------------------------------------------------------------------------------------ configs and bases


def read_adapter_config(name: str, **hub_kwargs) -> Any:
    """
    Load an adapter's config. Raises `ValueError`, naming the field, if PEFT cannot load the config or a field has the wrong
    type.
    """
    try:
        config = PeftConfig.from_pretrained(name, **hub_kwargs)
    except (AttributeError, LookupError, TypeError) as error:
        raise ValueError(
            f"{name}: adapter_config.json cannot be used ({type(error).__name__}: {error!s:.200})."
        ) from error
    check_types(vars(config), _ADAPTER_TYPES, place=f"{name}: adapter_config.json")
    return config


def is_adapter(name: str, **hub_kwargs) -> bool:
    """Return whether `name` is a PEFT adapter."""
    return has_file(name, "adapter_config.json", **hub_kwargs)


def adapter_base(name: str, base: str | None = None, **hub_kwargs) -> tuple[str, str | None]:
    """
    Return the Hub id or folder of an adapter's base, and the base's revision. If the base has moved since training, pass
    its new location as `base`.

    Raises:
        `ValueError`: If the base is missing, is itself an adapter, or is not the model that the adapter was trained on.
    """
    peft_config = read_adapter_config(name, **hub_kwargs)
    recorded, revision = base or peft_config.base_model_name_or_path, None if base else peft_config.revision
    if recorded and not base and (beside := Path(name, hub_kwargs.get("subfolder") or "", recorded)).is_dir():
        recorded = os.path.normpath(beside)
    moved = "If it has moved, pass its location to `examples/merge_adapter.py --base_model_name_or_path`."
    if not recorded:
        raise ValueError(f"{name} does not name its base model. {moved}")
    try:
        found = has_file(recorded, "config.json", revision=revision, **of_base(hub_kwargs))
    except OSError as error:
        raise ValueError(f"{name} adapts {recorded}, which cannot be read: {error} {moved}") from error
    if is_adapter(recorded, revision=revision, **of_base(hub_kwargs)):
        raise ValueError(
            f"{name} adapts {recorded}, which is itself an adapter. Merge {recorded} into its base first."
        )
    if not found:
        raise ValueError(f"{name} adapts {recorded}, which does not contain a model. {moved}")
    _check_identity(name, recorded, **hub_kwargs)
    return recorded, revision


def read_model_config(name: str, base: str | None = None, **kwargs) -> Any:
    """
    Load a model's config. For an adapter, this is the reward model's config in the adapter's folder or, if there is none, the
    config of the adapter's base. `base`, if given, replaces the recorded base. Raises `FileNotFoundError` if `name` is
    neither a folder nor a possible Hub id.
    """
    hub_kwargs = hub_options(kwargs)
    check_name(name, hub_kwargs.get("subfolder"))
    if not is_adapter(name, **hub_kwargs):
        return read_config(name, **kwargs)
    if has_file(name, "config.json", **hub_kwargs):
        config = read_config(name, **kwargs)
        if isinstance(config, CLoudConfig):
            return config
    base, revision = adapter_base(name, base, **hub_kwargs)
    config = read_config(base, revision=revision, **of_base(hub_kwargs))
    if isinstance(config, CLoudConfig):
        raise ValueError(
            f"{name} adapts the CLoud model {base}, but has no config.json: it was not saved by CLoudTrainer."
        )
    return config


def record_base(folder: str | Path, model: PeftModel):
    """
    Write a hash of the base's weights to an adapter's folder, so that [`adapter_base`] can check the base later. A base on the
    Hub needs no hash, because its name identifies it. The path of a local base is stored relative to the adapter's folder.
    """
    config: Any = model.peft_config["default"]
    base, own_class = config.base_model_name_or_path, type(model.get_base_model())
    # The first pattern that matches a layer applies, but PEFT sorts the patterns when it saves them
    changes: dict[str, Any] = {"rank_pattern": config.rank_pattern, "alpha_pattern": config.alpha_pattern}
    if isinstance(model.config, CLoudConfig):
        # With a task type, PEFT would load a different model class, without the adapter's weights. Name the model's own class instead
        mapping = {"base_model_class": own_class.__name__, "parent_library": own_class.__module__}
        changes |= {"task_type": None, "auto_mapping": mapping}
    if base and Path(base).is_dir():
        changes["base_model_name_or_path"] = os.path.relpath(base, folder)
        record = {"version": 2, "model": Path(base).name, "weights": hash_of_weights(base)}
        (Path(folder) / BASE_RECORD).write_text(json.dumps(record, indent=2) + "\n")
        card = Path(folder) / "README.md"  # PEFT's card contains the path of the base
        if card.exists():
            card.write_text(card.read_text("utf-8").replace(base, Path(base).name), "utf-8")
    path = Path(folder) / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}, indent=2) + "\n")


def _check_identity(name: str, base: str, **hub_kwargs):
    path = cached_file(name, BASE_RECORD, _raise_exceptions_for_missing_entries=False, **hub_kwargs)
    if path is None or not Path(base).is_dir():
        return  # nothing to compare here; names and shapes of the weights are compared later
    try:
        recorded = json.loads(Path(path).read_text("utf8"))
        version, model, weights = int(recorded["version"]), recorded["model"], recorded["weights"]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path} is not a valid record of an adapter's base: {error!r:.200}.") from error
    if hash_of_weights(base, by_tensor=version > 1) != weights:
        raise ValueError(
            f"{name} was trained on another base: the weights in {base} differ from those of {model} at training time."
        )


def of_base(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Drop the options that locate an adapter but not its base: `revision` and `subfolder`."""
    return {key: value for key, value in kwargs.items() if key not in ("revision", "subfolder")}


def _check_architecture(name: str, config: CLoudConfig, base: str, base_config):
    for field in _ARCHITECTURE:
        ours, theirs = getattr(config.text_config, field, None), getattr(base_config, field, None)
        if ours != theirs:
            raise ValueError(
                f"{name} was trained on another base, in which `{field}` was {ours!r}; in {base}, it is {theirs!r}."
            )
