"""Read the checkpoints that the authors published, and convert their layout to the native one.

A published config does not contain the language model's architecture but only names a base (`base_model_name_or_path`), and published
weights are named `reward_base_model.*` and `reward_head.*`. A native config contains the architecture, and native weights are named
`language_model.*` and `reward_head.*`.
"""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from .safe_paths import check_links, is_inside


logger = logging.getLogger(__name__)

PUBLISHED_PREFIX = "reward_base_model."
NATIVE_PREFIX = "language_model."

# For each value of `feedback_method`, whether such a model writes critiques
FEEDBACK_METHODS = {"teacher": True, "vanilla": False}

HUB_KWARGS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def hub_options(kwargs: dict[str, Any], *further: str) -> dict[str, Any]:
    """Return the entries of `kwargs` that locate or download a model on the Hub, plus those named in `further`."""
    return {key: kwargs[key] for key in (*HUB_KWARGS, *further) if key in kwargs}


def has_file(name: str | Path, file: str, **hub_kwargs) -> bool:
    """Return whether a folder or a Hub repository contains a file."""
    return cached_file(name, file, _raise_exceptions_for_missing_entries=False, **hub_kwargs) is not None


# Keys of published configs that a native config does not need
_IGNORED_KEYS = {"_name_or_path", "architectures", "model_type", "torch_dtype", "dtype", "transformers_version"}


def is_published(config: dict[str, Any]) -> bool:
    """Return whether a config dictionary comes from a published checkpoint: it has a `feedback_method` but no `text_config`."""
    return "text_config" not in config and "feedback_method" in config


def native_config(
    config: dict[str, Any], text_config: PreTrainedConfig | dict | None, base: str | None, hub_kwargs: dict[str, Any]
) -> dict[str, Any]:
    """
    Convert a published config to the keys of a [`CLoudConfig`]. `text_config` defaults to the config of `base`, which in turn defaults to
    the published config's `base_model_name_or_path`.

    Raises:
        `ValueError`: If the published config is invalid, or the config of `base` cannot be loaded.
    """
    if unknown := sorted({*config} - _IGNORED_KEYS - {"feedback_method", "base_model_name_or_path"}):
        logger.warning("Unused keys of the published config: %s.", ", ".join(unknown))
    method = config["feedback_method"]
    if not isinstance(method, str) or method not in FEEDBACK_METHODS:
        raise ValueError(
            f"In the checkpoint's config, `feedback_method` is {method!r}; use {' or '.join(FEEDBACK_METHODS)}."
        )
    base = config.get("base_model_name_or_path") if base is None else str(base)
    if base is not None and not isinstance(base, str):
        raise ValueError(f"In the checkpoint's config, `base_model_name_or_path` is {base!r}, which is not a name.")
    architecture = _read_architecture(base, hub_kwargs) if text_config is None else text_config
    if not isinstance(architecture, dict | PreTrainedConfig):
        raise ValueError(f"`text_config` is {text_config!r:.60}; give a config or a dictionary.")
    text_config = dict(architecture) if isinstance(architecture, dict) else architecture.to_dict()
    # `base` may be a quantised copy of the language model; the checkpoint's weights are not quantised
    text_config.pop("quantization_config", None)
    native = {"critique": FEEDBACK_METHODS[method], "format": "reference", "base_model_name_or_path": base}
    # The data type also comes from the checkpoint, not from the base
    if dtype := config.get("dtype") or config.get("torch_dtype"):
        if not isinstance(getattr(torch, str(dtype), None), torch.dtype):
            raise ValueError(f"The checkpoint's config has the data type {dtype!r}, which torch does not support.")
        native["dtype"] = dtype
    return {**native, "text_config": {**text_config, "dtype": native.get("dtype")}}


def _read_architecture(base: str | None, hub_kwargs: dict[str, Any]) -> PreTrainedConfig:
    help_text = (
        "A published checkpoint does not describe its language model. Pass `base_model_name_or_path=` with the "
        "Hub id or folder of that model or of a copy (only the config is read), or `text_config=` with the "
        "config itself; `python -m cloud_hf.convert SRC DST --base_model_name_or_path BASE` writes a folder that needs "
        "neither."
    )
    if not base:
        raise ValueError(f"The checkpoint's config has no `base_model_name_or_path`. {help_text}")
    shared = {
        key: hub_kwargs[key] for key in ("cache_dir", "local_files_only", "proxies", "token") if key in hub_kwargs
    }
    try:
        return AutoConfig.from_pretrained(base, **shared)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"The checkpoint's base model {base!r} cannot be reached: {reason} {help_text}") from error


# ---------------------------------------------------------------------------------------------------------- weights


