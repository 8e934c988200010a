"""Trainers whose checkpoints are whole or not used, and that go on exactly where one was written. Checkpoints: which one is whole, what was written last, and where a run goes on from. How a training run was started."""

import importlib.util
import json
import logging
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints, sort_checkpoints
from transformers.utils import is_torch_bf16_gpu_available

from .fsdp import check_fsdp, prepare_fsdp2
from .lora import shape_of_adapter


class ExactResume:
    """
    Put before a TRL trainer: checks the launch, writes checkpoints that count only when they are complete, and resumes so
    that weights, metrics and logs end as if the run had not been interrupted.
    """

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """See [`~transformers.Trainer.train`]; `True` is the last checkpoint that was written to its end."""
        rows = len(self.train_dataset)
        self._check_dataset_size(rows)
        check_fsdp(self.accelerator)
        self._seconds_before, self._started = 0.0, time.monotonic()
        if not resume_from_checkpoint:
            return super().train(**kwargs)
        trained = {"train_dataset_rows": rows, "adapter": shape_of_adapter(self.model)}
        checkpoint = find_checkpoint(self.args, resume_from_checkpoint, **trained)
        self.accelerator.wait_for_everyone()  # all have looked before any is removed
        if self.args.should_save:
            remove_interrupted(self.args.output_dir)
        restore = _RestoreRunningMetrics(self, checkpoint)
        self.add_callback(restore)
        try:
            return super().train(resume_from_checkpoint=str(checkpoint), **kwargs)
        finally:
            self.remove_callback(restore)

    def _check_dataset_size(self, rows: int):
        check_dataset_size(self.args, rows)

    def create_optimizer(self, *args, **kwargs):
        prepare_fsdp2(self.accelerator, self.model)
        return super().create_optimizer(*args, **kwargs)

    def _run_epoch(self, **kwargs):
        # A run that was killed after its last step would make one more: transformers counts steps only behind each
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(**kwargs)

    def get_batch_samples(self, *args, **kwargs):
        samples = super().get_batch_samples(*args, **kwargs)
        # What TRL gathers for metrics are sums of each rank's micro-batch, not rows: accelerate must not cut them to the rows
        # that were left for the end of the epoch, which it does not do in an epoch that is resumed
        self.accelerator.gradient_state.active_dataloader.remainder = 0
        return samples

    def _save_checkpoint(self, model, trial):
        output_dir = self._get_output_dir(trial)
        folder = checkpoint_folder(output_dir, self.state.global_step)
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # older ones go when this one is whole
        try:
            with explain_failure(folder, output_dir):
                if self.args.should_save:
                    unmark(folder)
                super()._save_checkpoint(model, trial)
                write_rank_state(folder, self.args.process_index, self._running_metrics())
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    write_record(folder, self.args, len(self.train_dataset), shape_of_adapter(self.model))
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
        # Loss, time and speed of the whole run, not of its last part
        return super()._finalize_training(trial, num_train_samples, start_time - self._seconds_before)

    def _running_metrics(self) -> dict[str, Any]:
        """What is summed up between two lines of the log, and over the run."""
        return {
            "loss": self._tr_loss.item(),
            "total_loss": self._total_loss_scalar,
            "last_logged": self._globalstep_last_logged,
            "metrics": self._metrics["train"],
            "tokens": self._total_train_tokens,
            "seconds": self._seconds_before + time.monotonic() - self._started,
        }

    def _restore_running_metrics(self, state: dict[str, Any]):
        self._tr_loss = torch.full_like(self._tr_loss, state["loss"])
        self._total_loss_scalar = state["total_loss"]
        self._globalstep_last_logged = state["last_logged"]
        self._initial_global_step = 0
        self._metrics["train"] = defaultdict(list, state["metrics"])
        self._total_train_tokens = state["tokens"]
        self._seconds_before = state["seconds"]


class _RestoreRunningMetrics(TrainerCallback):
    """Restores when training begins: the training loop has set its own sums to zero by then."""

    def __init__(self, trainer: ExactResume, checkpoint: Path):
        self.trainer, self.checkpoint = trainer, checkpoint

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer._restore_running_metrics(read_rank_state(self.checkpoint, args.process_index))


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


@dataclass(frozen=True)
class Launch:
    """
    What a run that is resumed must have in common with the one that wrote the checkpoint: what optimizer states and the
    order of the data depend on, what the optimizer's state would silently bring back, and the loss. Options that a stage
    does not have are `None`.

    Example: `Launch.of(CLoudTrainingConfig("cloud-rm"))`
    """

    strategy: str
    world_size: int
    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    seed: int
    data_seed: int | None
    token_budget: int | None
    padding_free: bool | None
    shared_prompt: bool | None
    dataloader_drop_last: bool
    train_sampling_strategy: str
    optim: str
    learning_rate: float
    weight_decay: float
    adam_beta1: float
    adam_beta2: float
    adam_epsilon: float
    critique: bool | None
    lm_loss_weight: float | None
    bradley_terry_weight: float | None

    @classmethod
    def of(cls, args: TrainingArguments) -> "Launch":
        """How the present run was started."""
        settings = args.to_dict() | {"world_size": args.world_size}  # stage 1 has no token budget, no λ
        return cls(strategy_of(args), *(settings.get(field.name) for field in fields(cls)[1:]))

    @property
    def batch(self) -> int:
        """Rows of an optimizer step."""
        return self.world_size * self.per_device_train_batch_size * self.gradient_accumulation_steps

    def differences(self, written: dict[str, Any]) -> list[str]:
        """What was otherwise in the run that wrote `written`."""
        own = asdict(self)
        return [f"`{name}` was {written[name]}, is {own[name]}" for name in own if written[name] != own[name]]


