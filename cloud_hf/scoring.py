"""Score with transformers in this process; check and encode requests for every backend."""

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import torch
from transformers import PreTrainedTokenizerBase

from .configuration_cloud import longest_sequence, position_switch
from .critique_format import CritiqueFormat, EncodedCritique, EncodedPrefix
from .generation import CritiqueWriter, read_partial_rewards
from .scores import OnScore, Sample, Sampling, Score, Scorer, read_critiques, report_scores


if TYPE_CHECKING:
    from .modeling_cloud import CLoudForRewardModeling


__all__ = [
    "OnScore",
    "Sampling",
    "Score",
    "Scorer",
    "ScoringRequest",
    "TransformersScorer",
    "context_length",
    "naming_row",
    "read_request",
    "report_scores",
    "score_with_transformers",
]

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


class TransformersScorer:
    """
    [`Scorer`] that runs a [`CLoudForRewardModeling`], or a PEFT model that wraps one, in this process.

    Args:
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
        """Judge responses. See [`Scorer`] for the arguments."""
        options = {"batch_size": self.batch_size, "show_progress": self.show_progress, **kwargs}
        return score_with_transformers(self.model, self.tokenizer, prompts, responses, **options)


def score_with_transformers(
    model: "CLoudForRewardModeling",
    tokenizer: PreTrainedTokenizerBase,
    prompts: list,
    responses: list[str],
    *,
    critiques: list | None = None,
    on_score: OnScore | None = None,
    critique_prompt: str | None = None,
    batch_size: int = 16,
    show_progress: bool = False,
    **sampling,
) -> list[Score]:
    """
    Judge responses with a CLoud or classic model in this process.

    Args:
        prompts, responses, critiques, on_score:
            See [`Scorer`].
        critique_prompt (`str`, *optional*):
            Critique prompt to use instead of the model's.
        batch_size (`int`, *optional*, defaults to `16`):
            Sequences per forward pass, sorted by length. In fp32, the batch size does not affect the scores.
        show_progress (`bool`, *optional*, defaults to `False`):
            Show a progress bar.
        **sampling:
            `num_critiques`, `temperature`, `max_new_tokens`, `seed`, `read_every` and `stop_when_stable`; see [`Scorer`].

    Returns:
        `list[Score]`: In input order.

    Raises:
        `ValueError`: If an argument or a row is invalid; the message names the row. Raised before anything is
            computed, unless a critique in the authors' format outgrows the context once it is tokenised again.
    """
    if batch_size < 1:
        raise ValueError("`batch_size` must be at least 1.")
    config = model.config
    critique_format = CritiqueFormat.from_config(config, tokenizer, critique_prompt)
    options, has_prompt = Sampling(**sampling), critique_prompt is not None
    request = read_request(
        critique_format, config, prompts, responses, options, critiques, has_critique_prompt=has_prompt
    )
    return report_scores(score_request(model, request, options, batch_size, show_progress), on_score)


@torch.inference_mode()
def score_request(
    model: "CLoudForRewardModeling",
    request: "ScoringRequest",
    sampling: Sampling,
    batch_size: int,
    show_progress: bool = False,
) -> list[Score]:
    """Judge the rows of a request from [`read_request`] with a model in this process."""
    with _evaluation_mode(model):
        if request.given is None:
            writer = CritiqueWriter(model, request.critique_format, sampling, batch_size, show_progress)
            samples = writer.write(request.prefixes)
            if not request.critique_format.rereads_critiques:
                return [request.score(row, samples[row]) for row in range(len(samples))]
            # This format's rewards are read from the re-tokenised text, which requires a second pass
            rows = [request.reread(row, row_samples) for row, row_samples in enumerate(samples)]
        else:
            samples, rows = request.given_samples(), request.given
        sequences = [encoded for row in rows for encoded in row]
        partial = read_partial_rewards(model, sequences, batch_size, show_progress, sampling.read_every)
    inner = None if sampling.read_every is None else [rewards[:-1] for rewards in partial]
    return request.with_rewards(samples, [rewards[-1] for rewards in partial], inner)


# -------------------------------------------------------------------------------------------- shared by all backends


@dataclass(frozen=True)
class ScoringRequest:
    """The checked and encoded arguments of [`Scorer.score`]."""

    critique_format: CritiqueFormat
    prefixes: list[EncodedPrefix]
    # Most tokens in a sequence from which the backend can read a reward
    most: float
    # Per response, the sequences to read rewards from; `None` if critiques still have to be written
    given: list[list[EncodedCritique]] | None = None
    texts: list[list[str]] | None = None

    @classmethod
    def joined(cls, critique_format: CritiqueFormat, requests: "Sequence[ScoringRequest]") -> "ScoringRequest":
        """Join requests that all have critiques or all lack them. Only one thread at a time may use `critique_format`'s tokenizer."""
        prefixes = [prefix for request in requests for prefix in request.prefixes]
        if requests[0].given is None:
            return cls(critique_format, prefixes, requests[0].most)
        given = [row for request in requests for row in request.given or ()]
        texts = [texts for request in requests for texts in request.texts or ()]
        return cls(critique_format, prefixes, requests[0].most, given, texts)

    def given_samples(self) -> list[list[Sample]]:
        """Return samples for the given critiques, with NaN in place of the rewards, which have not been read yet."""
        return [
            [
                Sample(math.nan, text, encoded.input_ids[encoded.prefix_length : -1])
                for text, encoded in zip(texts, row, strict=True)
            ]
            for texts, row in zip(self.texts or (), self.given or (), strict=True)
        ]

    def score(self, row: int, samples: Sequence[Sample]) -> Score:
        """Combine the samples of a row into its score."""
        return Score.of(samples, self.prefixes[row].response_changed)

    def with_rewards(
        self, samples: list[list[Sample]], rewards: Sequence[float], inner: Sequence[tuple[float, ...]] | None = None
    ) -> list[Score]:
        """Return the scores of samples with these final and partial (`inner`) rewards, which are in the order of the samples."""
        remaining = zip(rewards, inner or [None] * len(rewards), strict=True)

        def read(sample: Sample) -> Sample:
            reward, inner_rewards = next(remaining)
            return replace(sample, reward=reward, inner_rewards=inner_rewards)

        return [self.score(row, [read(sample) for sample in row_samples]) for row, row_samples in enumerate(samples)]

    def reread(self, row: int, samples: list[Sample]) -> list[EncodedCritique]:
        """
        Encode a row's written critiques again, for formats that read rewards from the re-tokenised text. Raises `ValueError`, naming the row,
        if a critique cannot be encoded or has more tokens than fit, because re-tokenised text can have more tokens than were written.
        """
        complete, prefix = self.critique_format.complete, self.prefixes[row]
        rows = [naming_row(row, complete, prefix, sample.critique_ids) for sample in samples]
        if (length := max(len(encoded.input_ids) for encoded in rows)) > self.most:
            raise ValueError(
                f"Row {row}: {length} tokens with its critique once it is tokenised again, as the reference format does, but at most "
                f"{self.most:g} fit in the model's context. Lower `max_new_tokens`, or shorten the prompts (`CritiqueFormat.truncate_prompt`)."
            )
        return rows


