"""Train, then save and describe the model. Shared by the training commands."""

from typing import Any

from datasets import Dataset
from transformers import ProgressCallback

from .resume import name_last


def train_and_save(trainer: Any, rows: Dataset):
    """
    Train, then save the trainer's state, the model and its card, and upload them if `push_to_hub` is set. `rows` are the training rows
    before encoding; the card shows one of them.
    """
    try:
        trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    except KeyboardInterrupt:
        _end_bars(trainer)
        raise KeyboardInterrupt(f"Interrupted. {_saved(trainer)}") from None
    trainer.save_state()
    trainer.create_model_card()
    trainer.save_model()  # after the card: with `push_to_hub`, saving also uploads the model, and the Hub may reject the upload
    trainer.add_example(rows)
    if trainer.args.push_to_hub:
        trainer.push_to_hub()


def _end_bars(trainer: Any):
    """Close the progress bar; otherwise, it would be redrawn after the last message."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, ProgressCallback) and callback.training_bar is not None:
            callback.training_bar.close()


def _saved(trainer: Any) -> str:
    """Describe what an interrupted run has saved, and how to continue it."""
    output, last = trainer.args.output_dir, name_last(trainer.args.output_dir)
    if last == "none":
        return f"Step {trainer.state.global_step} of {trainer.state.max_steps}; no checkpoint yet. Repeating the command starts over."
    return (
        f"Step {trainer.state.global_step} of {trainer.state.max_steps}; {last} is saved in {output}. To continue, repeat the "
        "command with --resume_from_checkpoint true."
    )
