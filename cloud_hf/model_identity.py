"""Identify a model and its version, for the settings of a journal."""

import hashlib
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file, extract_commit_hash


_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin")
# The files that decide what a model computes
_FILES = (
    "config.json", "adapter_config.json", *_WEIGHTS, "tokenizer*", "*.model", "vocab*", "merges.txt", "added_tokens.json",
    "special_tokens_map.json", "chat_template*",
)  # fmt: skip
# Large files are sampled: training changes all weights, so reading gigabytes would detect no more
_BLOCKS = 256
_BLOCK_SIZE = 4096


def identify_model(name: str) -> dict[str, Any]:
    """
    Return the name and the version of a model.

    Args:
        name (`str`):
            Hub id or folder.

    Returns:
        `dict[str, Any]`: `model` is the name. `model_version` is the commit of a Hub id, or a hash of a folder's files,
        independent of the folder's path; it reads 1 MiB of a large file, spread evenly.

    Examples:

    ```python
    >>> identify_model("runs/critic-sft")
    {'model': 'runs/critic-sft', 'model_version': '5f0c…'}
    ```
    """
    if Path(name).is_dir():
        return {"model": name, "model_version": _hash_of_files(Path(name), _FILES)}
    config = cached_file(name, "config.json", _raise_exceptions_for_missing_entries=False)
    file = config or cached_file(name, "adapter_config.json")  # all that an adapter has
    return {"model": name, "model_version": extract_commit_hash(file, None)}


def hash_of_weights(folder: str | Path) -> str:
    """Hash the weights in a folder as [`identify_model`] does."""
    return _hash_of_files(Path(folder), _WEIGHTS)


def _hash_of_files(folder: Path, patterns: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            if size <= _BLOCKS * _BLOCK_SIZE:
                digest.update(file.read())
                continue
            for block in range(_BLOCKS):
                file.seek((size - _BLOCK_SIZE) * block // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK_SIZE))
    return digest.hexdigest()[:32]
