"""
Model cards: metadata (some of it inherited from the cards of a model's sources), sections, and held-out results.

Text from rows, models and sources is escaped, so that the card shows it literally.
"""

import json
import logging
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml
from huggingface_hub import CardData, DatasetCard, EvalResult, ModelCard, ModelCardData

from .card_results import results_section
from .markdown import block, in_code


logger = logging.getLogger(__name__)

CardT = TypeVar("CardT", ModelCard, DatasetCard)

_LICENCE = ("license", "license_name", "license_link")

METHOD = """The method is that of [Critique-out-Loud Reward Models](https://arxiv.org/abs/2408.11791):

```bibtex
@misc{ankner2024critiqueoutloud,
  title = {Critique-out-Loud Reward Models},
  author = {Zachary Ankner and Mansheej Paul and Brandon Cui and Jonathan D. Chang and Prithviraj Ammanabrolu},
  year = {2024},
  eprint = {2408.11791},
  archivePrefix = {arXiv}
}
```"""


@dataclass(frozen=True)
class Kind:
    """A kind of model: its title, its tags and task on the Hub, what it does, and how tools that load models by name can use it."""

    title: str
    tags: tuple[str, ...]
    pipeline_tag: str | None
    lead: str
    other_tools: str


CLOUD = Kind(
    "CLoud (critique-out-loud) reward model",
    ("cloud-hf", "critique-out-loud", "reward-model"),
    None,  # the Hub's text pipelines do not write the critique that the reward needs
    "It first writes a critique of a response; a reward head then computes the reward at the end of the critique.",
    "The reward is read at the end of a critique that the model writes first. Tools that load a reward model by name do not write this "
    'critique, so they get an error. Use `score`, `pipeline("critique-reward")`, or `cloud_hf.rl.trl.cloud_reward` as a reward function '
    "for TRL.",
)
CLASSIC = Kind(
    "classic reward model",
    ("cloud-hf", "reward-model"),
    "text-classification",
    "It assigns a scalar reward to a response.",
    'Tools that load a reward model by name (`AutoModelForSequenceClassification`, `pipeline("text-classification")`, TRL\'s '
    "`reward_funcs`) get the same reward for chats rendered with this tokenizer's chat template.",
)
CRITIC = Kind(
    "language model that writes critiques",
    ("cloud-hf", "critique-out-loud"),
    "text-generation",
    "It is the stage 1 model from which a CLoud reward model is trained, and has no reward head.",
    "`cloud-hf self-critiques` writes critiques for a dataset with this model, and `cloud-hf train-cloud` starts from it.",
)


def kind_of(critique: bool) -> Kind:
    """Return the kind of a reward model."""
    return CLOUD if critique else CLASSIC


class Example(NamedTuple):
    """A prompt, a response, and the model's output for them: a critique and, for a reward model, a reward."""

    prompt: Any
    response: str
    critique: str = ""
    reward: float | None = None
    is_cut: bool = False


_UNSCORED = Example("What is 2+2?", "4")


# ------------------------------------------------------------------------------------------------------------- names


def hub_id(name: str | None) -> str | None:
    """Return `name` if it is a Hub id and not a local path."""
    return name if name and re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists() else None


def shown_name(name: str | None) -> str | None:
    """Return a name as it is published: for a local path, only the last component."""
    return Path(name).resolve().name if name and not hub_id(name) else name