def read_request(
    critique_format: CritiqueFormat,
    config,
    prompts: list,
    responses: list[str],
    sampling: Sampling,
    critiques: list | None = None,
    *,
    has_critique_prompt: bool = False,
    context: int | None = None,
    reserved_tokens: int = 1,
    reading_tokens: int = 0,
) -> ScoringRequest:
    """
    Check and encode the arguments of [`Scorer.score`].

    Args:
        critique_format, config, prompts, responses, sampling, critiques:
            The model's format and config, and the arguments of [`Scorer.score`].
        has_critique_prompt (`bool`, *optional*, defaults to `False`):
            Whether the caller gave a critique prompt, which a classic model cannot use.
        context (`int`, *optional*):
            Maximum sequence length of the backend in tokens. Defaults to the model's.
        reserved_tokens (`int`, *optional*, defaults to `1`):
            Tokens to reserve after each critique that the backend writes.
        reading_tokens (`int`, *optional*, defaults to `0`):
            Tokens that the backend must generate after a complete sequence in order to read its reward.

    Raises:
        `ValueError`: If an argument or a row is invalid; the message names the row.
    """
    _check_arguments(prompts, responses, sampling, critiques)
    if not config.critique and (sampling.num_critiques > 1 or critiques is not None or has_critique_prompt):
        raise ValueError(
            "This is a classic reward model, which writes no critiques. Drop `num_critiques`, `critiques` and "
            "`critique_prompt`."
        )
    _check_partial(critique_format, sampling, critiques)
    context = context_length(config) if context is None else context
    most = math.inf if context is None else context - reading_tokens
    prefixes = [
        naming_row(row, critique_format.encode_prefix, prompt, response)
        for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
    ]
    if changed := sum(prefix.response_changed for prefix in prefixes):
        logger.warning(
            "The chat template changes %d of %d responses (does it drop thinking blocks?). A model created with "
            "`keep_thinking` sees them unchanged.", changed, len(prefixes),
        )  # fmt: skip
    if config.critique and critiques is None:
        needed = sampling.max_new_tokens + reserved_tokens
        _check_lengths(context, [len(prefix.input_ids) + needed for prefix in prefixes], config)
        return ScoringRequest(critique_format, prefixes, most)
    # Check the prefixes before encoding the critiques, because a caller can send any number of critiques
    shortest = int(config.critique) + reading_tokens
    _check_lengths(context, [len(prefix.input_ids) + shortest for prefix in prefixes], config)
    texts, rows = _encode_given(critique_format, prefixes, critiques, most)
    _check_lengths(context, [max(len(encoded.input_ids) for encoded in row) + reading_tokens for row in rows], config)
    return ScoringRequest(critique_format, prefixes, most, rows, texts)


