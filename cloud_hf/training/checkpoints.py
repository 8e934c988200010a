"""Checkpoints: which one is whole, what was written last, and where a run goes on from."""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, sort_checkpoints

from .launch import Launch


logger = logging.getLogger(__name__)

VERSION = 2

# Written last: a checkpoint without it was interrupted
RECORD = "cloud_checkpoint.json"


class NotSaved(RuntimeError):
    """A model or checkpoint could not be written."""


def write_record(folder: Path, args: TrainingArguments, rows: int, adapter: dict[str, Any] | None):
    """Mark a checkpoint as whole, and note its files, how its run was started and what it trains on how many rows."""
    record = {
        "version": VERSION, "launch": asdict(Launch.of(args)), "train_dataset_rows": rows, "adapter": adapter,
        "only_model": args.save_only_model, "files": _sizes(folder),
    }  # fmt: skip
    part = folder / f"{RECORD}.part"
    part.write_text(json.dumps(record, indent=2) + "\n")
    part.replace(folder / RECORD)


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint was written to its end."""
    return (folder / RECORD).is_file()


def whole_checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoints of a run that were written to their end, oldest first."""
    return [folder for folder in _checkpoints(output_dir) if is_whole(folder)]


def interrupted_checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoints of a run that were not written to their end, oldest first."""
    return [folder for folder in _checkpoints(output_dir) if not is_whole(folder)]


def find_checkpoint(args: TrainingArguments, asked: str | bool, **trained) -> Path:
    """
    The checkpoint to resume from, checked.

    Args:
        args ([`~transformers.TrainingArguments`]):
            Of the run that goes on.
        asked (`str` or `bool`):
            Its folder; `True` or `"true"` for the last whole one in `args.output_dir`.
        **trained:
            Where they are known, `train_dataset_rows` and `adapter`, as [`write_record`] notes them.

    Raises:
        `ValueError`: If there is none, it was not written to its end or has lost something since, or its run was started
            otherwise.
    """
    folder = _last_whole(args.output_dir) if str(asked).lower() == "true" else Path(asked)
    if not is_whole(folder):
        raise ValueError(
            f"{folder} is not a whole checkpoint: {RECORD}, which is written last, is missing. The last whole one is "
            f"{_name_last(folder.parent)}."
        )
    record = json.loads((folder / RECORD).read_text())
    if record["version"] != VERSION:
        raise ValueError(
            f"{folder} was written by another version of cloud_hf. Go on with that one, or begin a new run from the weights: "
            f"`--model_name_or_path {folder}` and another `--output_dir`."
        )
    if record["only_model"]:
        raise ValueError(
            f"{folder} holds the model alone (`save_only_model`), without optimizer states to go on with. Begin a new run "
            f"from it: `--model_name_or_path {folder}` and another `--output_dir`."
        )
    _check_files(folder, record["files"])
    differences = Launch.of(args).differences(record["launch"])
    differences += [f"`{name}` was {record[name]}, is {now}" for name, now in trained.items() if now != record[name]]
    if differences:
        raise ValueError(
            f"{folder} was written by a run that was started otherwise: {'; '.join(differences)}. Its optimizer states and "
            "its place in the data fit that run only. Start this one in the same way, or begin a new run from the "
            f"weights: `--model_name_or_path {folder}` and another `--output_dir`."
        )
    return folder


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file of a checkpoint, the record left out."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith(RECORD))
    return {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}


def _check_files(folder: Path, written: dict[str, int]):
    """transformers goes on without optimizer states or random states that are missing, and says nothing."""
    sizes = _sizes(folder)
    damaged = [
        f"{name} ({sizes.get(name, 0)} of {size} bytes)" for name, size in written.items() if sizes.get(name) != size
    ]
    if damaged:
        raise ValueError(
            f"{folder} is not what was written: {', '.join(damaged)}. Copy it again, or go on from another checkpoint: "
            "`--resume_from_checkpoint FOLDER`."
        )


@contextmanager
def explain_failure(folder: Path, output_dir: str | Path) -> Iterator[None]:
    """
    Say, when writing `folder` fails, what is lost and what is left.

    Raises:
        `NotSaved`: From whatever went wrong, a full disk above all.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        free = shutil.disk_usage(output_dir).free / 2**20
        raise NotSaved(
            f"{folder} could not be written, with {free:,.0f} MiB free on its disk: {error}. The last whole checkpoint, "
            f"{_name_last(output_dir)}, was not touched: make room and go on with `--resume_from_checkpoint true`."
        ) from error


def remove_interrupted(output_dir: str | Path):
    """Delete checkpoints that were not written to their end, and say so."""
    for folder in interrupted_checkpoints(output_dir):
        logger.warning("%s was not written to its end, and is removed.", folder)
        shutil.rmtree(folder)


def _last_whole(output_dir: str | Path) -> Path:
    whole = whole_checkpoints(output_dir)
    if not whole:
        torn = ", ".join(folder.name for folder in interrupted_checkpoints(output_dir))
        raise ValueError(
            f"{output_dir} holds no whole checkpoint to resume from"
            + (f"; {torn} was not written to its end." if torn else ".")
            + " Leave `resume_from_checkpoint` out to begin."
        )
    return whole[-1]


def _checkpoints(output_dir: str | Path) -> list[Path]:
    return [Path(folder) for folder in sort_checkpoints(str(output_dir))]


def _name_last(output_dir: str | Path) -> str:
    return next((folder.name for folder in reversed(whole_checkpoints(output_dir))), "none")


def write_rank_state(folder: Path, rank: int, state: dict[str, Any]):
    """What one process needs to go on with its running sums."""
    folder.mkdir(parents=True, exist_ok=True)  # with the model alone, only the first process has made it
    (folder / f"running_metrics_{rank}.json").write_text(json.dumps(state))


def read_rank_state(folder: Path, rank: int) -> dict[str, Any]:
    """What [`write_rank_state`] wrote."""
    return json.loads((folder / f"running_metrics_{rank}.json").read_text())


def checkpoint_folder(output_dir: str | Path, step: int) -> Path:
    """Where transformers writes the checkpoint of a step."""
    return Path(output_dir, f"{PREFIX_CHECKPOINT_DIR}-{step}")


def unmark(folder: Path):
    """Take back that a checkpoint is whole, before it is written again."""
    if is_whole(folder):
        os.unlink(folder / RECORD)