def assemble(card_class: type[CardT], data: CardData, title: str, about: str, sections: Mapping[str, str]) -> CardT:
    """Assemble a card; empty sections are omitted."""
    title = re.sub(r"([\\<>\[\]`*|])", r"\\\1", " ".join(title.split()))
    parts = [f"# {title}", about, *(f"## {heading}\n\n{text}" for heading, text in sections.items() if text)]
    return card_class(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


# ------------------------------------------------------------------------------------------------------- inheritance


def read_metadata(name: str | None, card_class: type[ModelCard] | type[DatasetCard]) -> dict[str, Any]:
    """
    Read the card of a Hub id or folder, and return the metadata that other cards inherit. `license`, `license_name` and `license_link`
    are strings; `language`, `base_model`, `datasets` and `source_datasets` are lists. Malformed values are dropped; if the card cannot be
    read, the result is empty.
    """
    if not name:
        return {}
    try:
        if hub_id(name):
            data = card_class.load(name).data.to_dict()
        else:
            text = Path(name, "README.md").read_text("utf-8")
            data = card_class(text, ignore_metadata_errors=True).data.to_dict() if text.startswith("---") else {}
    except OSError:  # no card, or no network
        return {}
    except (ValueError, yaml.YAMLError) as error:
        logger.warning("The card of %s cannot be read, so nothing is inherited from it: %.200s", name, error)
        return {}
    lists = {
        key: list(filter(hub_id, _listed(data.get(key)))) for key in ("base_model", "datasets", "source_datasets")
    }
    lists["language"] = [code for code in _listed(data.get("language")) if re.fullmatch(r"[A-Za-z-]{2,12}", code)]
    texts = {key: data[key] for key in _LICENCE if isinstance(data.get(key), str)}
    return {key: value for key, value in {**texts, **lists}.items() if value}


def _listed(value: Any) -> list[str]:
    return [part for part in (value if isinstance(value, list) else [value]) if isinstance(part, str)]


def inherit(base: str | None, datasets: Iterable[str | None] = ()) -> dict[str, Any]:
    """
    Return the metadata that a model inherits: the nearest base model and all datasets on the Hub, the base's licence, and the languages of
    the datasets or, if they name none, those of the base. A source in a local folder is replaced with the sources that its card names.
    """
    of_base, found, languages = read_metadata(base, ModelCard), [], []
    for name in filter(None, datasets):
        of_data = read_metadata(name, DatasetCard)
        found += [name] if hub_id(name) else of_data.get("source_datasets", [])
        languages += of_data.get("language", [])
    if not hub_id(base):  # the base was trained locally, so list its training data here
        found += of_base.get("datasets", [])
    made = {
        "base_model": [base] if hub_id(base) else of_base.get("base_model"),
        "datasets": list(dict.fromkeys(found)),
        "language": list(dict.fromkeys(languages)) or of_base.get("language"),
        **{key: of_base[key] for key in _LICENCE if key in of_base},
    }
    return {key: value for key, value in made.items() if value}


# ------------------------------------------------------------------------------------------------------- model cards


def model_card(
    name: str,
    kind: Kind,
    about: str,
    metadata: Mapping[str, Any],
    *,
    package: bool = False,
    training: str = "",
    example: Example | None = None,
    critique_prompt: str | None = None,
    tags: Sequence[str] = (),
    results: Sequence[EvalResult] = (),
    notes: str = "",
) -> ModelCard:
    """
    Create a model card.

    Args:
        name (`str`):
            Hub id, or name of the model's folder.
        about, training (`str`):
            Markdown. `about` says where the model comes from, and is placed after the sentence that names the model's kind;
            `training` is the text of the Training section.
        metadata (`Mapping[str, Any]`):
            Card metadata, including what [`inherit`] returns.
        package (`bool`, *optional*, defaults to `False`):
            Whether only this package can load the model, which is the case for adapters and for the published layout.
        critique_prompt (`str`, *optional*):
            The critic's prompt, if chat messages can express it.
        results, notes (*optional*):
            Held-out results, and a sentence on their origin.
    """
    example = example or _UNSCORED
    bases = metadata.get("base_model", [])
    data = ModelCardData(
        library_name="peft" if package and kind is CRITIC else "transformers",
        pipeline_tag=kind.pipeline_tag,
        tags=list(dict.fromkeys([*kind.tags, *tags])),
        model_name=name if results else None,
        eval_results=list(results) or None,
        **{**metadata, "base_model": bases[0] if len(bases) == 1 else bases or None},
    )
    sections = {
        "Use": _use(name, kind, package, example, critique_prompt),
        "Evaluation": results_section(results, notes),
        "Training": training,
        "Serve": _serve(name, kind, package),
        "Limits": _limits(kind, metadata.get("language")),
        "Citation": METHOD,
    }
    return assemble(ModelCard, data, name, f"A {kind.title}. {about.strip()} {kind.lead}", sections)


def _use(name: str, kind: Kind, package: bool, example: Example, critique_prompt: str | None) -> str:
    folder = f"{in_code(name)} is this folder: use its path or, once it is uploaded, its Hub id.\n\n"
    if kind is CRITIC:
        code = _critic_code(name, example, critique_prompt)
    elif package:
        code = f"from cloud_hf.loading import load_reward_model\n\nmodel, tokenizer = load_reward_model({name!r})\n"
    else:
        code = (
            "from transformers import AutoModel, AutoTokenizer\n\n"
            f"model = AutoModel.from_pretrained({name!r}, trust_remote_code=True)\n"
            f"tokenizer = AutoTokenizer.from_pretrained({name!r}, trust_remote_code=True)\n"
        )
    if kind is not CRITIC:
        printed = "score.reward, score.critique" if kind is CLOUD else "score.reward"
        code += f"prompt = {example.prompt!r}\nresponse = {example.response!r}\n"
        code += f"[score] = model.score([prompt], [response], tokenizer)\nprint({printed})"
    return f"{'' if hub_id(name) else folder}{block(code, 'python')}{_output(kind, example)}\n\n{kind.other_tools}"


def _critic_code(name: str, example: Example, critique_prompt: str | None) -> str:
    code = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"model = AutoModelForCausalLM.from_pretrained({name!r})\ntokenizer = AutoTokenizer.from_pretrained({name!r})"
    )
    if critique_prompt is None:
        return code
    turns = [("user", example.prompt), ("assistant", example.response), ("user", critique_prompt)]
    messages = "".join(f"    {{'role': {role!r}, 'content': {text!r}}},\n" for role, text in turns)
    return (
        f"{code}\nmessages = [\n{messages}]\n"
        "inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors='pt', return_dict=True)\n"
        "ids = model.generate(**inputs, max_new_tokens=1024, do_sample=False)[0, inputs['input_ids'].shape[1] :]\n"
        "print(tokenizer.decode(ids, skip_special_tokens=True))"
    )


