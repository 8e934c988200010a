"""Score with third-party scalar reward models: any `*ForSequenceClassification` whose tokenizer has a chat template."""

import json
import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, cast

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from .configuration_cloud import CLoudConfig, longest_sequence
from .control_tokens import SLOT
from .critique_format import CritiqueFormat, EncodedPrefix
from .generation import length_batches
from .prompts import Conversation
from .scores import OnScore, Sampling, Score, report_scores
from .scoring import ScoringRequest, read_request


class ScalarFormat(CritiqueFormat):
    """
    Encodes a conversation as a scalar reward model expects it: the chat template's complete rendering, as `apply_chat_template` encodes it.
    Encoder models also get the tokens that their tokenizer adds around its input. As in [`CritiqueFormat`], text never becomes control
    tokens, and dates are pinned.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            A fast tokenizer with a chat template.
        name (`str`, *optional*, defaults to `"The reward model"`):
            The model's name, for error messages.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str = "The reward model"):
        if not tokenizer.chat_template:
            raise ValueError(
                f"{name} has no chat template, so the format of its conversations is unknown. Set its tokenizer's `chat_template` to "
                "the one that the model was trained with, and save the tokenizer with the model."
            )
        super().__init__(tokenizer, critique=False)

    def encode_prefix(self, prompt, response) -> EncodedPrefix:
        """Encode a conversation; see [`CritiqueFormat.encode_prefix`]."""
        prefix = super().encode_prefix(prompt, response)
        first, last = self._around
        ids = prefix.input_ids
        return replace(prefix, input_ids=(*first[: ids[:1] != first], *ids, *last[: ids[-1:] != last]))

    def _render_turns(self, conversation):
        return self._apply_template(conversation)

    def _find_end_of_turn(self):
        probe = Conversation([{"role": "user", "content": "x"}, {"role": "assistant", "content": SLOT}])
        text = self._apply_template(probe)
        if SLOT not in text:
            raise ValueError("The chat template does not show the text of the last assistant turn.")
        # The model itself chooses the reward position, so a template may end turns with ordinary text
        end = self._controls.pattern.search(text, text.rindex(SLOT))
        self.end_token = end.group() if end else str(self.tokenizer.eos_token or self.tokenizer.sep_token)
        self.end_token_id = cast(int, self.tokenizer.convert_tokens_to_ids(self.end_token))
        # Templates of decoder models write all tokens of a conversation; encoder models also need the tokens that their tokenizer adds
        ids = self.tokenizer("x")["input_ids"]
        self._around: tuple[tuple[int, ...], tuple[int, ...]] = (), ()
        if self.tokenizer.cls_token_id is not None and ids[0] == self.tokenizer.cls_token_id:
            self._around = (ids[0],), (ids[-1],) if ids[-1] == self.tokenizer.sep_token_id else ()


class ScalarScorer:
    """
    [`Scorer`] that runs a scalar reward model. In fp32, a reward depends on neither the batch nor the padding token: it matches what the
    model returns for the conversation alone, encoded with `apply_chat_template`.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A `*ForSequenceClassification`.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The model's tokenizer, with its chat template.
        label_weights (`dict[str, float]`, *optional*):
            Weight of each label in the reward, by label name. Required for a model with several labels.
        batch_size (`int`, *optional*, defaults to `16`):
            Sequences per forward pass, sorted by length.
        show_progress (`bool`, *optional*, defaults to `False`):
            Show a progress bar.

    Raises:
        `ValueError`: If the model's labels do not define a reward, or the tokenizer has no chat template.

    Examples:

    ```python
    >>> scorer = ScalarScorer(*load_scalar_model("org/scalar-rm"))
    >>> scorer.score(["What is 2+2?"], ["4"])[0].reward
    ```
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        label_weights: Mapping[str, float] | None = None,
        batch_size: int = 16,
        show_progress: bool = False,
    ):
        name = str(model.name_or_path) or type(model).__name__
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.show_progress = show_progress
        self.critique_format = ScalarFormat(tokenizer, name)
        self.context_length = scalar_context(model.config, tokenizer)
        self._weights = read_label_weights(name, model.config, label_weights)
        # Requests are checked as for a classic model
        self._config = stand_in_config(model.config)
        self._pad_token_id = model.config.get_text_config().pad_token_id

    def score(
        self,
        prompts: list,
        responses: list,
        *,
        critiques: list | None = None,
        on_score: OnScore | None = None,
        **sampling,
    ) -> list[Score]:
        """Judge responses. See [`Scorer`] for the arguments; a scalar model writes no critiques."""
        request = self.read_rows(prompts, responses, critiques=critiques, **sampling)
        rows = [encoded.input_ids for row in request.given or () for encoded in row]
        return report_scores(request.with_rewards(request.given_samples(), self._read(rows)), on_score)

    def read_rows(
        self, prompts: list, responses: list, *, critiques: list | None = None, **sampling
    ) -> ScoringRequest:
        """Check and encode rows as `score` does. Raises `ValueError` if they cannot be scored."""
        return read_request(
            self.critique_format,
            self._config,
            prompts,
            responses,
            Sampling(**sampling),
            critiques,
            context=self.context_length,
        )

    @torch.inference_mode()
    def _read(self, rows: Sequence[tuple[int, ...]]) -> list[float]:
        rewards = [0.0] * len(rows)
        weights = torch.tensor(self._weights)
        for batch in length_batches([len(row) for row in rows], self.batch_size, self.show_progress):
            logits = self.model(**self._padded([rows[index] for index in batch])).logits.float().cpu()
            if logits.shape != (len(batch), len(weights)):
                raise ValueError(
                    f"The model returns logits of shape {tuple(logits.shape)} for {len(batch)} sequences and {len(weights)} "
                    "label(s), which cannot be read as rewards."
                )
            for index, reward in zip(batch, (logits @ weights).tolist(), strict=True):
                rewards[index] = reward
        return rewards

    def _padded(self, rows: Sequence[tuple[int, ...]]) -> dict[str, torch.Tensor]:
        """
        Pad on the right. Decoder models read the reward at the last token that differs from the config's padding id. If the config has
        none, this chooses an id that no row ends with, so that each row's reward is read at its last token.
        """
        pad = self._pad_token_id
        if pad is None:
            ends = {row[-1] for row in rows}
            pad = next(token_id for token_id in range(len(ends) + 1) if token_id not in ends)
            for config in (self.model.config, self.model.config.get_text_config()):
                config.pad_token_id = pad
        width = max(map(len, rows))
        padded = {
            "input_ids": [[*row, *[pad] * (width - len(row))] for row in rows],
            "attention_mask": [[1] * len(row) + [0] * (width - len(row)) for row in rows],
        }
        return {name: torch.tensor(values, device=self.model.device) for name, values in padded.items()}


