"""The model card of a trained reward model."""

from typing import Any

import transformers
import trl
from accelerate.utils import is_peft_model
from huggingface_hub import ModelCard, ModelCardData
from trl import RewardTrainer

from ..cards import METHOD, hub_id, kind_of, usage


_SHOWN_METRICS = ("loss", "pairwise_loss", "lm_loss", "accuracy", "margin", "mean_reward", "reward_std")


def make_model_card(trainer: RewardTrainer, model_name: str, dataset_name: str | None, tags=None) -> ModelCard:
    """
    Describe a trained model: kind, base model, λ, data, metrics, usage.

    Args:
        trainer ([`CLoudTrainer`]):
            The trainer, during or after training.
        model_name (`str`):
            Title of the card.
        dataset_name (`str`, *optional*):
            Name of the training data.
        tags (`str` or `list[str]`, *optional*):
            More tags for the Hub.

    Returns:
        `ModelCard`
    """
    model: Any = trainer.model
    args: Any = trainer.args
    rows: Any = trainer.train_dataset
    config = model.config
    base = config.name_or_path
    kind = kind_of(config.critique)
    name = trainer.hub_model_id or args.output_dir
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-classification",
        base_model=hub_id(base),
        datasets=[source] if (source := hub_id(dataset_name)) else None,
        tags=[*trainer._tag_names, *([tags] if isinstance(tags, str) else tags or [])],
    )
    facts = {
        "Kind": kind,
        "Base model": f"`{base}`" if base else "made from a config",
        "Training data": f"{dataset_name or 'not named'}, {len(rows)} pairs",
        "Bradley-Terry weight": args.bradley_terry_weight,
        "λ (weight of the critique LM loss)": args.lm_loss_weight
        if config.critique
        else "none: it writes no critiques",
        "Learning rate": f"{args.learning_rate}, {args.lr_scheduler_type}",
        "Epochs": args.num_train_epochs if args.max_steps < 0 else f"{args.max_steps} steps",
        "Versions": f"transformers {transformers.__version__}, trl {trl.__version__}",
    }
    lines = [f"# {model_name}", "", f"A {kind}. It gives a response a number."]
    if config.critique:
        lines[-1] += " First it writes a critique, then a head reads the reward at the critique's end."
    lines += ["", "| | |", "|---|---|", *[f"| {name} | {value} |" for name, value in facts.items()]]
    lines += ["", "## Metrics", "", *_metric_lines(trainer.state.log_history)]
    lines += ["", "## Use", "", "```python", usage(name, config.critique, bool(is_peft_model(model))), "```"]
    lines += ["", METHOD, ""]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines))


def _metric_lines(log_history: list[dict]) -> list[str]:
    """Return a table with the last value of each metric, of training and of evaluation."""
    last: dict[str, float] = {}
    for entry in log_history:
        last.update({key: value for key, value in entry.items() if key.removeprefix("eval_") in _SHOWN_METRICS})
    if not last:
        return ["Not measured yet."]
    return ["| metric | value |", "|---|---|", *[f"| {key} | {value:.4g} |" for key, value in last.items()]]
