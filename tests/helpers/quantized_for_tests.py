"""Quantised checkpoints in the layout of compressed-tensors, as llm-compressor writes them."""

import copy
from pathlib import Path

from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config, preset_name_to_scheme
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import calculate_qparams


GROUP = 32
HEADS = ("re:reward_head.*", "re:.*lm_head")


def save_quantized(model, folder: Path, scheme: str = "W4A16", ignore=HEADS):
    """Save a copy whose weights are rounded to the nearest value of a preset `scheme`; return the model with those values."""
    quantized, rounded = copy.deepcopy(model), copy.deepcopy(model)
    group = preset_name_to_scheme(scheme, ["Linear"])
    if group.weights.group_size:
        group.weights.group_size = GROUP
    apply_quantization_config(quantized, QuantizationConfig(config_groups={"linear": group}, ignore=list(ignore)))
    for name, module in quantized.named_modules():
        if hasattr(module, "quantization_scheme"):
            weight, zero_point = module.weight.data, getattr(module, "weight_zero_point", None)
            groups = weight.unflatten(1, (-1, group.weights.group_size or weight.shape[1]))
            scale, _ = calculate_qparams(groups.amin(-1), groups.amax(-1), group.weights)
            module.weight_scale.data.copy_(scale)
            weight.copy_(fake_quantize(weight, module.weight_scale, zero_point, group.weights))
            rounded.get_submodule(name).weight.data.copy_(weight)
    compressor = ModelCompressor.from_pretrained_model(quantized)
    compressor.compress_model(quantized)
    quantized.save_pretrained(folder)
    compressor.update_config(str(folder))
    return rounded
