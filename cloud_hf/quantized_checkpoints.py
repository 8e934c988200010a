"""Load quantised checkpoints. Their heads must not be quantised, because rounding errors in the reward head distort rewards."""

from pathlib import Path
from typing import Any

from .published import read_shapes


_SPARED = ("reward_head.", "language_model.lm_head.")
_REWARD_HEAD = "re:.*reward_head.*"


def check_spared(name: str, files: list[Path]):
    """Raise `ValueError` if a quantised model's heads are also quantised."""
    found = [key for key in read_shapes(files) if key.startswith(_SPARED)]
    packed = sorted(key for key in found if not key.endswith((".weight", ".bias")))
    if packed:
        raise ValueError(
            f"{name} has quantised heads ({packed[0]}), which distort rewards. Quantise it again, but exclude the modules `reward_head` "
            "and `language_model.lm_head` (in llm-compressor, `ignore=['re:reward_head.*', 're:.*lm_head']`)."
        )


def spare_reward_head(quantization: dict[str, Any]) -> dict[str, Any]:
    """
    Exclude the reward head from quantisation in the config of a compressed-tensors checkpoint. The config's `ignore` lists an excluded
    module only if its own class (such as `nn.Linear`) was quantised elsewhere in the model. When the checkpoint is loaded, however, a
    module is also matched by its base classes, and the reward head's layers are instances of a subclass of `nn.Linear`.
    """
    if quantization.get("quant_method") != "compressed-tensors":
        return quantization
    ignored = quantization.get("ignore") or []
    return quantization if _REWARD_HEAD in ignored else {**quantization, "ignore": [*ignored, _REWARD_HEAD]}


def decompress(model: Any):
    """Decompress the weights of a compressed-tensors model. The library does so only in the first `forward`, which scoring may bypass."""
    if hasattr(model, "ct_decompress_hook"):
        model.hf_quantizer.compressor.decompress_model(model)