def strategy_of(args: TrainingArguments) -> str:
    """`"zero1"` to `"zero3"`, `"fsdp"`, `"ddp"` or `"single"`."""
    if args.deepspeed_plugin is not None:
        return f"zero{deepspeed_config(args).get('zero_optimization', {}).get('stage', 0)}"
    if args.fsdp_plugin_args is not None or str(args.distributed_state.distributed_type) == "DistributedType.FSDP":
        return "fsdp"
    return "ddp" if args.world_size > 1 else "single"


def deepspeed_config(args: TrainingArguments) -> dict[str, Any]:
    """The DeepSpeed config of a run that has one."""
    return args.deepspeed_plugin.hf_ds_config.config


def check_machine(args: TrainingArguments):
    """
    Check what `TrainingArguments` needs; call it before its `__post_init__`, whose messages are less helpful.

    Raises:
        `ImportError`: If `deepspeed` is given and DeepSpeed is not installed.
        `ValueError`: If bf16 is asked for and the machine cannot do it.
    """
    if args.deepspeed and importlib.util.find_spec("deepspeed") is None:
        raise ImportError(
            f"`deepspeed` is {args.deepspeed!r}, but DeepSpeed is not installed. Install it with `pip install "
            "'cloud-hf[deepspeed]'`, or leave `deepspeed` out; FSDP2 shards as ZeRO-3 does and comes with torch "
            "(ds_configs/accelerate_fsdp2.yaml)."
        )
    bf16 = args.bf16 or (args.bf16 is None and not args.fp16)  # TRL's default
    if bf16 and not args.use_cpu and not is_torch_bf16_gpu_available():
        raise ValueError(
            "`bf16` is on, as it is where nothing else is said, but no GPU here computes in bfloat16. Pass `--bf16 "
            "False`; on a machine without a GPU, `--use_cpu --bf16 False`."
        )


def check_launch(args: TrainingArguments):
    """
    Check how the run was started and configured, before the model is loaded.

    Raises:
        `ValueError`: If the DeepSpeed config contradicts the training arguments or would save no model, or if the
            checkpoint to resume from is not whole or was written by a run that was started otherwise.
    """
    if args.deepspeed_plugin is not None:
        _check_deepspeed(args)
    if args.resume_from_checkpoint is not None:
        find_checkpoint(args, args.resume_from_checkpoint)


def check_dataset_size(args: TrainingArguments, rows: int):
    """
    Check that the data fill at least one optimizer step. Fewer rows would train on another batch size than asked for, and
    on several processes some would count twice, to give each process as many.

    Raises:
        `ValueError`: If there are fewer rows than a step takes.
    """
    launch = Launch.of(args)
    if rows < launch.batch:
        raise ValueError(
            f"The train dataset has {rows} rows, but one optimizer step takes {launch.batch} "
            f"(`per_device_train_batch_size` {launch.per_device_train_batch_size} x `gradient_accumulation_steps` "
            f"{launch.gradient_accumulation_steps} x {launch.world_size} processes). Lower one of them, or add rows."
        )


def _check_deepspeed(args: TrainingArguments):
    name = args.deepspeed if isinstance(args.deepspeed, str) else "The DeepSpeed config"
    config = deepspeed_config(args)
    zero = config.get("zero_optimization", {})
    gathers = "stage3_gather_16bit_weights_on_model_save"
    if zero.get("stage") == 3 and zero.get(gathers) is not True:
        raise ValueError(
            f"{name} has stage 3 without `{gathers}`: every process would hold a part of the weights and no model would "
            "be saved. Set it to true in `zero_optimization`, as ds_configs/zero3.json does."
        )
    launch = Launch.of(args)
    expected = {
        "train_micro_batch_size_per_gpu": launch.per_device_train_batch_size,
        "gradient_accumulation_steps": launch.gradient_accumulation_steps,
        "train_batch_size": launch.batch,
    }
    for key, value in expected.items():
        if config.get(key, "auto") not in ("auto", value):
            raise ValueError(
                f"{name} has `{key}` {config[key]}, but the training arguments make it {value}: a step of {launch.batch} "
                f"rows is {launch.per_device_train_batch_size} per device x {launch.gradient_accumulation_steps} "
                f'accumulated x {launch.world_size} processes. Set it to "auto", or change the arguments.'
            )
    if args.deepspeed and args.hf_deepspeed_config.mismatches:
        lines = "; ".join(line.removeprefix("- ") for line in args.hf_deepspeed_config.mismatches)
        raise ValueError(f'{name} contradicts the training arguments: {lines}. Set these keys to "auto".')
