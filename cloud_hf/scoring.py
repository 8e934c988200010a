"""Scores: what every backend returns, the interface they share, and the transformers backend."""

import logging
import math
import statistics
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch
from transformers import PreTrainedTokenizerBase

from .critique_format import CritiqueFormat, EncodedCritique, EncodedPrefix
from .generation import CritiqueWriter, Sample, read_rewards


if TYPE_CHECKING:
    from .modeling_cloud import CLoudForRewardModeling


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Score:
    """
    The judgement of one response.

    Args:
        reward (`float`):
            Mean of `rewards`.
        critique (`str`):
            The first critique; `""` for a classic model.
        rewards (`tuple[float, ...]`):
            One reward per critique.
        critiques (`tuple[str, ...]`):
            The critiques' texts.
        reward_std (`float`):
            Population standard deviation of `rewards`; 0.0 for one critique.
        finish_reasons (`tuple[str, ...]`):
            Per critique: `"stop"` when the model ended it, `"length"` when it was cut at `max_new_tokens`.
        critique_ids (`tuple[tuple[int, ...], ...]`):
            The critiques' token ids without the end token. Text does not always encode back to them.
    """

    reward: float
    critique: str
    rewards: tuple[float, ...]
    critiques: tuple[str, ...]
    reward_std: float
    finish_reasons: tuple[str, ...]
    critique_ids: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def of(cls, samples: "Sequence[Sample]") -> "Score":
        """Gather the samples of one response. Where a reward is no finite number, mean and deviation are NaN."""
        rewards = tuple(sample.reward for sample in samples)
        finite = all(map(math.isfinite, rewards))
        return cls(
            reward=statistics.fmean(rewards) if finite else math.nan,
            critique=samples[0].critique,
            rewards=rewards,
            critiques=tuple(sample.critique for sample in samples),
            reward_std=statistics.pstdev(rewards) if finite else math.nan,
            finish_reasons=tuple(sample.finish_reason for sample in samples),
            critique_ids=tuple(sample.critique_ids for sample in samples),
        )


OnScore = Callable[[int, Score], None]


class Scorer(Protocol):
    """
    What evaluation, best-of-N, RL and the demo need of a backend.

    Args:
        prompts (`list`):
            Strings, lists of chat messages, or `{"messages": [...], "tools": [...]}`.
        responses (`list[str]`):
            One response per prompt.
        num_critiques (`int`, *optional*, defaults to `1`):
            Critiques per response; their rewards are averaged. More than one needs `temperature > 0`.
        temperature (`float`, *optional*, defaults to `0.0`):
            Sampling temperature; 0 is greedy.
        max_new_tokens (`int`, *optional*, defaults to `1024`):
            Longest critique in tokens, its end token not counted. A longer one is cut there and scored.
        critiques (`list[str]` or `list[list[str]]`, *optional*):
            Score these critiques instead of writing some: one per response, or several.
        seed (`int`, *optional*):
            Makes sampling repeatable; in fp32, whatever the batch.
        on_score (`Callable[[int, Score], None]`, *optional*):
            Called with the index and the score of each response as soon as they are there, so that a failure of others does
            not cost them: from a server one by one, in this process at the end.

    Returns:
        `list[Score]`: In input order.
    """

    def score(
        self,
        prompts: list,
        responses: list[str],
        *,
        num_critiques: int = 1,
        temperature: float = 0.0,
        max_new_tokens: int = 1024,
        critiques: list | None = None,
        seed: int | None = None,
        on_score: OnScore | None = None,
    ) -> list[Score]: ...


class TransformersScorer:
    """
    [`Scorer`] over a [`CLoudForRewardModeling`] in this process.

    Args:
        model ([`CLoudForRewardModeling`]):
            CLoud or classic. A PEFT model around it works too.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The model's tokenizer.
        batch_size (`int`, *optional*, defaults to `16`):
            Sequences per forward pass.
        show_progress (`bool`, *optional*, defaults to `False`):
            Show a progress bar.
    """

    def __init__(self, model, tokenizer: PreTrainedTokenizerBase, batch_size: int = 16, show_progress: bool = False):
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.show_progress = show_progress

    def score(self, prompts: list, responses: list[str], **kwargs) -> list[Score]:
        """See [`Scorer`]."""
        options = {"batch_size": self.batch_size, "show_progress": self.show_progress, **kwargs}
        return score_with_transformers(self.model, self.tokenizer, prompts, responses, **options)


