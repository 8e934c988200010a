"""LoRA and QLoRA: choose layers, train the reward head in full, and continue training an existing adapter."""

import json
import logging
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import set_zero3_state
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.quantizers.base import get_keys_to_not_convert
from trl import ModelConfig, get_peft_config, get_quantization_config

from ..adapters import check_lora, read_adapter_config
from ..configuration_cloud import CLoudConfig, language_config
from ..loading import adapter_base, attach_adapter, is_adapter
from ..model_identity import identify_weights
from ..modeling_cloud import CLoudForRewardModeling, load_language_model
from .arguments import model_name


logger = logging.getLogger(__name__)

HEAD = "reward_head"
# Options that determine the shape or scale of an adapter's weights
_SHAPE_OPTIONS = ("r", "lora_alpha", "use_rslora", "use_dora")
# Other options that change what an adapter computes or which weights are trained. `init_lora_weights` is one of them, because PiSSA, for
# example, also changes the base
ADAPTER_OPTIONS = (
    "lora_dropout", "bias", "lora_bias", "modules_to_save", "rank_pattern", "alpha_pattern", "layers_to_transform",
    "layers_pattern", "layer_replication", "exclude_modules", "target_parameters", "trainable_token_indices",
    "fan_in_fan_out", "init_lora_weights",
)  # fmt: skip


def complete_lora(peft_config: LoraConfig, model: CLoudForRewardModeling):
    """
    Complete a LoRA config so that the reward head is trained and saved in full, and choose its target layers with
    [`choose_targets`]. Raises `ValueError` if `modules_to_save` leaves the head out.
    """
    saved = peft_config.modules_to_save
    if saved is not None and HEAD not in saved:
        raise ValueError(
            f"`modules_to_save` (`lora_modules_to_save`) is {list(saved)}, which leaves out the reward head: it would stay "
            f"random and not be saved. Add {HEAD!r}, or omit the option."
        )
    peft_config.modules_to_save = sorted({*(saved or []), HEAD})
    choose_targets(peft_config, model)


def choose_targets(peft_config: LoraConfig, model: PreTrainedModel):
    """
    Choose target layers as PEFT does for this language model, unless the config names some. Raises `ValueError` if a named
    layer does not exist; PEFT raises only if none of them exists.
    """
    targets = peft_config.target_modules
    if isinstance(peft_config, LoraConfig) and targets is None:
        known = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
        peft_config.target_modules = known.get(model.config.get_text_config().model_type, "all-linear")
        return
    if targets is None or isinstance(targets, str):  # a pattern: PEFT raises if it matches nothing
        return
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    names = {name for name, _ in model.named_modules()}
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            known = sorted({name.rpartition(".")[2] for name in linear if HEAD not in name})
            raise ValueError(
                f"`target_modules` (`lora_target_modules`) has {target!r}, but the model has no such layer. Its linear "
                f"layers are {', '.join(known)}."
            )


def report_dropout(model: PeftModel, disable_dropout: bool):
    """Log that `disable_dropout` turns off the dropout of an existing adapter."""
    rate = model.active_peft_config.to_dict()["lora_dropout"]
    if disable_dropout and rate:
        logger.warning(
            "The adapter was created with lora_dropout=%s, but is trained without dropout, because `disable_dropout` is on (the default in "
            "reward training). `disable_dropout=False` keeps the adapter's dropout and the language model's own.", rate,
        )  # fmt: skip


def check_dropout(peft_config: Any, disable_dropout: bool):
    """Raise `ValueError` if an adapter has dropout that `disable_dropout` would turn off."""
    if disable_dropout and isinstance(peft_config, LoraConfig) and peft_config.lora_dropout > 0:
        raise ValueError(
            f"`lora_dropout` is {peft_config.lora_dropout}, but `disable_dropout`, which is on by default in reward training, "
            "would turn it off. Pass `--disable_dropout False`, which also keeps the language model's dropout, or "
            "`--lora_dropout 0`."
        )


