"""
Convert a classic reward model to its architecture's own `*ForSequenceClassification`, and back.

Rewards stay the same in every tool that renders conversations with the exported chat template: the template ends a
conversation with the token at which the reward is read, the tokenizer adds no tokens around the conversation, and padding
uses a different token.
"""

import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub import ModelCard
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from .cards import CLASSIC, assemble, inherit, model_card, shown_name
from .configuration_cloud import CLoudConfig, caps_attention, has_scalar_head, read_config
from .critique_format import CritiqueFormat
from .loading import check_reward_model, load_reward_model, read_model_config, tokenizer_source
from .markdown import block, in_code
from .modeling_cloud import CLoudForRewardModeling
from .template_dates import pin_date


# Conversations for comparing templates and tokenizers
_CHATS = (
    [("user", "What is 2+2?"), ("assistant", "4")],
    [("user", "Hello!"), ("assistant", "Hi."), ("user", "And  now?\n"), ("assistant", "Nothing.\n\n- Überhaupt  nichts. ")],
    [("system", "Be brief."), ("user", "x"), ("assistant", "")],
)  # fmt: skip


@dataclass(frozen=True)
class ClassifierExport:
    """A checked export plan: the model's name and config, and the sequence classifier's config and tokenizer."""

    source: str
    config: CLoudConfig
    classifier_config: Any
    tokenizer: PreTrainedTokenizerBase

    def __str__(self) -> str:
        return f"{self.source} -> {self.classifier_config.architectures[0]}, padded with {self.tokenizer.pad_token!r}"


def plan_export(source: str) -> ClassifierExport:
    """
    Check, without loading the weights, that a classic model can be converted to a transformers sequence classifier.

    Args:
        source (`str`):
            Hub id or folder of a classic model with a linear head, or of an adapter.

    Raises:
        `ValueError`: If no sequence classifier can give exactly the same rewards; the message says why.
    """
    config = read_model_config(source)
    check_reward_model(source, config)
    _check_exportable(source, config)
    with TemporaryDirectory() as folder:
        tokenizer = _export_tokenizer(source, config, folder)
    classifier_config = deepcopy(config.text_config)
    architecture = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES[classifier_config.model_type]
    labels = {"id2label": {0: "reward"}, "label2id": {"reward": 0}, "num_labels": 1}
    # Rewards are unbounded: without this problem type, pipelines and vLLM would apply a sigmoid
    classifier_config.update({**labels, "problem_type": "regression", "architectures": [architecture]})
    classifier_config.pad_token_id = tokenizer.pad_token_id
    _empty_classifier(source, classifier_config)
    return ClassifierExport(source, config, classifier_config, tokenizer)


def write_export(plan: ClassifierExport, destination: str | Path):
    """Write a sequence classifier, its tokenizer and its card."""
    model, _ = load_reward_model(plan.source, device_map="cpu")
    classifier = _empty_classifier(plan.source, plan.classifier_config)
    classifier.base_model.load_state_dict(model.trunk.state_dict(), assign=True)
    classifier.score.weight = nn.Parameter(model.reward_head.out_proj.weight.detach() / plan.config.reward_std)
    classifier.config.dtype = model.dtype
    classifier.save_pretrained(destination)
    plan.tokenizer.save_pretrained(destination)
    _card(plan, Path(destination)).save(Path(destination) / "README.md")


def check_import(source: str) -> PreTrainedTokenizerBase:
    """
    Check that a classic model can give the same rewards as a sequence classifier, and return the classifier's tokenizer.

    Raises:
        `ValueError`: If the classifier has several labels or remote code, or if its chat template continues after the token at which a
        classic model reads the reward.
    """
    config = read_config(source)
    if not has_scalar_head(config):
        raise ValueError(
            f"{source} is not a transformers sequence classifier with one label, so a classic model cannot use its head."
        )
    made = CLoudForRewardModeling.config_from_base(source, critique=False)
    tokenizer = AutoTokenizer.from_pretrained(source)
    critique_format = CritiqueFormat.from_config(made, tokenizer)
    if critique_format.tail != critique_format.end_token:
        raise ValueError(
            f"{source} reads its reward at the end of its chat template, {critique_format.tail!r}, but a classic model reads it at "
            f"{critique_format.end_token!r}, which would change the rewards. Score with the classifier itself, or start training from it."
        )
    if config.get_text_config().pad_token_id == critique_format.end_token_id:
        raise ValueError(
            f"{source} has the `pad_token_id` {critique_format.end_token_id}, the end of turn {critique_format.end_token!r}, so it reads "
            "its reward one token before it, but a classic model reads it at this token, which would change the rewards. Score with the "
            "classifier itself, or start training from it."
        )
    return tokenizer