@torch.inference_mode()
def score_with_transformers(
    model: "CLoudForRewardModeling",
    tokenizer: PreTrainedTokenizerBase,
    prompts: list,
    responses: list[str],
    *,
    num_critiques: int = 1,
    temperature: float = 0.0,
    max_new_tokens: int = 1024,
    critiques: list | None = None,
    seed: int | None = None,
    on_score: OnScore | None = None,
    critique_prompt: str | None = None,
    batch_size: int = 16,
    show_progress: bool = False,
) -> list[Score]:
    """
    Judge responses with a model in this process.

    Args:
        model ([`CLoudForRewardModeling`]):
            CLoud or classic.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The model's tokenizer. It needs no pad token.
        prompts, responses, num_critiques, temperature, max_new_tokens, critiques, seed, on_score:
            See [`Scorer`].
        critique_prompt (`str`, *optional*):
            Opens the critique turn instead of the model's own prompt.
        batch_size (`int`, *optional*, defaults to `16`):
            Sequences per forward pass; long and short ones are kept apart. In fp32 it does not change the scores.
        show_progress (`bool`, *optional*, defaults to `False`):
            Show a progress bar.

    Returns:
        `list[Score]`: In input order.

    Raises:
        `ValueError`: Before anything is computed, if an argument or a row is not usable; the message names the row.
    """
    if batch_size < 1:
        raise ValueError("`batch_size` must be at least 1.")
    config = model.config
    critique_format = CritiqueFormat.from_config(config, tokenizer, critique_prompt)
    request = read_request(
        critique_format,
        config,
        prompts,
        responses,
        num_critiques=num_critiques,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        critiques=critiques,
        has_critique_prompt=critique_prompt is not None,
    )
    with _evaluation_mode(model):
        if request.given is None:
            writer = CritiqueWriter(model, critique_format, temperature, max_new_tokens, batch_size, show_progress)
            samples = writer.write(request.prefixes, num_critiques, seed)
            if not critique_format.rereads_critiques:
                return report_scores([Score.of(row) for row in samples], on_score)
            rows = [request.reread(row, row_samples) for row, row_samples in enumerate(samples)]
        else:
            samples, rows = request.given_samples(), request.given
        rewards = read_rewards(model, [encoded for row in rows for encoded in row], batch_size, show_progress)
    return report_scores(with_rewards(samples, rewards), on_score)


# ------------------------------------------------------------------------------------- what every backend does


@dataclass(frozen=True)
class ScoringRequest:
    """
    Checked and encoded arguments of [`Scorer.score`].

    Args:
        critique_format ([`CritiqueFormat`]):
            The model's format.
        prefixes (`list[EncodedPrefix]`):
            One per response.
        given (`list[list[EncodedCritique]]`, *optional*):
            Per response the sequences whose rewards are read; `None` if critiques are to be written.
        texts (`list[list[str]]`, *optional*):
            The critiques in `given`.
    """

    critique_format: CritiqueFormat
    prefixes: list[EncodedPrefix]
    given: list[list[EncodedCritique]] | None = None
    texts: list[list[str]] | None = None

    def given_samples(self) -> list[list[Sample]]:
        """Samples of the given critiques, their rewards still to be read."""
        return [
            [
                Sample(math.nan, text, encoded.input_ids[encoded.prefix_length : -1])
                for text, encoded in zip(texts, row, strict=True)
            ]
            for texts, row in zip(self.texts, self.given, strict=True)
        ]

    def reread(self, row: int, samples: list[Sample]) -> list[EncodedCritique]:
        """The sequences from which the rewards of a row's written critiques are read, where a format reads their text anew."""
        complete, prefix = self.critique_format.complete, self.prefixes[row]
        return [_naming_row(row, complete, prefix, sample.critique_ids) for sample in samples]


