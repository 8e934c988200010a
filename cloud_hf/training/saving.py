"""Trainers whose checkpoints are whole or not used, and that go on exactly where one was written."""

import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import rotate_checkpoints

from .adapters import shape_of_adapter
from .checkpoints import (
    checkpoint_folder,
    explain_failure,
    find_checkpoint,
    read_rank_state,
    remove_interrupted,
    unmark,
    write_rank_state,
    write_record,
)
from .launch_checks import check_dataset_size
from .sharding import check_fsdp, prepare_fsdp2


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