def check_quantization(quantization_config: BitsAndBytesConfig | None, has_adapter: bool):
    """Raise `ValueError` if a model is quantised without an adapter to train."""
    if quantization_config is not None and not has_adapter:
        raise ValueError(
            "Quantised weights (`load_in_4bit`, `load_in_8bit`) cannot be trained: add `--use_peft True` to "
            "train an adapter on them, or omit the option."
        )


def check_adapter(model: PeftModel):
    """
    Raise `ValueError` if an adapter is not a LoRA adapter, would not be saved with its base, or does not train the reward
    head.
    """
    if model.active_adapters != ["default"]:
        raise ValueError(
            f"The model's active adapter is {', '.join(map(repr, model.active_adapters))}, but training saves and resumes only the adapter "
            "'default'. Create the adapter with `get_peft_model` without `adapter_name`."
        )
    check_lora("`model`", model.active_peft_config)
    base: Any = model.get_base_model()
    if base.merged_adapter is not None:
        raise ValueError(
            f"The adapter's base is {base.merged_adapter}, an adapter that was merged while loading, so no saved model has "
            "the base's weights. Save the merged model (`cloud-hf merge-adapter`) and load it from there."
        )
    if not any(parameter.requires_grad for name, parameter in model.named_parameters() if HEAD in name):
        raise ValueError(
            f"The adapter leaves out the reward head, which would not be trained. Create it with `modules_to_save=[{HEAD!r}]`, "
            "and load it with `is_trainable=True`."
        )


def spare_head(quantization_config: BitsAndBytesConfig, config: CLoudConfig) -> BitsAndBytesConfig:
    """Exclude the reward head from quantisation, in addition to what transformers excludes (the LM head)."""
    if quantization_config.llm_int8_skip_modules is None:
        spared = get_keys_to_not_convert(CLoudForRewardModeling.without_weights(config))
        quantization_config.llm_int8_skip_modules = sorted({*spared, HEAD})
    return quantization_config


def read_lora(name: str, asked: LoraConfig | None, **hub_kwargs) -> LoraConfig:
    """Return the adapter's own options for continuing its training, with its dropout replaced by the requested one, if any."""
    own = read_adapter_config(name, **hub_kwargs)
    check_lora(name, own)
    if asked is not None:
        check_same_lora(name, own, asked)
        own.lora_dropout = asked.lora_dropout
    return own


def check_same_lora(name: str, own: LoraConfig, asked: LoraConfig):
    """Raise `ValueError` if the requested options describe a different adapter from the existing one."""
    for option in _SHAPE_OPTIONS:
        if getattr(asked, option) != getattr(own, option):
            raise ValueError(
                f"Training continues from the adapter {name}, which has {option}={getattr(own, option)}, but "
                f"{option}={getattr(asked, option)} was requested. Omit `use_peft`, or request the same value; for a new "
                "adapter, merge this one first (`examples/merge_adapter.py`)."
            )
    targets = [asked.target_modules, own.target_modules]
    if targets[0] is not None and targets[0] != targets[1] and "all-linear" not in targets:
        raise ValueError(
            f"Training continues from the adapter {name}, which adapts {targets[1]}, but {targets[0]} were requested. Omit `use_peft`, or "
            "request the same layers."
        )


def shape_of_adapter(model: PreTrainedModel | PeftModel) -> dict[str, Any] | None:
    """
    Return a JSON-serialisable dictionary of the options that two LoRA adapters must share for one to load the other's weights, or `None`
    if the model has no adapter.
    """
    if not isinstance(model, PeftModel):
        return None
    own = model.peft_config["default"].to_dict()
    targets = own.get("target_modules")
    shape = {option: own.get(option) for option in _SHAPE_OPTIONS}
    return {**shape, "target_modules": targets if isinstance(targets, str) else sorted(targets or [])}


