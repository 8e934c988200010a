"""Training in the study: the options that all trainers share, the cost of a run, and when stage 1 ends."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerCallback


CHECK_EVERY = 16  # in steps of stage 1


def training_options(folder: Path, seed: int, lr: float, passes: float = 1) -> dict[str, Any]:
    """Return the options that all trainers share, as in the quickstart's recipes."""
    return {
        "output_dir": str(folder / "trainer"), "seed": seed, "learning_rate": lr, "num_train_epochs": passes,
        "per_device_train_batch_size": 32, "optim": "adamw_torch", "weight_decay": 0.01, "adam_beta2": 0.99,
        "lr_scheduler_type": "cosine", "warmup_steps": 0.05, "bf16": False, "gradient_checkpointing": False,
        "dataloader_pin_memory": False, "use_cpu": True, "logging_steps": 25, "save_strategy": "no", "report_to": "none",
        "disable_tqdm": True,
    }  # fmt: skip


def train(trainer: Any, folder: Path) -> dict[str, Any]:
    """Train, save the model and its log, and return the cost, which counts 6 FLOPs per weight and token."""
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.model.save_pretrained(folder)
    trainer.processing_class.save_pretrained(folder)
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    (folder / "log.json").write_text(json.dumps(log))
    weights = trainer.model.num_parameters(exclude_embeddings=True)
    return {"flops": trainer.state.total_flos, "weights": weights, "steps": trainer.state.global_step}


class StopWhenExact(TrainerCallback):
    """Callback that ends training once enough critiques are exact, so that the critics of all seeds leave room for improvement."""

    def __init__(self, measure: Callable[[], float], target: float):
        self.measure, self.target = measure, target
        self.shares: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % CHECK_EVERY == 0:
            self.shares.append(self.measure())
            control.should_training_stop = self.shares[-1] >= self.target
