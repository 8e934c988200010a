"""Trainer mixin that stops at the first number that is not finite, before it reaches a checkpoint."""

import math
from typing import Any

import torch

from ..modeling_cloud import check_weights
from ..scores import NotFinite
from .resume import MixedTrainer, name_last


class StopsWhenNotFinite(MixedTrainer):
    """
    Mixin for TRL's trainers: training stops at the first loss or gradient norm that is not finite, and weights that are not
    finite are never saved.

    transformers would log an average of earlier losses instead, continue, and overwrite good checkpoints.
    """

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        """See [`~transformers.Trainer.training_step`]."""
        loss = super().training_step(*args, **kwargs)
        self._check_finite("loss", loss)
        return loss

    def _get_grad_norm(self, *args, **kwargs) -> Any:
        norm = super()._get_grad_norm(*args, **kwargs)
        # The loss scaler of fp16 tries scales until gradients are finite, and skips the steps until then
        if norm is not None and not self.args.fp16:
            self._check_finite("gradient norm", norm)
        return norm

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        """See [`~transformers.Trainer.evaluation_loop`]."""
        output: Any = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if (loss := output.metrics.get(f"{metric_key_prefix}_loss")) is not None:
            self._check_finite(f"{metric_key_prefix}_loss", loss)
        return output

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """See [`~transformers.Trainer.save_model`]."""
        if not _internal_call:  # for a checkpoint, `_save_checkpoint` has checked them
            self._check_weights()
        return super().save_model(output_dir, _internal_call)

    def _save_checkpoint(self, model, trial):
        self._check_weights()  # before the mixin for checkpoints touches an earlier one of this step
        return super()._save_checkpoint(model, trial)

    def _check_weights(self):
        try:
            check_weights("The model", self.model)
        except NotFinite as error:
            raise NotFinite(
                f"After step {self.state.global_step}: {error} It is not saved. {self._advice()}"
            ) from error

    def _check_finite(self, name: str, value: torch.Tensor | float):
        if not math.isfinite(value):
            step = self.state.global_step + 1
            raise NotFinite(f"Step {step}: the {name} is {float(value)}. Training stops. {self._advice()}")

    def _advice(self) -> str:
        return (
            f"The last complete checkpoint is {name_last(self.args.output_dir)}: resume with `--resume_from_checkpoint true`, "
            "or start a new run from it with a lower learning rate. Check the data's `margin`, the weights of the losses, and "
            "the data type (fp16 overflows where bf16 does not)."
        )