def options_of_adapter(model: PreTrainedModel | PeftModel) -> dict[str, Any]:
    """Return the `ADAPTER_OPTIONS` of a LoRA adapter as JSON values, `None` if unused; nothing if the model has no adapter."""
    if not isinstance(model, PeftModel):
        return {}
    own = model.peft_config["default"].to_dict()
    # `None` if unused, because other versions of PEFT lack some of these options
    options = {option: own.get(option) or None for option in ADAPTER_OPTIONS}
    modules = options["modules_to_save"]
    return json.loads(json.dumps({**options, "modules_to_save": modules and sorted(modules)}, default=sorted))


def base_of_adapter(model: PreTrainedModel | PeftModel) -> str | None:
    """Identify an adapter's base with [`identify_weights`]; `None` if the model has no adapter, or its base was not loaded by name."""
    if not isinstance(model, PeftModel):
        return None
    base: Any = model.get_base_model()
    return identify_weights(base.name_or_path, model.peft_config["default"].revision) if base.name_or_path else None


def continue_adapter(
    name: str, base_model: CLoudForRewardModeling, tokenizer: PreTrainedTokenizerBase, asked: LoraConfig | None,
    **hub_kwargs,
) -> PeftModel:  # fmt: skip
    """
    Attach an adapter from stage 1 or from a reward model to its base, and prepare it for further training together
    with the reward head.
    """
    vocabulary = base_model.config.text_config.vocab_size
    if len(tokenizer) > vocabulary:
        raise ValueError(
            f"{name} was trained on another base: its tokenizer has {len(tokenizer)} tokens, but this base has only {vocabulary}."
        )
    peft_config = read_lora(name, asked, **hub_kwargs)
    if asked is not None:
        complete_lora(asked, base_model)  # raises if the options leave the head out
    # An adapter from stage 1 has no head yet
    peft_config.modules_to_save = sorted({*(peft_config.modules_to_save or []), HEAD})
    print(f"{name} is a LoRA adapter: training continues from it, together with the reward head.")
    return attach_adapter(base_model, name, peft_config, trainable=True, **hub_kwargs)


def model_for_sft(model_args: ModelConfig, config: PreTrainedConfig, init_kwargs: dict[str, Any]) -> dict[str, Any]:
    """
    Return the arguments that tell [`~trl.SFTTrainer`] what to train: either a language model, with a new adapter if one is requested, or
    an existing adapter on its base.

    Raises:
        `ValueError`: If a target layer does not exist, the requested adapter differs from the existing one, or the model
            is quantised without an adapter.
    """
    name, revision = model_name(model_args), model_args.model_revision
    peft_config: Any = get_peft_config(model_args)
    quantization_config = get_quantization_config(model_args)
    if not is_adapter(name, revision=revision):
        check_quantization(quantization_config, peft_config is not None)
        if peft_config is not None:
            # Create the model without weights, because only its layer names are needed. Under ZeRO-3, transformers would shard the
            # parameters with `deepspeed.zero.Init`; `set_zero3_state` prevents that
            with torch.device("meta"), set_zero3_state():
                choose_targets(peft_config, AutoModelForCausalLM.from_config(language_config(config)))
            peft_config.revision = revision
        options: dict[str, Any] = {"quantization_config": quantization_config}
        is_plain = set(config.architectures or ()) <= set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
        if is_plain and language_config(config) is config:
            return {"model": name, "peft_config": peft_config, **options}
        return {"model": load_language_model(name, **init_kwargs, **options), "peft_config": peft_config}
    own = read_lora(name, peft_config, revision=revision)
    base, base_revision = adapter_base(name, revision=revision)
    init_kwargs = {**init_kwargs, "revision": base_revision, "quantization_config": quantization_config}
    model = load_language_model(base, **init_kwargs)
    # PEFT keeps the recorded location, which is relative to the adapter's folder
    own.base_model_name_or_path = base
    print(f"{name} is a LoRA adapter: training continues from it.")
    return {"model": PeftModel.from_pretrained(model, name, is_trainable=True, config=own, revision=revision)}
