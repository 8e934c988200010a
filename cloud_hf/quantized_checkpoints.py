"""Quantised checkpoints. Their heads are not quantised: a rounded reward head rounds rewards."""

from pathlib import Path
from typing import Any

from .published import read_shapes


_SPARED = ("reward_head.", "language_model.lm_head.")
_REWARD_HEAD = "re:.*reward_head.*"


def check_spared(name: str, files: list[Path]):
    """Raise `ValueError` if the weights of a quantised model's heads are quantised, too."""
    found = [key for key in read_shapes(files) if key.startswith(_SPARED)]
    packed = sorted(key for key in found if not key.endswith((".weight", ".bias")))
    if packed:
        raise ValueError(
            f"{name} has quantised heads ({packed[0]}), which round rewards. Quantise it again without the modules `reward_head` and "
            "`language_model.lm_head` (in llm-compressor, `ignore=['re:reward_head.*', 're:.*lm_head']`)."
        )


def spare_reward_head(quantization: dict[str, Any]) -> dict[str, Any]:
    """
    Exclude the reward head in the config of a checkpoint by compressed-tensors. Its `ignore` names modules of the quantised classes
    only, but classes are matched by their bases when it is read, and the reward head's layers are a subclass of `nn.Linear`.
    """
    if quantization.get("quant_method") != "compressed-tensors":
        return quantization
    ignored = quantization.get("ignore") or []
    return quantization if _REWARD_HEAD in ignored else {**quantization, "ignore": [*ignored, _REWARD_HEAD]}


def decompress(model: Any):
    """Decompress the weights of a model by compressed-tensors, which would do it in the first `forward`; scoring does not call that."""
    if hasattr(model, "ct_decompress_hook"):
        model.hf_quantizer.compressor.decompress_model(model)
