"""Rows and trainers of a few steps on a tiny model."""

from datasets import Dataset
from tokenizers_for_tests import make_tokenizer
from transformers import TrainerCallback

from cloud_hf import CLoudTrainer, CLoudTrainingConfig


def make_rows(count=16, **columns):
    rows = [
        {
            "prompt": f"What is {i} + 30?" + " please" * (i % 4),
            "chosen": f"It is {i + 30}.",
            "rejected": f"It is {i}." + " no" * (i % 3),
            "chosen_feedback": "Right, and clear." * (1 + i % 2),
            "rejected_feedback": "Wrong sum." * (1 + i % 3),
            **columns,
        }
        for i in range(count)
    ]
    return Dataset.from_list(rows)


def make_trainer(
    model, folder, rows=None, callbacks=None, eval_dataset=None, peft_config=None, quantization_config=None,
    compute_metrics=None, preprocess_logits_for_metrics=None, **options,
):  # fmt: skip
    defaults = {
        "max_steps": 3, "per_device_train_batch_size": 4, "logging_steps": 1, "learning_rate": 1e-3, "report_to": [],
        "bf16": False, "use_cpu": True, "gradient_checkpointing": False, "disable_tqdm": True, "save_strategy": "no",
    }  # fmt: skip
    return CLoudTrainer(
        model,
        CLoudTrainingConfig(str(folder), **{**defaults, **options}),
        train_dataset=make_rows() if rows is None else rows,
        eval_dataset=eval_dataset,
        processing_class=make_tokenizer("llama3"),
        callbacks=callbacks,
        peft_config=peft_config,
        quantization_config=quantization_config,
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=preprocess_logits_for_metrics,
    )


class KeepGradients(TrainerCallback):
    """The gradients of the last optimizer step."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
