"""Load rows, and check their columns."""

import difflib
import glob
import re
import warnings
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import fsspec
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError
from pandas.errors import ParserWarning

from .journal import key_of
from .public_layouts import conversion_hint, to_convert
from .tool_arguments import without_added_arguments


class Rows(Protocol):
    """Rows that can be indexed by position: a `datasets.Dataset`, or a list of dictionaries."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...

    def __iter__(self) -> Iterator[Any]: ...


def check_columns(
    columns: list[str],
    required: tuple[str, ...],
    purpose: str,
    source: tuple[str, str, str | None] = ("DATASET", "train", None),
):
    """
    Raise `ValueError` if columns are missing. The message starts with `purpose`, for example `"Critique SFT"`, and points out likely
    misspellings. If pairs are required and the columns have a known public layout, the message names the layout and the command that
    converts the dataset; `source` is the dataset's name, split and configuration in that command.
    """
    missing = [name for name in required if name not in columns]
    is_pairs = {"chosen", "rejected"} <= {*required}
    if is_pairs and "prompt" not in (*columns, *missing) and to_convert(columns):
        missing.insert(0, "prompt")
    if not missing:
        return
    others = [name for name in columns if name not in required]
    hints = []
    for name in missing:
        if close := difflib.get_close_matches(name, others, n=1, cutoff=0.75):
            hints.append(f"rename {close[0]!r} to {name!r}")
    hint = f" ({'; '.join(hints)}?)" if hints else ""
    raise ValueError(
        f"{purpose} needs the column(s) {', '.join(missing)}{hint}. The dataset has: {', '.join(columns) or 'none'}."
        + (conversion_hint(columns, *source) if is_pairs else "")
    )


def dataset_label(name: str) -> str:
    """Return the name under which a dataset is recorded: only the last part of a path, because the folder may differ between machines."""
    return Path(name).resolve().name if Path(name).exists() else name


def short_names(names: list[str]) -> dict[str, str]:
    """
    Shorten paths and Hub ids to their last part, or to as many parts as are needed to distinguish them. A hash is appended to names that
    would yield the same file name, such as `a/x` and `a-x`.
    """
    parts = {name: Path(name).parts for name in names}
    length = {
        name: next(n for n in range(1, 100) if sum(p[-n:] == own[-n:] for p in set(parts.values())) == 1)
        for name, own in parts.items()
    }
    shown = {name: "/".join(own[-length[name] :]).strip("/") for name, own in parts.items()}
    used = Counter(_file_spelling(short) for _, short in {(parts[name], short) for name, short in shown.items()})
    for name, short in shown.items():
        if used[_file_spelling(short)] > 1:
            shown[name] = f"{short}~{sha256(str(Path(name)).encode()).hexdigest()[:8]}"
    return shown


def _file_spelling(short_name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", short_name)


def hash_of_rows(rows: Rows) -> str:
    """Return an order-dependent hash of the rows' contents. Raises `ValueError` for values such as images, which have no stable text."""
    # Chain the hashes of the rows, because the rows together may not fit in memory
    digest = ""
    for row in rows:
        digest = key_of(digest, row, default=_text_of)
    return digest


def _text_of(value: Any) -> str:
    """Return the text of a value that Arrow has and JSON lacks."""
    if isinstance(value, date | time | timedelta | Decimal | bytes):
        return str(value)
    # The text of other values, such as images, may contain an address, which differs between runs
    raise ValueError(
        f"The rows contain a value of type {type(value).__name__}, which cannot be hashed. Remove its column."
    )


def row_name(index: int, row: Mapping[str, Any]) -> str:
    """Return the name by which messages refer to a row: its position, and its `id` if it has one."""
    return f"row {index}" + (f" (id {row['id']!r})" if row.get("id") is not None else "")


# The file readers of `datasets.load_dataset` by file extension
READERS = {
    ".jsonl": "json", ".json": "json", ".ndjson": "json", ".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".arrow": "arrow",
}  # fmt: skip
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
# Without these options, pandas would treat strings such as "NA" and "None" as missing, and parse a column of answers such as "4" as numbers
_TEXT_COLUMNS = ("prompt", "chosen", "rejected", "chosen_feedback", "rejected_feedback", "response")
_CSV_OPTIONS = {
    "keep_default_na": False,
    "na_values": [""],
    "converters": dict.fromkeys(_TEXT_COLUMNS, str),
    "index_col": False,
}
# Words in file and folder names that `datasets` recognises as split names
_SPLIT_NAME = re.compile(r"(^|[^a-z])(train|training|test|testing|eval|evaluation|valid|validation|val|dev)([^a-z]|$)")