def write_import(source: str, tokenizer: PreTrainedTokenizerBase, destination: str | Path):
    """Write a classic model that has the weights of a sequence classifier, with its tokenizer and a card."""
    model = CLoudForRewardModeling.from_base(source, tokenizer, critique=False, dtype="auto", device_map="cpu")
    model.save_pretrained(destination)
    tokenizer.save_pretrained(destination)
    about = f"It is a conversion of {in_code(shown_name(source) or '')}, a sequence classifier, with the same weights."
    model_card(Path(destination).name, CLASSIC, about, inherit(source)).save(Path(destination) / "README.md")


# --------------------------------------------------------------------------------------------------------- checking


def _check_exportable(source: str, config: CLoudConfig):
    if config.critique:
        raise ValueError(
            f"{source} is a CLoud model: its reward needs a critique, which a sequence classifier does not write."
        )
    if config.reward_head != "linear":
        raise ValueError(
            f"{source} has a two-layer reward head, but a sequence classifier's head is one linear layer. The model already "
            "loads with `AutoModelForSequenceClassification` and `trust_remote_code=True`; for a head that can be converted, train with "
            "`--reward_head linear`."
        )
    if config.reward_mean:
        raise ValueError(
            f"{source} subtracts `reward_mean` {config.reward_mean}, but a sequence classifier's head has no bias. Set `reward_mean` to 0; "
            "the order of rewards stays the same."
        )
    if config.keep_thinking:
        raise ValueError(f"{source} was created with `keep_thinking`, which no chat template can express.")
    if config.text_config.model_type not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        raise ValueError(
            f"{source} is a {config.text_config.model_type} model, for which transformers has no sequence classifier."
        )


def _empty_classifier(source: str, config: Any) -> Any:
    """Build the sequence classifier without weights. Raises `ValueError` if its head is not one linear layer named `score`."""
    with torch.device("meta"):
        classifier = AutoModelForSequenceClassification.from_config(config)
    head = [key for key in classifier.state_dict() if not key.startswith(f"{classifier.base_model_prefix}.")]
    if head != ["score.weight"]:
        raise ValueError(
            f"{source}: the head of {type(classifier).__name__} is not one linear layer ({', '.join(head):.200})."
        )
    return classifier


# -------------------------------------------------------------------------------------------------------- tokenizer


def _export_tokenizer(source: str, config: CLoudConfig, folder: str) -> PreTrainedTokenizerBase:
    """Create a tokenizer whose chat template gives the ids that the model reads, save it to `folder`, and return the reloaded copy."""
    name = tokenizer_source(source)
    critique_format = CritiqueFormat.from_config(config, AutoTokenizer.from_pretrained(name))
    tokenizer: Any = AutoTokenizer.from_pretrained(name)
    variables = pin_date(tokenizer, config.chat_template_kwargs) or {}
    tokenizer.chat_template = _closed_template(critique_format, variables)
    tokenizer.pad_token = _padding(source, critique_format, config)
    # The chat template writes all special tokens; the tokenizer must not add more when tools encode rendered text
    tokenizer.backend_tokenizer.post_processor = None
    tokenizer.save_pretrained(folder)
    saved: Any = AutoTokenizer.from_pretrained(folder)
    for expected, messages in _encoded_chats(critique_format):
        text = saved.apply_chat_template(messages, tokenize=False)
        for ids in (saved.apply_chat_template(messages)["input_ids"], saved(text)["input_ids"]):
            if ids != expected:
                raise ValueError(
                    f"{source}: no chat template gives the tokens that the model reads, for example for {text!r:.200}."
                )
    return saved