def find_weights(name: str, **hub_kwargs) -> list[Path]:
    """
    Find the safetensors files of a checkpoint, and download them from the Hub.

    Raises:
        `ValueError`: If there are no weights or only pickled ones, if there is both a single file and an index, or if the index is
            invalid or a file is missing or outside the folder.
    """

    def find(file: str) -> str | None:
        return cached_file(name, file, _raise_exceptions_for_missing_entries=False, **hub_kwargs)

    index, single = find(SAFE_WEIGHTS_INDEX_NAME), find(SAFE_WEIGHTS_NAME)
    if index is not None and single is not None:
        raise ValueError(
            f"{name} has both {SAFE_WEIGHTS_NAME} and {SAFE_WEIGHTS_INDEX_NAME}; remove the one that is out of date."
        )
    if index is not None:
        shards = find_shards(name, index, **hub_kwargs)
        if missing := [path.name for path in shards if not path.exists()]:
            raise ValueError(f"{name} lacks {len(missing)} of its {len(shards)} shards: {', '.join(missing)}.")
        return shards
    if single is not None:
        check_links(Path(single).parent, [single])
        return [Path(single)]
    if find(WEIGHTS_INDEX_NAME) or find(WEIGHTS_NAME):
        raise ValueError(
            f"The weights of {name} are pickled, and loading a pickle can run code, so only safetensors are loaded. If you "
            f"trust them, `python -m cloud_hf.convert {name} DST --from_pickle` writes safetensors."
        )
    raise ValueError(f"{name} has no weights: neither {SAFE_WEIGHTS_NAME} nor {SAFE_WEIGHTS_INDEX_NAME}.")


def find_shards(name: str, index: str, **hub_kwargs) -> list[Path]:
    """Find the files listed in a weight index. Raises `ValueError` if any of them is outside the index's folder."""
    _check_index(Path(index))
    shards = [Path(path) for path in get_checkpoint_shard_files(name, index, **hub_kwargs)[0] or ()]
    check_links(Path(index).parent, shards)
    return shards


def _check_index(path: Path):
    try:
        index = json.loads(path.read_text(encoding="utf8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    files = list(weight_map.values()) if isinstance(weight_map, dict) else []
    is_map = bool(files) and all(isinstance(file, str) for file in files)
    if not is_map or not isinstance(index.get("metadata"), dict):
        raise ValueError(
            f"{path} is not a weight index: it needs `metadata`, and a `weight_map` from weight names to files."
        )
    if outside := sorted(file for file in files if not is_inside(file)):
        raise ValueError(f"{path} names the file {outside[0]!r}, which is not inside its folder.")


def read_shapes(files: list[Path]) -> dict[str, tuple[int, ...]]:
    """Read all tensors' shapes from the headers of safetensors files. Raises `ValueError` if a file is damaged or repeats a weight."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            with safe_open(file, "pt") as tensors:
                found = {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{file} is not a complete safetensors file ({error}); download it again.") from error
        if twice := sorted(set(found) & set(shapes)):
            raise ValueError(f"{file} repeats weights from an earlier shard: {', '.join(twice[:4])}.")
        shapes |= found
    return shapes


def native_key(key: str) -> str:
    """Convert the published name of a weight to its native name. Native names are returned unchanged."""
    return NATIVE_PREFIX + key.removeprefix(PUBLISHED_PREFIX) if key.startswith(PUBLISHED_PREFIX) else key


def published_key(key: str) -> str:
    """Convert the native name of a weight to its published name."""
    return PUBLISHED_PREFIX + key.removeprefix(NATIVE_PREFIX) if key.startswith(NATIVE_PREFIX) else key


def check_shapes(name: str, shapes: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]], tied: set[str]):
    """
    Raise `ValueError`, naming the weights that do not fit, unless a checkpoint's shapes (by native name) match those that its
    architecture expects. Weights in `tied` may be missing.
    """
    missing = sorted(set(expected) - set(shapes) - tied)
    if head := [key for key in missing if key.startswith("reward_head.")]:
        raise ValueError(f"{name} has no complete reward head: it lacks {', '.join(head)}. Is it a reward model?")
    other = sorted(key for key in set(expected) & set(shapes) if expected[key] != shapes[key])
    if other:
        key = other[0]
        hint = "the head belongs to another model" if key.startswith("reward_head.") else "another base model?"
        if "embed" in key or "lm_head" in key:
            hint = f"a vocabulary of {shapes[key][0]} tokens, where the architecture has {expected[key][0]}"
        raise ValueError(
            f"{name}: {len(other)} weight(s) do not fit the architecture. {key} has the shape "
            f"{shapes[key]} in the checkpoint and {expected[key]} in the architecture ({hint})."
        )
    unexpected = sorted(set(shapes) - set(expected))
    for keys, verb, which in (
        (missing, "lacks", "of the architecture"),
        (unexpected, "has", "that the architecture lacks"),
    ):
        if keys:
            raise ValueError(
                f"{name} {verb} {len(keys)} weight(s) {which}: {', '.join(keys[:4])}. Is the base model the one that "
                "the checkpoint was trained from (`base_model_name_or_path`)?"
            )