def _output(kind: Kind, example: Example) -> str:
    if example is _UNSCORED:
        return ""
    source = "\n\nThe example is a row from the training data."
    if kind is CLASSIC:
        return f"{source} Its reward is {example.reward:.4g}."
    text = f"{source} The model writes{' (truncated here)' if example.is_cut else ''}:\n\n{block(example.critique)}"
    return text if example.reward is None else f"{text}\n\nThe reward at its end is {example.reward:.4g}."


def _serve(name: str, kind: Kind, package: bool) -> str:
    quoted = shlex.quote(name)
    if kind is CRITIC:
        merge = f"cloud-hf merge-adapter --model_name_or_path {quoted} --output_dir merged\n" if package else ""
        return block(f"{merge}vllm serve {'merged' if package else quoted}", "bash")
    request = json.dumps({"inputs": [{"prompt": _UNSCORED.prompt, "response": _UNSCORED.response}]})
    lines = [
        "pip install 'cloud-hf[server]'",
        f"cloud-hf serve {quoted} --port 8000",
        f"curl http://127.0.0.1:8000/v1/rewards -H 'Content-Type: application/json' -d '{request}'",
    ]
    return block("\n".join(lines), "bash")


def _limits(kind: Kind, language: Any) -> str:
    languages = language if isinstance(language, str) else ", ".join(language or ())
    found = []
    if kind is not CRITIC:
        found = [
            "Rewards have no unit and no zero point. Compare only rewards that this model gives to responses to the same prompt.",
            "In bfloat16, a reward depends slightly on the other rows of its batch. Differences of that size do not show a preference; "
            "the `batch` probe of `cloud-hf evaluate` measures them.",
        ]
    if kind is not CLASSIC:
        found.append("A critique can read well and still be wrong; no critique was checked by people.")
    if kind is CLOUD:
        found.append(
            "The reward depends on the critique. The mean reward over several sampled critiques (`num_critiques`) varies less."
        )
    found.append(
        f"The cards of the model's sources name these languages: {languages}. Evaluate the model before you use it for others."
        if languages
        else "The cards of the model's sources do not name a language. Evaluate the model in yours before you use it."
    )
    return "\n".join(f"- {text}" for text in found)
