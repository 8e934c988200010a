"""Train a few steps and write what came out; run alone or under torchrun."""

import json
import os
import sys
from pathlib import Path

import torch
from datasets import Dataset
from transformers import TrainerCallback

from cloud_hf import CLoudTrainer, CLoudTrainingConfig


class KeepGradientNorm(TrainerCallback):
    """The norm of the first step's gradient, before clipping."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step == 0:
            self.norms = {name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}


def main(base: str, rows_file: str, output_dir: str, batch_size: int, critique: bool):
    rows = Dataset.from_list(json.loads(Path(rows_file).read_text()))
    keep = KeepGradientNorm()
    args = CLoudTrainingConfig(
        output_dir, max_steps=3, per_device_train_batch_size=batch_size, gradient_accumulation_steps=2, logging_steps=1,
        use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[], save_strategy="no", max_grad_norm=0.0,
        critique=critique, disable_tqdm=True, optim="sgd", learning_rate=0.01, eval_strategy="steps", eval_steps=3,
        per_device_eval_batch_size=4, ddp_backend="gloo" if "WORLD_SIZE" in os.environ else None,
    )  # fmt: skip
    torch.manual_seed(0)
    trainer = CLoudTrainer(base, args, train_dataset=rows, eval_dataset=rows.select(range(23)), callbacks=[keep])
    trainer.train()
    if trainer.is_world_process_zero():
        state = {"log": trainer.state.log_history, "norms": keep.norms, "world_size": args.world_size}
        Path(output_dir, "result.json").write_text(json.dumps(state))


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]), sys.argv[5] == "cloud")
