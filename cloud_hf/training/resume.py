"""Trainer mixin that resumes exactly, and only from complete checkpoints."""

import hashlib
import json
import logging
import shutil
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints, sort_checkpoints

from .fsdp import check_fsdp, prepare_fsdp2
from .launch import RECORDED_LATER, check_dataset_size, check_deepspeed, launch_settings
from .launch import check_machine as check_machine  # version 0.1 had it here
from .lora import ADAPTER_OPTIONS, base_of_adapter, options_of_adapter, shape_of_adapter


if TYPE_CHECKING:
    from transformers import Trainer

    class MixedTrainer(Trainer):
        """
        Attributes that the mixins use: transformers types the first four loosely, TRL's trainers add `_metrics` and
        `_total_train_tokens`, and [`ExactResume`] defines `_tokens_seen`.
        """

        args: Any
        model: Any
        train_dataset: Any
        accelerator: Any
        _metrics: Any
        _total_train_tokens: Any
        _tokens_seen: Any
else:
    MixedTrainer = object


logger = logging.getLogger(__name__)

VERSION = 3

# Written last: a checkpoint without it was interrupted
RECORD = "cloud_checkpoint.json"
# Folder for the later checkpoints that a run sets aside when it resumes from an earlier one
SET_ASIDE = "set_aside"
# Checkpoints of version 3 may lack these entries
OPTIONAL_ENTRIES = {
    *RECORDED_LATER, *ADAPTER_OPTIONS, "dtype", "quantization_config", "base_model", "starting_model", "ref_model_weights",
}  # fmt: skip


class NotSaved(RuntimeError):
    """A model or checkpoint could not be written or uploaded."""


def check_launch(args: TrainingArguments):
    """
    Check, before the model loads, that the DeepSpeed config matches the training arguments, and that the checkpoint to
    resume from is complete and was written with the same settings. Raises `ValueError` otherwise.
    """
    check_deepspeed(args)
    if args.resume_from_checkpoint is not None:
        find_checkpoint(args, args.resume_from_checkpoint)