def load_rows(name: str, split: str = "train", config: str | None = None, needs_split: bool = False) -> Dataset:
    """
    Load one split of a dataset. `name` can be a Hub id, a file (JSON lines, JSON, CSV, TSV, Parquet or Arrow, possibly compressed), a
    pattern such as `"data/*.parquet"`, a folder of files, a downloaded dataset repository, or a `save_to_disk` folder.

    Files, patterns and `save_to_disk` folders of a single `Dataset` have no splits. A folder of files has splits only if the names of
    its files or subfolders contain split names. Without splits, `split` is ignored or, if `needs_split` is true, causes a `ValueError`.

    Raises `ValueError` if the path does not exist or cannot be read, or if it has no such split.
    """
    path = Path(name)
    if path.is_dir():
        rows = _read_folder(path, config)
    elif path.is_file():
        rows = _read_files(name, [name])
    elif files := sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else []:
        rows = _read_files(name, files)
    elif path.is_absolute() or name.startswith(".") or glob.has_magic(name) or name.endswith((*_COMPRESSED, *READERS)):
        raise ValueError(f"{name}: no such file or dataset folder.")
    else:
        return without_added_arguments(load_dataset(name, config, split=split), name)
    if isinstance(rows, Dataset):
        if needs_split:
            raise ValueError(
                f"{name} has no splits, so it has no split {split!r}; use another dataset for this split."
            )
        return without_added_arguments(rows, name)
    if split not in rows:
        raise ValueError(f"{name} has no split {split!r}; it has {', '.join(map(str, rows))}.")
    return without_added_arguments(rows[split], name)


def _read_folder(path: Path, config: str | None) -> Dataset | DatasetDict:
    if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
        try:
            return load_from_disk(str(path))
        except IndexError as error:  # raised by `datasets` for a folder without data files
            raise ValueError(f"{path} contains no rows.") from error
    files = sorted(file for file in path.rglob("*") if file.is_file() and reader_of(file))
    if not files:
        raise ValueError(f"{path} is a folder, but contains no data files and was not written by `save_to_disk`.")
    named = [str(file.relative_to(path)).lower() for file in files]
    if not any(map(_SPLIT_NAME.search, named)) and not (path / "README.md").exists():
        return _read_files(str(path), list(map(str, files)))
    try:
        return load_dataset(str(path), config)
    except (DatasetGenerationError, FileNotFoundError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be read as a dataset: {_reason(error, list(map(str, files)))}") from error


def reader_of(path: str | Path) -> str | None:
    """Return the extension that selects the reader of a data file, or `None` if the file is not a data file."""
    suffixes = Path(path).suffixes
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in READERS else None


def _read_files(name: str, files: list[str]) -> Dataset:
    endings = {reader_of(file) for file in files}
    if None in endings:
        raise ValueError(
            f"{name}: dataset files must end in {', '.join(READERS)} (optionally followed by {', '.join(_COMPRESSED)})."
        )
    if len(endings) > 1:
        raise ValueError(
            f"{name} has files of several kinds ({', '.join(sorted(map(str, endings)))}); select files of one kind only."
        )
    kind = READERS[str(endings.pop())]
    options: dict[str, Any] = dict(_CSV_OPTIONS) if kind == "csv" else {}
    if files[0].endswith((".tsv", *(f".tsv{ending}" for ending in _COMPRESSED))):
        options["sep"] = "\t"
    try:
        with warnings.catch_warnings():
            # Reject rows with more fields than the header: pandas would shift the columns or, with `index_col`, truncate the rows
            warnings.simplefilter("error", ParserWarning)
            rows = load_dataset(kind, data_files=files, split="train", **options)
    except (DatasetGenerationError, StopIteration, ValueError, OSError, EOFError) as error:
        raise ValueError(f"{name} cannot be read as {kind}: {_reason(error, files)}") from error
    if kind == "csv" and len(rows.column_names) == 1 and re.search("[;\t]", rows.column_names[0]):
        raise ValueError(
            f"{name} has only the column {rows.column_names[0]!r}; separate columns by commas, or by tabs in a .tsv file."
        )
    return rows


def _name_surrogates(files: list[str]) -> str:
    """
    Return a message that names the lines with a lone surrogate in JSON files. Arrow's error does not help, because its line numbers
    count from the start of a block.
    """
    escapes = re.compile(r"(?<!\\)(?:\\\\)*\\u(d[89ab]..\\ud[c-f]|(d[89a-f]))", re.IGNORECASE)
    lines = []
    for name in files:
        with fsspec.open(name, "rt", encoding="utf-8", errors="replace", newline="\n", compression="infer") as file:
            for number, line in enumerate(file, 1):
                if any(match[2] for match in escapes.finditer(line)):
                    lines.append(f"line {number} of {Path(name).name}")
    return (
        f"{', '.join(lines[:3])}: the text contains a lone surrogate (half of a character, such as \\ud800), which is invalid. "
        f"Number of such lines: {len(lines)}. Repair or remove them."
    )


def _reason(error: Exception, files: list[str]) -> str:
    """Explain why `datasets` could not read files."""
    with open(files[0], "rb") as file:
        is_utf16 = file.read(2) in (BOM_UTF16_LE, BOM_UTF16_BE)
    if is_utf16 or isinstance(error.__cause__, UnicodeDecodeError):
        return f"it is not UTF-8{'' if is_utf16 else f' ({error.__cause__})'}. Save the file as UTF-8."
    reason = " ".join(str(error.__cause__ or error).split())
    if "surrogate" in reason:
        return _name_surrogates(files)
    if len(files) > 1 and re.search("Couldn't cast|Schema", reason):
        return f"its files must have the same columns and types, in the same order. {reason[:400]}."
    if "Length of header" in reason:
        return "it has rows with more fields than the header."
    if not reason or "corresponds to no data" in reason or "BatchSize must be" in reason:
        return "it contains no rows." if len(files) == 1 else "one of its files contains no rows; remove it."
    return reason