def _encode_given(
    critique_format: CritiqueFormat, prefixes: list[EncodedPrefix], critiques: list | None, most: float
) -> tuple[list[list[str]], list[list[EncodedCritique]]]:
    """Return the texts and sequences of the given critiques. With a classic model, each response gets a single empty text."""
    if critiques is None:
        return [[""]] * len(prefixes), [[critique_format.complete(prefix)] for prefix in prefixes]

    def complete_all(prefix: EncodedPrefix, texts: list[str]) -> list[EncodedCritique]:
        encoded: list[EncodedCritique] = []
        for text in texts:
            encoded.append(critique_format.complete(prefix, text))
            if len(encoded[-1].input_ids) > most:
                break  # stop encoding: the request will be rejected
        return encoded

    texts = [read_critiques(row, given) for row, given in enumerate(critiques)]
    rows = [naming_row(row, complete_all, *pair) for row, pair in enumerate(zip(prefixes, texts, strict=True))]
    return [[text.strip() for text in row_texts] for row_texts in texts], rows


@contextmanager
def _evaluation_mode(model):
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


# -------------------------------------------------------------------------------------------------------- checking


def _check_arguments(prompts, responses, sampling: Sampling, critiques):
    for name, value in (("prompts", prompts), ("responses", responses)):
        if isinstance(value, str | dict) or not isinstance(value, Sequence):
            raise ValueError(f"`{name}` is {value!r:.60}; give a list with one entry per response to judge.")
    if len(prompts) != len(responses):
        raise ValueError(f"{len(prompts)} prompts but {len(responses)} responses; give one prompt per response.")
    if critiques is None:
        if sampling.num_critiques > 1 and sampling.temperature == 0:
            raise ValueError("`num_critiques` above 1 needs `temperature` above 0: greedy critiques are identical.")
        return
    if isinstance(critiques, str) or not isinstance(critiques, Sequence):
        raise ValueError(f"`critiques` is {critiques!r:.60}; give a list with one entry per response.")
    if sampling.num_critiques > 1:
        raise ValueError(
            "`num_critiques` cannot be combined with `critiques`; omit `num_critiques`. To score several critiques per response, give "
            "a list of them for each response."
        )
    if len(critiques) != len(responses):
        raise ValueError(f"{len(critiques)} critiques but {len(responses)} responses; give one entry per response.")
    for row, given in enumerate(critiques):
        read_critiques(row, given)


def _check_partial(critique_format: CritiqueFormat, sampling: Sampling, critiques):
    if sampling.read_every is None:
        return
    if not critique_format.critique:
        raise ValueError("This reward model writes no critiques, so it has no partial rewards. Drop `read_every`.")
    if critique_format.rereads_critiques:
        raise ValueError(
            "This model's format ('reference') reads the reward from the critique's text after it is written, so it has no partial "
            "rewards. Drop `read_every`."
        )
    if sampling.stop_when_stable is not None and critiques is not None:
        raise ValueError("Given `critiques` are always scored in full; drop `stop_when_stable`.")


_SWITCHES = (
    " The model's position embeddings (longrope) switch at that length, for all sequences in a batch at once, so longer rows "
    "would change the rewards of other rows."
)


def naming_row(row: int, function: Callable[..., _T], *args) -> _T:
    """Call `function`, and prefix its `ValueError` with the row."""
    try:
        return function(*args)
    except ValueError as error:
        raise ValueError(f"Row {row}: {error}") from error


def _check_lengths(context: int | None, lengths: list[int], config):
    switch = position_switch(config.text_config)
    if switch is not None and (context is None or switch < context):
        context = switch
    if too_long := [row for row, length in enumerate(lengths) if context is not None and length > context]:
        raise ValueError(
            f"Row {too_long[0]}: {lengths[too_long[0]]} tokens with its critique, but the model's context holds {context} "
            f"({len(too_long)} of {len(lengths)} rows are too long). Lower `max_new_tokens`, or shorten the prompts "
            "(`CritiqueFormat.truncate_prompt`)." + (_SWITCHES if context == switch else "")
        )


def context_length(config) -> int | None:
    """Return a model's maximum sequence length in tokens; `None` if its config sets no limit."""
    return longest_sequence(config.text_config)