class ExactResume(MixedTrainer):
    """
    Mixin for TRL's trainers. It makes a resumed run end with the same weights, metrics and logs as an uninterrupted run.
    It also checks the launch settings.

    On its own, transformers restores weights, optimizer, scheduler, random states and the position in the data, but not the
    running sums for the next log entry, and it accepts an interrupted checkpoint as complete.
    """

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """See [`~transformers.Trainer.train`]; `True` resumes from the last complete checkpoint."""
        rows = len(self.train_dataset)
        self._check_dataset_size(rows)
        check_fsdp(self.accelerator)
        self._seconds_before, self._started = 0.0, time.monotonic()
        self._trained = {
            "train_dataset_rows": rows, "train_dataset_hash": hash_rows(self.train_dataset),
            "dtype": str(self.model.dtype), "quantization_config": self.model.config.to_dict().get("quantization_config"),
            "adapter": shape_of_adapter(self.model), **options_of_adapter(self.model), **self._frozen_weights(),
        }  # fmt: skip
        if not resume_from_checkpoint:
            check_unused(self.args)
            [self._run] = broadcast_object_list([uuid.uuid4().hex])
            return super().train(**kwargs)
        checkpoint = find_checkpoint(self.args, resume_from_checkpoint, **self._trained)
        check_unused(self.args, checkpoint)
        self._run = run_of(checkpoint)
        self.accelerator.wait_for_everyone()  # every process must find the checkpoint before any of them tidies up
        if self.args.should_save:
            tidy_up(Path(str(self.args.output_dir)), checkpoint)
        restore = _RestoreRunningMetrics(self, checkpoint)
        self.add_callback(restore)
        try:
            return super().train(resume_from_checkpoint=str(checkpoint), **kwargs)
        finally:
            self.remove_callback(restore)

    def _get_dataloader(self, *args, **kwargs):
        dataloader: Any = super()._get_dataloader(*args, **kwargs)
        # When workers start, the dataloader draws a number from the default random generator, and a resumed run starts
        # persistent workers one more time than an uninterrupted run does
        if self.args.dataloader_persistent_workers:
            dataloader.base_dataloader.generator = torch.Generator()
        return dataloader

    def _frozen_weights(self) -> dict[str, str]:
        """Identify the models whose weights the run uses but its checkpoints lack, such as an adapter's base, if they are known."""
        base = base_of_adapter(self.model)
        return {} if base is None else {"base_model": base}

    def _check_dataset_size(self, rows: int):
        check_dataset_size(self.args, rows)

    def create_optimizer(self, *args, **kwargs):
        prepare_fsdp2(self.accelerator, self.model)
        return super().create_optimizer(*args, **kwargs)

    def _load_from_checkpoint(self, *args, **kwargs):
        dtypes = {name: weight.dtype for name, weight in self.model.named_parameters()}
        super()._load_from_checkpoint(*args, **kwargs)
        # PEFT loads adapters in fp32, but QLoRA trains them in bf16
        for name, weight in self.model.named_parameters():
            if weight.dtype != dtypes[name]:
                weight.data = weight.data.to(dtypes[name])

    def _run_epoch(self, **kwargs):
        # transformers compares steps with `max_steps` only after each step, so a run that was killed after its last step and is then
        # resumed would take one step too many
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(**kwargs)

    def get_batch_samples(self, *args, **kwargs):
        samples = super().get_batch_samples(*args, **kwargs)
        # For its metrics, TRL gathers sums over each rank's micro-batch, not rows. At the end of an epoch, accelerate would truncate these
        # sums to the number of remaining rows, except in a resumed epoch
        self.accelerator.gradient_state.active_dataloader.remainder = 0
        return samples

    def _save_checkpoint(self, model, trial):
        output_dir = self._get_output_dir(trial)
        folder = Path(output_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        # transformers deletes older checkpoints before this one is complete; if the disk were full or the process were killed, none would
        # be left
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            with explain_failure(folder, output_dir):
                if self.args.should_save:
                    # If an earlier run left a checkpoint of this step, it is incomplete from here on
                    (folder / RECORD).unlink(missing_ok=True)
                super()._save_checkpoint(model, trial)
                folder.mkdir(parents=True, exist_ok=True)  # with `save_only_model`, only rank 0 has created it
                _rank_file(folder, self.args.process_index).write_text(json.dumps(self._running_metrics()))
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    write_record(folder, self.args, run=self._run, **self._trained)
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save:
            rotate_checkpoints(output_dir, limit, self.state.best_model_checkpoint, use_mtime=True)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """See [`~transformers.Trainer.save_model`]."""
        if _internal_call:
            return super().save_model(output_dir, _internal_call)
        with explain_failure(Path(output_dir or self.args.output_dir), self.args.output_dir):
            return super().save_model(output_dir, _internal_call)

    def _finalize_training(self, trial, num_train_samples, start_time):
        # Loss, time and speed cover the entire run, not only the part after resuming
        return super()._finalize_training(trial, num_train_samples, start_time - self._seconds_before)

    def _tokens_seen(self) -> int:
        """Count the training tokens so far, across all ranks."""
        return self._total_train_tokens

    def _running_metrics(self) -> dict[str, Any]:
        """Return the running sums since the last log entry, and the totals since the start of the run."""
        return {
            "loss": self._tr_loss.item(),
            "total_loss": self._total_loss_scalar,
            "last_logged": self._globalstep_last_logged,
            "metrics": self._metrics["train"],
            "tokens": self._tokens_seen(),
            "seconds": self._seconds_before + time.monotonic() - self._started,
        }

    def _restore_running_metrics(self, state: dict[str, Any]):
        self._tr_loss = torch.full_like(self._tr_loss, state["loss"])
        self._total_loss_scalar = state["total_loss"]
        self._globalstep_last_logged = state["last_logged"]
        # The totals cover the entire run, so `_finalize_training` must divide them by all steps of the run
        self._initial_global_step = 0
        self._metrics["train"] = defaultdict(list, state["metrics"])
        self._total_train_tokens = state["tokens"]
        self._seconds_before = state["seconds"]


class _RestoreRunningMetrics(TrainerCallback):
    """Callback that restores the running sums when training begins. By then, the training loop has reset them."""

    def __init__(self, trainer: ExactResume, checkpoint: Path):
        self.trainer, self.checkpoint = trainer, checkpoint

    def on_train_begin(self, args, state, control, **kwargs):
        state = _rank_file(self.checkpoint, args.process_index).read_text()
        self.trainer._restore_running_metrics(json.loads(state))


# ------------------------------------------------------------------------------------------------ checkpoints on disk


def write_record(folder: Path, args: TrainingArguments, **trained):
    """Mark a checkpoint as complete: record its files, the settings of its run, and `trained` (run, data, adapter, frozen models)."""
    record = {
        "version": VERSION, "launch": launch_settings(args), **trained, "only_model": args.save_only_model,
        "files": _sizes(folder),
    }  # fmt: skip
    part = folder / f"{RECORD}.part"
    part.write_text(json.dumps(record, indent=2) + "\n")
    part.replace(folder / RECORD)


def whole_checkpoints(output_dir: str | Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first."""
    return [folder for folder in _checkpoints(output_dir) if (folder / RECORD).is_file()]


def interrupted_checkpoints(output_dir: str | Path) -> list[Path]:
    """Return the incomplete checkpoints of a run, oldest first."""
    return [folder for folder in _checkpoints(output_dir) if not (folder / RECORD).is_file()]


def check_unused(args: TrainingArguments, resumed: Path | None = None):
    """Raise `ValueError` if the output folder contains complete checkpoints, unless `resumed` is one of them."""
    whole = whole_checkpoints(str(args.output_dir))
    if whole and (resumed is None or not any(folder.samefile(resumed) for folder in whole)):
        raise ValueError(
            f"{args.output_dir} contains {whole[-1].name} from an earlier run, and a new run would mix its checkpoints with "
            "those. Continue that run with `--resume_from_checkpoint true`, name another `--output_dir`, or move the earlier "
            "checkpoints away."
        )


def check_new_run(args: TrainingArguments):
    """Raise `ValueError` if a run that does not resume would start in a folder that contains checkpoints."""
    if args.resume_from_checkpoint is None:
        check_unused(args)


def tidy_up(output_dir: Path, resumed: Path):
    """Remove interrupted checkpoints, and set aside complete ones that are later than the one to resume from."""
    for folder in interrupted_checkpoints(output_dir):
        logger.warning("Removing %s: it was not completely written.", folder)
        shutil.rmtree(folder)
    whole = whole_checkpoints(output_dir)
    while whole and not whole[-1].samefile(resumed):
        later = whole.pop()
        aside = output_dir / SET_ASIDE / f"{later.name}-{uuid.uuid4().hex[:8]}"
        logger.warning("Training returns to %s: the later %s is set aside as %s.", resumed, later.name, aside)
        aside.parent.mkdir(exist_ok=True)
        later.rename(aside)


def hash_rows(dataset: Dataset) -> str:
    """Hash the contents of all rows, in order."""
    # Hash contents instead of using the dataset's fingerprint, which changes with its path and with the code that
    # encoded it
    digest = hashlib.sha256()
    for batch in dataset.with_format("pandas").iter(1000):
        for name in sorted(batch):
            digest.update(name.encode())
            for value in batch[name]:
                array = np.asarray(value)
                # The bytes of an array of objects are addresses, which differ between processes
                content = repr(array.tolist()).encode() if array.dtype == object else array.tobytes()
                digest.update(f"{array.shape}".encode() + content)
    return digest.hexdigest()


def find_checkpoint(args: TrainingArguments, asked: str | bool, **trained) -> Path:
    """
    Find the checkpoint to resume from, and check it.

    `asked` is its folder, or `True` or `"true"` for the last complete one in `args.output_dir`. `trained` contains the
    data, adapter and frozen model entries that [`write_record`] records; it is empty until they are known.

    Raises:
        `ValueError`: If there is no such checkpoint, or it is incomplete, lacks a file, or was written with other
            settings.
    """
    output_dir: Any = args.output_dir
    folder = _last_whole(output_dir) if str(asked).lower() == "true" else Path(str(asked))
    if not (folder / RECORD).is_file():
        raise ValueError(
            f"{folder} is not a complete checkpoint: it lacks {RECORD}, which is written last. The last complete one is "
            f"{name_last(folder.parent)}."
        )
    record = json.loads((folder / RECORD).read_text())
    new_run = f"from its weights: `--model_name_or_path {folder}` and another `--output_dir`."
    if record["version"] != VERSION:
        raise ValueError(
            f"{folder} was written by another version of cloud_hf. Resume with that version, or start a new run {new_run}"
        )
    if record["only_model"]:
        raise ValueError(
            f"{folder} has only the model (`save_only_model`), not the optimizer states needed to resume. Start a "
            f"new run {new_run}"
        )
    _check_files(folder, record["files"])
    written = {**record, **record["launch"]}
    differences = {
        name: f"`{name}` was {written.get(name)}, is {value}"
        for name, value in {**launch_settings(args), **trained}.items()
        if written.get(name) != value and (name in written or name not in OPTIONAL_ENTRIES)
    }
    if differences:
        same = "the same settings"
        if "base_model" in differences or "starting_model" in differences:
            same += ", with the model that the run started from, not a checkpoint, as `model_name_or_path`"
        raise ValueError(
            f"{folder} was written with other settings: {'; '.join(differences.values())}. Its optimizer states and its position in "
            f"the data fit only those settings. Use {same}, or start a new run {new_run}"
        )
    return folder


def _sizes(folder: Path) -> dict[str, int]:
    """Return the size in bytes of each file of a checkpoint, except the record."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith(RECORD))
    return {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}


def _check_files(folder: Path, written: dict[str, int]):
    # transformers resumes silently without optimizer or random states if their files are missing
    sizes = _sizes(folder)
    damaged = [
        f"{name} ({sizes.get(name, 0)} of {size} bytes)" for name, size in written.items() if sizes.get(name) != size
    ]
    if damaged:
        raise ValueError(
            f"{folder} has changed since it was written: {', '.join(damaged)}. Copy it again, or resume from another checkpoint: "
            "`--resume_from_checkpoint FOLDER`."
        )


@contextmanager
def explain_failure(folder: Path, output_dir: str | Path) -> Iterator[None]:
    """Turn a failure to write or upload `folder` into `NotSaved`, with the cause and the last complete checkpoint."""
    try:
        yield
    except HfHubHTTPError as error:  # also an OSError
        raise NotSaved(
            f"The Hub refused the upload of {folder}: {error}. Its files are on disk, where the last complete checkpoint "
            f"is {name_last(output_dir)}. Check the token and `--hub_model_id`, or omit `--push_to_hub`."
        ) from error
    except (OSError, RuntimeError, SafetensorError) as error:
        free = shutil.disk_usage(output_dir).free / 2**20
        raise NotSaved(
            f"{folder} could not be written, with {free:,.0f} MiB free on its disk: {error}. The last complete checkpoint is "
            f"{name_last(output_dir)}. Free disk space, then resume with `--resume_from_checkpoint true`, or start again."
        ) from error


def _last_whole(output_dir: str | Path) -> Path:
    whole = whole_checkpoints(output_dir)
    # The step numbers of different runs are not comparable, so no checkpoint counts as the last
    if len({run_of(folder) for folder in whole}) > 1:
        raise ValueError(
            f"{output_dir} contains checkpoints from several runs: name one, with `--resume_from_checkpoint FOLDER`."
        )
    if not whole:
        torn = ", ".join(folder.name for folder in interrupted_checkpoints(output_dir))
        raise ValueError(
            f"{output_dir} has no complete checkpoint to resume from"
            + (f"; {torn} is incomplete." if torn else ".")
            + " Omit `resume_from_checkpoint` to start a new run."
        )
    return whole[-1]


def run_of(folder: Path) -> str | None:
    """Return the id of the run that wrote a checkpoint; version 0.1 recorded none."""
    return json.loads((folder / RECORD).read_text()).get("run")


def _checkpoints(output_dir: str | Path) -> list[Path]:
    return [Path(folder) for folder in sort_checkpoints(str(output_dir))]


def name_last(output_dir: str | Path) -> str:
    """Return the name of the last complete checkpoint of a run, or `"none"`."""
    return next((folder.name for folder in reversed(whole_checkpoints(output_dir))), "none")


def _rank_file(folder: Path, rank: int) -> Path:
    return folder / f"running_metrics_{rank}.json"
