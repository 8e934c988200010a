"""Parts of model cards shared by training, conversion and evaluation."""

import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard


METHOD = "Method: Ankner et al., *Critique-out-Loud Reward Models*, arXiv 2408.11791."


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


def add_results(folder: Path, results: list[EvalResult]):
    """
    Add results to the metadata of a model's card (`model-index`), replacing those of the same dataset and metric.
    """
    card = ModelCard.load(folder / "README.md")
    data: Any = card.data
    new = {(result.dataset_type, result.dataset_name, result.metric_name) for result in results}
    kept = [
        result
        for result in data.eval_results or []
        if (result.dataset_type, result.dataset_name, result.metric_name) not in new
    ]
    data.model_name = data.model_name or folder.resolve().name
    data.eval_results = kept + results
    card.save(folder / "README.md")
