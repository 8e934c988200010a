"""Rows with long shared prompts, and training runs on them without padding."""

from datasets import Dataset
from models_for_tests import make_model
from tokenizers_for_tests import make_tokenizer
from trainers_for_tests import KeepGradients

from cloud_hf import CLoudTrainer, CLoudTrainingConfig


LONG_PROMPT = "Please tell me, in as few words as you can, what the sum of these two numbers is: "


MODES = {"padded": {}, "padding_free": {"padding_free": True}, "shared_prompt": {"shared_prompt": True}}


def make_rows(count=6, critiques=(1,), **columns):
    """Rows with long and short prompts; of the long ones chosen, rejected and all critiques share most."""
    rows = []
    for i in range(count):
        n = critiques[i % len(critiques)]
        rows.append(
            {
                "prompt": f"{LONG_PROMPT * (i % 3)}{i} + 30?",
                "chosen": f"It is {i + 30}." + " Yes, it is." * (3 * (i % 2)),
                "rejected": f"It is {i}." + " no" * (i % 3),
                "chosen_feedback": [f"Right, and clear. {'Good. ' * k}" for k in range(n)],
                "rejected_feedback": [f"Wrong sum. {'Bad. ' * (n - k)}" for k in range(n)],
                **columns,
            }
        )
    return Dataset.from_list(rows)


def train(model, folder, rows, peft_config=None, **options):
    """Log and gradients of one optimizer step."""
    defaults = {
        "max_steps": 1, "per_device_train_batch_size": 8, "logging_steps": 1, "report_to": [], "bf16": False,
        "use_cpu": True, "gradient_checkpointing": False, "disable_tqdm": True, "save_strategy": "no", "max_grad_norm": 0.0,
    }  # fmt: skip
    keep = KeepGradients()
    trainer = CLoudTrainer(
        model,
        CLoudTrainingConfig(str(folder), **{**defaults, **options}),
        train_dataset=rows,
        processing_class=make_tokenizer("llama3"),
        callbacks=[keep],
        peft_config=peft_config,
    )
    trainer.train()
    return trainer.state.log_history[0], keep.gradients


def encoded_rows(base, folder, rows, **options):
    options = {"use_cpu": True, "bf16": False, "report_to": [], **options}
    config = CLoudTrainingConfig(str(folder / "encode"), **options)
    return CLoudTrainer(
        make_model(base), config, train_dataset=rows, processing_class=make_tokenizer("llama3")
    ).train_dataset


def make_budget_trainer(base, folder, rows, **options):
    defaults = {
        "num_train_epochs": 3, "token_budget": 1300, "logging_steps": 1, "report_to": [], "bf16": False, "use_cpu": True,
        "gradient_checkpointing": False, "disable_tqdm": True, "save_strategy": "steps", "save_steps": 1,
    }  # fmt: skip
    args = CLoudTrainingConfig(str(folder), **{**defaults, **options})
    return CLoudTrainer(make_model(base), args, train_dataset=rows, processing_class=make_tokenizer("llama3"))
