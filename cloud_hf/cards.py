"""What the card of any reward model says: what it is made from, and how to use it."""

import re
from pathlib import Path


METHOD = "Method: Ankner et al., *Critique-out-Loud Reward Models*, arXiv 2408.11791."


def hub_id(name: str | None) -> str | None:
    """The name, if it is one of the Hub and not a path here."""
    return name if name and re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists() else None


def kind_of(critique: bool) -> str:
    """What a model is called."""
    return "CLoud (critique-out-loud) reward model" if critique else "classic reward model"


def usage(name: str, critique: bool, adapter: bool = False) -> str:
    """Python lines that load a model and score a response."""
    load = (
        "from transformers import AutoModel, AutoTokenizer\n\n"
        f"model = AutoModel.from_pretrained({name!r}, trust_remote_code=True)\n"
        f"tokenizer = AutoTokenizer.from_pretrained({name!r}, trust_remote_code=True)\n"
    )
    if adapter:
        load = f"from cloud_hf.loading import load_reward_model\n\nmodel, tokenizer = load_reward_model({name!r})\n"
    shown = "score.reward, score.critique" if critique else "score.reward"
    return f'{load}[score] = model.score(["What is 2+2?"], ["4"], tokenizer)\nprint({shown})'
