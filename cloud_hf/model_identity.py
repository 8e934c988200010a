"""Identify a model and its version, for the settings that a journal records."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from transformers.utils.hub import cached_file, extract_commit_hash


_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin")
# The files that determine what a model computes
_FILES = (
    "config.json", "adapter_config.json", *_WEIGHTS, "tokenizer*", "*.model", "vocab*", "merges.txt", "added_tokens.json",
    "special_tokens_map.json", "chat_template*",
)  # fmt: skip
# Large tensors are sampled: training changes all weights of a tensor, so reading gigabytes would detect no more changes. Small
# tensors, such as the reward head's, are read completely, because sampling the file as one piece could miss them.
_BLOCK_SIZE = 4096
_FILE_BLOCKS = 256
_TENSOR_BLOCKS = 16
_PARAMETER_SAMPLE = 4096


def identify_model(name: str) -> dict[str, Any]:
    """
    Return the name (`model`) and version (`model_version`) of a model on the Hub or in a folder.

    The version is the commit on the Hub, or a hash of the folder's files that does not depend on the folder's path. The hash covers only
    64 KiB of each large tensor, spread evenly. An adapter's hash also covers its base if the base is a folder.

    Examples:

    ```python
    >>> identify_model("runs/critic-sft")
    {'model': 'runs/critic-sft', 'model_version': '5f0c…'}
    ```
    """
    if Path(name).is_dir():
        version, base = _hash_of_files(Path(name), _FILES, by_tensor=True), _base_folder(Path(name))
        if base is not None:
            version += _hash_of_files(base, _FILES, by_tensor=True)
            version = hashlib.sha256(version.encode()).hexdigest()[:32]
        return {"model": name, "model_version": version}
    config = cached_file(name, "config.json", _raise_exceptions_for_missing_entries=False)
    file = config or cached_file(name, "adapter_config.json")  # adapters have only this file
    return {"model": name, "model_version": extract_commit_hash(file, None)}


def _base_folder(adapter: Path) -> Path | None:
    """Return the folder of an adapter's base; `None` if `adapter` is not an adapter or its base is not a local folder."""
    config = adapter / "adapter_config.json"
    base = json.loads(config.read_text(encoding="utf8")).get("base_model_name_or_path") if config.is_file() else None
    # We record a local base relative to the adapter's folder; other tools record it relative to the working directory
    return next((path for path in (adapter / base, Path(base)) if path.is_dir()), None) if base else None


def hash_of_weights(folder: str | Path, by_tensor: bool = True) -> str:
    """
    Hash a sample of the weights in a folder. Adapters record this hash of their base, so its definition must not change. Adapters from
    version 0.1 record the hash with `by_tensor=False`, which samples each file as one piece.
    """
    return _hash_of_files(Path(folder), _WEIGHTS, by_tensor)


def identify_weights(name: str, revision: str | None = None) -> str:
    """Return [`hash_of_weights`] for a folder, so that it may move, or the id and revision of a model on the Hub."""
    return hash_of_weights(name) if Path(name).is_dir() else f"{name}@{revision or 'main'}"


def hash_of_parameters(model: Any) -> str:
    """Hash the names, shapes and types of a loaded model's parameters, and a sample of each, spread evenly."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        flat = weight.detach().flatten()
        sample = flat[:: max(1, len(flat) // _PARAMETER_SAMPLE)].float().cpu()  # NumPy has no bfloat16
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()[:32]


def _hash_of_files(folder: Path, patterns: tuple[str, ...], by_tensor: bool) -> str:
    digest = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            spans = list(_tensor_spans(file, size)) if by_tensor and path.suffix == ".safetensors" else []
            blocks = _TENSOR_BLOCKS if spans else _FILE_BLOCKS
            for start, length in spans or [(0, size)]:
                for place, count in _sample(length, blocks):
                    file.seek(start + place)
                    digest.update(file.read(count))
    return digest.hexdigest()[:32]


def _tensor_spans(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    """Yield the start and length of a safetensors file's header and of each of its tensors; yield nothing if the file is malformed."""
    start = 8 + int.from_bytes(file.read(8), "little")
    try:
        header = json.loads(file.read(start - 8)) if 8 < start <= size else {}
    except ValueError:
        return
    if header:
        yield 0, start
    for name, tensor in header.items():
        if name != "__metadata__":
            first, end = tensor["data_offsets"]
            yield start + first, end - first


def _sample(length: int, blocks: int) -> Iterator[tuple[int, int]]:
    """Yield the offsets and lengths of blocks spread evenly over `length` bytes, or of a single block if they would cover everything."""
    if length <= blocks * _BLOCK_SIZE:
        yield 0, length
        return
    for block in range(blocks):
        yield (length - _BLOCK_SIZE) * block // (blocks - 1), _BLOCK_SIZE
