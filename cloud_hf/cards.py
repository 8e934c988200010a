"""Model cards: the card of a trained model, and the parts that conversion and evaluation share with it."""

import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers.trainer_utils import SchedulerType


METHOD = "Method: Ankner et al., *Critique-out-Loud Reward Models*, arXiv 2408.11791."
_SHOWN_METRICS = ("loss", "pairwise_loss", "lm_loss", "accuracy", "margin", "mean_reward", "reward_std")


def hub_id(name: str | None) -> str | None:
    """Return `name` if it is a Hub id and not a local path."""
    return name if name and re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists() else None


def kind_of(critique: bool) -> str:
    """Name the kind of a reward model."""
    return "CLoud (critique-out-loud) reward model" if critique else "classic reward model"


def usage(name: str, critique: bool, adapter: bool = False) -> str:
    """Return Python code that loads a model and scores a response."""
    load = (
        "from transformers import AutoModel, AutoTokenizer\n\n"
        f"model = AutoModel.from_pretrained({name!r}, trust_remote_code=True)\n"
        f"tokenizer = AutoTokenizer.from_pretrained({name!r}, trust_remote_code=True)\n"
    )
    if adapter:
        load = f"from cloud_hf.loading import load_reward_model\n\nmodel, tokenizer = load_reward_model({name!r})\n"
    shown = "score.reward, score.critique" if critique else "score.reward"
    return f'{load}[score] = model.score(["What is 2+2?"], ["4"], tokenizer)\nprint({shown})'


def pipeline_tag(critique: bool) -> str | None:
    """Return the Hub's task: the one for texts does not write the critique that a CLoud model needs."""
    return None if critique else "text-classification"


def other_tools(critique: bool) -> str:
    """Say how tools that load reward models by name use a model."""
    if critique:
        return (
            "The reward is read at the end of a critique that the model writes first. Tools that load a reward model by its name "
            'do not write one, and get an error: use `score`, `pipeline("critique-reward")`, or '
            "`cloud_hf.rl.trl.cloud_reward` as a reward function of TRL."
        )
    return (
        "Tools that load a reward model by its name (`AutoModelForSequenceClassification`, "
        "`pipeline(\"text-classification\")`, TRL's `reward_funcs`) get the same reward for chats that this tokenizer's chat "
        "template rendered."
    )


def add_results(folder: Path, results: list[EvalResult]):
    """
    Add results to the metadata of a model's card (`model-index`), replacing those of the same dataset, split, revision, metric and
    settings (`metric_args`).
    """
    card = ModelCard.load(folder / "README.md")
    data: Any = card.data
    new = set(map(_key_of, results))
    kept = [result for result in data.eval_results or [] if _key_of(result) not in new]
    data.model_name = data.model_name or folder.resolve().name
    data.eval_results = kept + results
    card.save(folder / "README.md")


def _key_of(result: EvalResult) -> tuple:
    dataset = (result.dataset_type, result.dataset_name, result.dataset_split, result.dataset_revision)
    return *dataset, result.metric_name, json.dumps(result.metric_args, sort_keys=True)


def make_model_card(trainer: Any, is_adapter: bool, model_name: str, dataset_name: str | None, tags=None) -> ModelCard:
    """Describe a model that a [`CLoudTrainer`] trained: kind, base model, λ, data, metrics, usage."""
    args, config = trainer.args, trainer.model.config
    base, kind = config.name_or_path, kind_of(config.critique)
    name = trainer.hub_model_id or Path(args.output_dir).name
    lm_loss_weight = args.lm_loss_weight if config.critique else "none: it writes no critiques"
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=pipeline_tag(config.critique),
        base_model=hub_id(base),
        datasets=[source] if (source := hub_id(dataset_name)) else None,
        tags=[*trainer._tag_names, *([tags] if isinstance(tags, str) else tags or [])],
    )
    facts = {
        "Kind": kind,
        "Base model": f"`{shown_name(base)}`" if base else "initialised from a config",
        "Training data": f"{shown_name(dataset_name) or 'not named'}, {len(trainer.train_dataset)} pairs",
        "Bradley-Terry weight": args.bradley_terry_weight,
        "λ (weight of the critique LM loss)": lm_loss_weight,
        "Learning rate": f"{args.learning_rate}, {SchedulerType(args.lr_scheduler_type).value}",
        "Epochs": args.num_train_epochs if args.max_steps < 0 else f"{args.max_steps} steps",
        "Versions": f"transformers {version('transformers')}, trl {version('trl')}",
    }
    lines = [f"# {model_name}", "", f"A {kind}. It assigns a scalar reward to a response."]
    if config.critique:
        lines[-1] += " It first writes a critique; a head then reads the reward at the critique's end."
    lines += ["", "| | |", "|---|---|", *[f"| {name} | {value} |" for name, value in facts.items()]]
    lines += ["", "## Metrics", "", *_metric_lines(trainer.state.log_history)]
    return _card(data, lines, usage(name, config.critique, is_adapter), config.critique)


def merged_card(model_name: str, adapter: str, base: str, critique: bool) -> ModelCard:
    """Describe a model that was made by merging an adapter into its base."""
    kind, tags = kind_of(critique), ["cloud-hf", *(["critique-out-loud"] if critique else []), "reward-model"]
    data = ModelCardData(
        library_name="transformers", pipeline_tag=pipeline_tag(critique), base_model=hub_id(base), tags=tags
    )
    lines = [
        f"# {model_name}",
        "",
        f"A {kind}: the LoRA adapter `{shown_name(adapter)}` merged into `{shown_name(base)}`.",
    ]
    return _card(data, lines, usage(model_name, critique), critique)


def language_model_card(model_name: str, adapter: str, base: str) -> ModelCard:
    """Describe a language model of stage 1 that was made by merging an adapter into its base."""
    data = ModelCardData(library_name="transformers", pipeline_tag="text-generation", base_model=hub_id(base))
    text = f"A language model that writes critiques: the LoRA adapter `{shown_name(adapter)}` merged into `{shown_name(base)}`."
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n# {model_name}\n\n{text}\n\n{METHOD}\n")


def _card(data: ModelCardData, lines: list[str], code: str, critique: bool) -> ModelCard:
    lines = [*lines, "", "## Use", "", "```python", code, "```", "", other_tools(critique), "", METHOD, ""]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines))


def shown_name(name: str | None) -> str | None:
    """Return a name for others to read: of a path, its last part."""
    return Path(name).name if name and not hub_id(name) else name


def _metric_lines(log_history: list[dict]) -> list[str]:
    """Return a table with the last value of each metric, of training and of evaluation."""
    last: dict[str, float] = {}
    for entry in log_history:
        last.update({key: value for key, value in entry.items() if key.removeprefix("eval_") in _SHOWN_METRICS})
    if not last:
        return ["Not measured yet."]
    return ["| metric | value |", "|---|---|", *[f"| {key} | {value:.4g} |" for key, value in last.items()]]