def _encoded_chats(critique_format: CritiqueFormat) -> Iterator[tuple[list[int], list[dict[str, str]]]]:
    """Yield each test conversation's ids, as the model reads them, and its messages. Skip conversations that the template refuses."""
    for chat in _CHATS:
        messages = [{"role": role, "content": content} for role, content in chat]
        try:
            prefix = critique_format.encode_prefix(messages[:-1], messages[-1]["content"])
        except ValueError:
            continue
        yield list(prefix.input_ids), messages


def _closed_template(critique_format: CritiqueFormat, variables: dict[str, Any]) -> str:
    """Return the chat template with its variables set, ending with the token at which the reward is read."""
    template = critique_format.tokenizer.get_chat_template().removesuffix("\n")
    day = variables.pop("strftime_now", None)
    lines = [f"{{% set {name} = {value!r} %}}" for name, value in variables.items()]
    if day is not None:
        formats = sorted(set(re.findall(r"strftime_now\(\s*['\"]([^'\"]+)['\"]", template)))
        days = {form: date.fromisoformat(day).strftime(form) for form in formats}
        lines.append(f"{{% macro strftime_now(form) %}}{{{{ {days!r}[form] }}}}{{% endmacro %}}")
    tail, end = critique_format.tail, critique_format.end_token
    if tail == end:
        return "".join(lines) + template
    # `+` keeps white space next to a tag, which transformers' Jinja settings would remove
    lines.append(f"{{% set conversation +%}}{template}{{%+ endset %}}")
    cut = f"conversation[:{len(end) - len(tail)}] if conversation.endswith({tail!r}) else conversation"
    return "".join(lines) + f"{{{{ {cut} }}}}"


def _padding(source: str, critique_format: CritiqueFormat, config: CLoudConfig) -> str:
    """Choose a padding token other than the end-of-turn token: sequence classifiers read the reward at the last id that is not padding."""
    tokenizer, spare = critique_format.tokenizer, config.reward_token_id
    reserved = tokenizer.convert_ids_to_tokens(spare) if spare is not None and spare < len(tokenizer) else None
    named = (tokenizer.pad_token, reserved, tokenizer.eos_token, tokenizer.unk_token, tokenizer.bos_token)
    others = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    for token in (*named, *others):
        if isinstance(token, str) and token != critique_format.end_token:
            return token
    raise ValueError(
        f"{source}: the tokenizer has no token to use as padding except the end of turn ({critique_format.end_token!r}), at which the "
        "reward is read."
    )


# ------------------------------------------------------------------------------------------------------------- card


def _card(plan: ClassifierExport, folder: Path) -> ModelCard:
    """Create a card whose example needs only transformers."""
    attention = ", attn_implementation='eager'" if caps_attention(plan.classifier_config) else ""
    code = (
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n\n"
        f"model = AutoModelForSequenceClassification.from_pretrained({folder.name!r}{attention})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({folder.name!r})\n"
        "messages = [{'role': 'user', 'content': 'What is 2+2?'}, {'role': 'assistant', 'content': '4'}]\n"
        "inputs = tokenizer.apply_chat_template(messages, return_dict=True, return_tensors='pt')\n"
        "print(model(**inputs).logits[0, 0].item())"
    )
    about = (
        f"A scalar reward model: {in_code(shown_name(plan.source) or '')} as "
        f"{in_code(plan.classifier_config.architectures[0])}, with identical rewards. Render conversations with its chat template. "
        "Text that spells a control token is read as that token, unless you score with cloud_hf."
    )
    serve = f"vllm serve {folder.name} --runner pooling"
    card = model_card(folder.name, CLASSIC, about, inherit(plan.source))
    return assemble(
        ModelCard, card.data, folder.name, about, {"Use": block(code, "python"), "Serve": block(serve, "bash")}
    )