def read_request(
    critique_format: CritiqueFormat,
    config,
    prompts: list,
    responses: list[str],
    *,
    num_critiques: int,
    temperature: float,
    max_new_tokens: int,
    critiques: list | None,
    has_critique_prompt: bool = False,
    context: int | None = None,
    reserved_tokens: int = 1,
    reading_tokens: int = 0,
) -> ScoringRequest:
    """
    Check and encode what a backend is asked to score.

    Args:
        critique_format ([`CritiqueFormat`]):
            The model's format.
        config ([`CLoudConfig`]):
            The model's config.
        prompts, responses, num_critiques, temperature, max_new_tokens, critiques:
            See [`Scorer`].
        has_critique_prompt (`bool`, *optional*, defaults to `False`):
            Whether the caller asks with a critique prompt of its own, which a classic model does not know.
        context (`int`, *optional*):
            Longest sequence of the backend in tokens. Defaults to the model's.
        reserved_tokens (`int`, *optional*, defaults to `1`):
            Tokens the backend needs behind a written critique.
        reading_tokens (`int`, *optional*, defaults to `0`):
            Tokens it needs behind a sequence whose reward it reads.

    Returns:
        [`ScoringRequest`]

    Raises:
        `ValueError`: If an argument or a row is not usable; the message names the row.
    """
    _check_arguments(prompts, responses, num_critiques, temperature, max_new_tokens, critiques)
    if not config.critique and (num_critiques > 1 or critiques is not None or has_critique_prompt):
        raise ValueError(
            "This is a classic reward model: it writes no critiques. Drop `num_critiques`, `critiques` and "
            "`critique_prompt`."
        )
    context = context_length(config) if context is None else context
    prefixes = [
        _naming_row(row, critique_format.encode_prefix, prompt, response)
        for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
    ]
    if changed := sum(prefix.response_changed for prefix in prefixes):
        logger.warning(
            "The chat template shows %d of %d responses otherwise than given (thinking blocks dropped?). A model made "
            "with `keep_thinking` sees them whole.", changed, len(prefixes),
        )  # fmt: skip
    if config.critique and critiques is None:
        _check_lengths(context, [len(prefix.input_ids) + max_new_tokens + reserved_tokens for prefix in prefixes])
        return ScoringRequest(critique_format, prefixes)
    if config.critique:
        texts = [[given] if isinstance(given, str) else list(given) for given in critiques]
        rows = [
            [_naming_row(row, critique_format.complete, prefix, text) for text in row_texts]
            for row, (prefix, row_texts) in enumerate(zip(prefixes, texts, strict=True))
        ]
        texts = [[text.strip() for text in row_texts] for row_texts in texts]
    else:
        texts, rows = [[""]] * len(prefixes), [[critique_format.complete(prefix)] for prefix in prefixes]
    _check_lengths(context, [max(len(encoded.input_ids) for encoded in row) + reading_tokens for row in rows])
    return ScoringRequest(critique_format, prefixes, rows, texts)


def with_rewards(samples: list[list[Sample]], rewards: Sequence[float]) -> list[Score]:
    """Scores of samples whose rewards were read apart, in the samples' order."""
    remaining = iter(rewards)
    return [Score.of([replace(sample, reward=next(remaining)) for sample in row]) for row in samples]


def report_scores(scores: list[Score], on_score: OnScore | None) -> list[Score]:
    """The same scores, of which `on_score` was told."""
    for index, score in enumerate(scores if on_score is not None else ()):
        on_score(index, score)
    return scores


@contextmanager
def _evaluation_mode(model):
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


# -------------------------------------------------------------------------------------------------------- checking


def _check_arguments(prompts, responses, num_critiques, temperature, max_new_tokens, critiques):
    for name, value in (("prompts", prompts), ("responses", responses)):
        if isinstance(value, str | dict) or not isinstance(value, Sequence):
            raise ValueError(f"`{name}` is {value!r:.60}; give a list with one entry per response to judge.")
    if len(prompts) != len(responses):
        raise ValueError(f"{len(prompts)} prompts but {len(responses)} responses; give one prompt per response.")
    for name, value in (("num_critiques", num_critiques), ("max_new_tokens", max_new_tokens)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"`{name}` is {value!r}; it must be a whole number from 1 up.")
    if not isinstance(temperature, int | float) or not 0 <= temperature < math.inf:
        raise ValueError(f"`temperature` is {temperature!r}; it must be a finite number from 0 up.")
    if critiques is None:
        if num_critiques > 1 and temperature == 0:
            raise ValueError("`num_critiques` above 1 needs `temperature` above 0: greedy critiques are all the same.")
        return
    if isinstance(critiques, str) or not isinstance(critiques, Sequence):
        raise ValueError(f"`critiques` is {critiques!r:.60}; give a list with one entry per response.")
    if num_critiques > 1:
        raise ValueError(
            "`critiques` says what is scored; leave `num_critiques` out, and give lists to score several."
        )
    if len(critiques) != len(responses):
        raise ValueError(f"{len(critiques)} critiques but {len(responses)} responses; give one entry per response.")
    for row, texts in enumerate(critiques):
        texts = [texts] if isinstance(texts, str) else texts
        if not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"Row {row}: `critiques` is {texts!r:.60}; give a string or a non-empty list of strings.")


def _naming_row(row: int, function, *args):
    try:
        return function(*args)
    except ValueError as error:
        raise ValueError(f"Row {row}: {error}") from error


def _check_lengths(context: int | None, lengths: list[int]):
    """Refuse rows that the context cannot hold."""
    too_long = [row for row, length in enumerate(lengths) if context is not None and length > context]
    if too_long:
        raise ValueError(
            f"Row {too_long[0]}: {lengths[too_long[0]]} tokens with its critique, but the model's context holds {context} "
            f"({len(too_long)} of {len(lengths)} rows are too long). Lower `max_new_tokens`, or shorten the prompts "
            "(`CritiqueFormat.truncate_prompt`)."
        )


def context_length(config) -> int | None:
    """Longest sequence of a model in tokens; `None` where its config sets no limit."""
    return getattr(config.text_config, "max_position_embeddings", None)
