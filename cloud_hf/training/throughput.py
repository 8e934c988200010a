"""Trainer mixin that logs tokens per second, model FLOPs utilisation (MFU) and the time left."""

import time

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .resume import MixedTrainer


# Peak dense bf16 FLOPs per second of one device, from the vendors' data sheets. The key is a substring of the device's name; the first
# match counts, so longer names come first
PEAK_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A40": 149.7e12,
    "A10G": 70e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
    "MI300X": 1307e12,
    "MI250": 181e12,  # per die; PyTorch sees the two dies of an MI250 as two devices
}


def peak_flops(device_name: str) -> float | None:
    """Look up a device's peak dense bf16 FLOPs per second by its name, as returned by `torch.cuda.get_device_name`."""
    return next((flops for name, flops in PEAK_FLOPS.items() if name.lower() in device_name.lower()), None)


class LogsThroughput(MixedTrainer):
    """
    Mixin for TRL's trainers that adds `tokens_per_second` (across all devices, without padding), `eta_hours` and, if the
    device's peak is known, `mfu` to each training log entry. An entry covers the steps since the previous one, excluding
    evaluation and saving.

    For MFU, each token counts as 6 FLOPs per trained parameter (forward and backward pass) and 4 per frozen parameter (an adapter's base,
    which needs no weight gradients). Input embeddings, the LM head of a model that writes no critiques, the second forward pass of gradient
    checkpointing, and attention scores are not counted.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._clock = _TrainingClock(self)
        self.add_callback(self._clock)
        modules = self.model.get_input_embeddings(), self.model.get_output_embeddings()
        embeddings, lm_head = ({id(weight) for weight in module.parameters()} for module in modules)
        idle = embeddings - lm_head if self._uses_lm_head() else embeddings | lm_head
        self._flops_per_token = sum(
            (6 if weight.requires_grad else 4) * _size(weight)
            for name, weight in self.model.named_parameters()
            if id(weight) not in idle
            and "original_module" not in name  # PEFT trains copies of some modules, and no longer uses the originals
        )
        self._measured = (0, 0)  # tokens and steps at the last log

    def _uses_lm_head(self) -> bool:
        """Return whether the loss needs logits."""
        return True

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(self._throughput())
        super().log(logs, start_time)

    def _throughput(self) -> dict[str, float]:
        tokens, steps = self._tokens_seen(), self.state.global_step
        seconds = self._clock.take()
        new_tokens = tokens - self._measured[0]
        new_steps = steps - self._measured[1]
        self._measured = (tokens, steps)
        if new_steps < 1 or not seconds:
            return {}
        speed = new_tokens / seconds
        measured = {
            "tokens_per_second": speed,
            "eta_hours": (self.state.max_steps - steps) * seconds / new_steps / 3600,
        }
        if torch.cuda.is_available() and (peak := peak_flops(torch.cuda.get_device_name())) is not None:
            measured["mfu"] = speed * self._flops_per_token / (peak * self.accelerator.num_processes)
        return measured


def _size(weight: torch.nn.Parameter) -> int:
    """
    Return the number of elements of the full weight, even if ZeRO-3 has sharded it (it then looks empty) or if it is
    packed into 4 bits.
    """
    size = getattr(weight, "ds_numel", weight.numel())  # an adapter's weights are not sharded until training begins
    return 2 * size * weight.element_size() if type(weight).__name__ == "Params4bit" else size


class _TrainingClock(TrainerCallback):
    """Callback that measures the seconds spent on training steps and data loading, excluding evaluation and saving."""

    def __init__(self, trainer: LogsThroughput):
        self._trainer = trainer
        self._seconds = 0.0
        self._started: float | None = None
        self._begins = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self._seconds, self._started, self._begins = 0.0, time.perf_counter(), True

    # Evaluation and saving follow the step that triggers them, so the clock stops at that step's end and starts with the next
    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if self._begins:  # by now, a resumed run has restored its counts
            self._trainer._measured = (self._trainer._tokens_seen(), state.global_step)
            self._begins = False
        if self._started is None:
            self._started = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if control.should_log or control.should_evaluate or control.should_save:
            self._stop()

    def _stop(self):
        if self._started is not None:
            self._seconds += time.perf_counter() - self._started
            self._started = None

    def take(self) -> float:
        """Return the seconds measured since the last call."""
        self._stop()
        seconds, self._seconds = self._seconds, 0.0
        return seconds