def is_scalar_model(config: Any) -> bool:
    """Return whether a config describes a sequence classifier, from transformers or with remote code."""
    names = [*(getattr(config, "architectures", None) or ()), *(getattr(config, "auto_map", None) or ())]
    return not isinstance(config, CLoudConfig) and any(name.endswith("ForSequenceClassification") for name in names)


def load_scalar_model(name: str, **kwargs) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    Load a scalar reward model (onto the GPU if there is one) and its tokenizer.

    Args:
        name (`str`):
            Hub id or folder of a `*ForSequenceClassification`.
        **kwargs:
            Passed to `from_pretrained` (`dtype`, `device_map`, `trust_remote_code`, `revision`, …).

    Raises:
        `ValueError`: If the checkpoint lacks weights: a language model, for instance, has no classifier head.
    """
    if torch.cuda.is_available():
        kwargs.setdefault("device_map", "cuda")
    model, info = AutoModelForSequenceClassification.from_pretrained(name, output_loading_info=True, **kwargs)
    if info["missing_keys"] or info["mismatched_keys"]:
        missing = ", ".join(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
        raise ValueError(
            f"{name} is not a trained reward model: its checkpoint has no usable {missing:.200}, so these weights would be random."
        )
    model.config.get_text_config().use_cache = False
    hub_kwargs = {key: kwargs[key] for key in ("revision", "token", "cache_dir", "trust_remote_code") if key in kwargs}
    return model, AutoTokenizer.from_pretrained(name, **hub_kwargs)


def read_label_weights(name: str, config: Any, label_weights: Mapping[str, float] | None = None) -> list[float]:
    """
    Return the weight of each label in the reward. Raises `ValueError` if a model has several labels but no weights are given, or if the
    weights name labels that the model does not have.
    """
    labels = [config.id2label[index] for index in range(config.num_labels)]
    listed = ", ".join(map(repr, labels))
    if len(labels) == 1 and not label_weights:
        return [1.0]
    if not label_weights:
        example = json.dumps({labels[-1]: 1, labels[0]: -1} if len(labels) == 2 else {labels[0]: 1})
        raise ValueError(
            f"{name} has {len(labels)} labels ({listed:.300}), and its config does not say which is the reward. Set `label_weights`, for "
            f"example {example}."
        )
    if unknown := [label for label in label_weights if label not in labels]:
        raise ValueError(f"`label_weights` names {unknown[0]!r}, but the labels of {name} are {listed:.300}.")
    return [float(label_weights.get(label, 0.0)) for label in labels]


def parse_label_weights(text: str | None) -> dict[str, float] | None:
    """Parse label weights given as JSON. Raises `ValueError` unless they are an object of finite numbers that are not all 0."""
    if text is None:
        return None
    try:
        weights = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"`label_weights` are not JSON: {error}") from error
    is_number = isinstance(weights, dict) and all(
        type(value) in (int, float) and math.isfinite(value) for value in weights.values()
    )
    if not is_number or not any(weights.values()):
        raise ValueError(
            f"`label_weights` are {text:.80}; pass a JSON object that maps labels to finite numbers, not all of them 0, such as "
            '{"helpful": 1}.'
        )
    return weights


def scalar_context(config: Any, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the maximum sequence length in tokens; `None` if neither the model nor the tokenizer sets a limit."""
    # RoBERTa's config counts two positions that no token can occupy; tokenizers without a limit report a huge number
    limits = [longest_sequence(config.get_text_config()), tokenizer.model_max_length]
    return min((limit for limit in limits if limit is not None and limit < 10**12), default=None)


def stand_in_config(config: Any) -> CLoudConfig:
    """Return the config of a classic model with the same architecture; requests are checked against it."""
    # A copy, because a composite config sets the attention implementation of its parts
    return CLoudConfig(text_config=deepcopy(config.get_text_config()), critique=False)
