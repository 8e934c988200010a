"""Trainer mixin that stops training if a loss, gradient norm or weight is not finite, before the next checkpoint is saved."""

import math
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..modeling_cloud import check_weights
from ..scores import NotFinite
from .resume import MixedTrainer, name_last


class StopsWhenNotFinite(MixedTrainer):
    """
    Mixin for TRL's trainers that stops training at the first log, evaluation or checkpoint after a non-finite loss or gradient norm, and
    never saves non-finite weights.

    transformers would log an average of earlier losses instead, continue, and overwrite good checkpoints.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # For each watched value: the first step at which it was not finite, and its value at that step. Both stay on the device, because
        # reading them at every step would make the host wait
        self._first_bad: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self.args.logging_nan_inf_filter = False  # would also read every loss, and hide what this mixin reports
        self.add_callback(_Check(self))

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        """See [`~transformers.Trainer.training_step`]."""
        loss = super().training_step(*args, **kwargs)
        self._watch("loss", loss)
        return loss

    def _get_grad_norm(self, *args, **kwargs) -> Any:
        norm = super()._get_grad_norm(*args, **kwargs)
        # With fp16, gradients may overflow: the loss scaler skips such a step and tries a lower scale in the next one
        if norm is not None and not self.args.fp16:
            self._watch("gradient norm", torch.as_tensor(norm))
        return norm

    def _watch(self, name: str, value: torch.Tensor):
        step, worst = self._first_bad.get(name, (value.new_full((), math.inf, dtype=torch.float32), value))
        is_first = step.isinf() & ~value.isfinite()
        self._first_bad[name] = (
            torch.where(is_first, self.state.global_step + 1, step), torch.where(is_first, value.detach(), worst)
        )  # fmt: skip

    def check_finite(self):
        """Raise [`NotFinite`] if a loss or a gradient norm was not finite."""
        found = {name: (float(step), float(value)) for name, (step, value) in self._first_bad.items()}
        self._first_bad.clear()
        for name, (step, value) in sorted(found.items(), key=lambda item: (item[1][0], item[0] != "loss")):
            if math.isfinite(step):
                raise NotFinite(f"Step {int(step)}: the {name} is {value}. Training stops. {self._advice()}")

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        """See [`~transformers.Trainer.evaluation_loop`]."""
        output: Any = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        loss = output.metrics.get(f"{metric_key_prefix}_loss", 0.0)
        if not math.isfinite(loss):
            step = self.state.global_step
            raise NotFinite(f"Step {step}: the {metric_key_prefix}_loss is {loss}. Training stops. {self._advice()}")
        return output

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """See [`~transformers.Trainer.save_model`]."""
        if not _internal_call:  # otherwise, `_save_checkpoint` has already checked the weights
            self._check_weights()
        return super().save_model(output_dir, _internal_call)

    def _save_checkpoint(self, model, trial):
        self._check_weights()  # before the checkpoint mixin touches an earlier checkpoint of the same step
        return super()._save_checkpoint(model, trial)

    def _check_weights(self):
        try:
            check_weights("The model", self.model)
        except NotFinite as error:
            raise NotFinite(
                f"After step {self.state.global_step}: {error} The model is not saved. {self._advice()}"
            ) from error

    def _advice(self) -> str:
        return (
            f"The last complete checkpoint is {name_last(self.args.output_dir)}: resume with `--resume_from_checkpoint true`, "
            "or start a new run from it with a lower learning rate. Check the data's `margin`, the loss weights, and "
            "the data type (fp16 overflows where bf16 does not)."
        )


class _Check(TrainerCallback):
    """
    Callback that checks losses and gradient norms at the end of each epoch, and before each log, evaluation or save, when the host waits
    for the device anyway.
    """

    def __init__(self, trainer: StopsWhenNotFinite):
        self._trainer = trainer

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if control.should_log or control.should_evaluate or control.should_save:
            self._trainer.check_finite()

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self._trainer.check_finite()
