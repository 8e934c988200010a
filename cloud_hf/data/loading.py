"""Load a dataset by the name a user types: a Hub id, a JSONL or Parquet file, or a `save_to_disk` folder."""

from pathlib import Path

from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError


READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


def load_rows(name: str, split: str = "train", config: str | None = None, needs_split: bool = False) -> Dataset:
    """
    Load one split.

    Args:
        name (`str`):
            A Hub id, a `.jsonl`, `.json` or `.parquet` file (`.gz` allowed for JSON), or a folder written by
            `save_to_disk`.
        split (`str`, *optional*, defaults to `"train"`):
            Split to load. A single file, or a folder that holds one dataset, has no splits and is taken whole.
        config (`str`, *optional*):
            Configuration of a Hub dataset.
        needs_split (`bool`, *optional*, defaults to `False`):
            Refuse a dataset without splits instead of taking it whole.

    Returns:
        `Dataset`

    Raises:
        `ValueError`: If the path does not exist, cannot be read, or the split is absent.
    """
    path = Path(name)
    if path.is_dir() and ((path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists()):
        rows = _read_folder(name)
    elif path.is_file():
        suffix = next((suffix for suffix in path.suffixes[-2:] if suffix in READERS), None)
        if suffix is None:
            raise ValueError(f"{name}: a dataset file ends in {', '.join(READERS)} (JSON may be gzipped).")
        rows = _read_file(name, READERS[suffix])
    elif path.is_dir():
        raise ValueError(f"{name} is a folder, but not a dataset written by `save_to_disk`.")
    elif path.is_absolute() or name.startswith(".") or name.endswith((".gz", *READERS)):
        raise ValueError(f"{name}: no such file or dataset folder.")
    else:
        rows = load_dataset(name, config, split=split)
    if needs_split and not isinstance(rows, DatasetDict) and path.exists():
        raise ValueError(f"{name} has no splits, so no {split!r} split either; name another dataset for it.")
    if isinstance(rows, DatasetDict):
        if split not in rows:
            raise ValueError(f"{name} has no split {split!r}; it has {', '.join(rows)}.")
        rows = rows[split]
    return rows


def _read_folder(name: str) -> Dataset | DatasetDict:
    try:
        return load_from_disk(name)
    except IndexError as error:  # how `datasets` meets a folder without data files
        raise ValueError(f"{name} holds no rows.") from error


def _read_file(name: str, kind: str) -> Dataset:
    try:
        return load_dataset(kind, data_files=name, split="train")
    except (DatasetGenerationError, StopIteration, ValueError) as error:
        raise ValueError(
            f"{name} cannot be read as {kind}: {str(error.__cause__ or error) or 'it is empty'}"
        ) from error
