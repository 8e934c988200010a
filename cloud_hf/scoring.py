"""Scores: what every backend returns, the interface they share, and the transformers backend.

The critique is written by `generate` with its KV cache, and the reward is read in that same pass: when a row's
end-of-turn is fed, a hook keeps the hidden state. There is no second prefill, and no text is tokenised again.
"""

import hashlib
import statistics
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from tqdm.auto import tqdm
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from .critique_format import CritiqueFormat, EncodedCritique, EncodedPrefix


if TYPE_CHECKING:
    from .modeling_cloud import CLoudForRewardModeling


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
    def of(cls, samples: "Sequence[_Sample]") -> "Score":
        """Gather the samples of one response."""
        rewards = tuple(sample.reward for sample in samples)
        return cls(
            reward=statistics.fmean(rewards),
            critique=samples[0].critique,
            rewards=rewards,
            critiques=tuple(sample.critique for sample in samples),
            reward_std=statistics.pstdev(rewards),
            finish_reasons=tuple(sample.finish_reason for sample in samples),
            critique_ids=tuple(sample.critique_ids for sample in samples),
        )


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
            Makes sampling repeatable, whatever the batch.

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


@dataclass(frozen=True)
class _Sample:
    """One critique and its reward."""

    reward: float
    critique: str = ""
    critique_ids: tuple[int, ...] = ()
    finish_reason: str = "stop"


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
        prompts, responses, num_critiques, temperature, max_new_tokens, critiques, seed:
            See [`Scorer`].
        critique_prompt (`str`, *optional*):
            Opens the critique turn instead of the model's own prompt.
        batch_size (`int`, *optional*, defaults to `16`):
            Sequences per forward pass; long and short ones are kept apart. It does not change the scores.
        show_progress (`bool`, *optional*, defaults to `False`):
            Show a progress bar.

    Returns:
        `list[Score]`: In input order.

    Raises:
        `ValueError`: Before anything is computed, if an argument or a row is not usable; the message names the row.
    """
    _check_arguments(prompts, responses, num_critiques, temperature, max_new_tokens, critiques)
    config = model.config
    if not config.critique and (num_critiques > 1 or critiques is not None or critique_prompt is not None):
        raise ValueError(
            "This is a classic reward model: it writes no critiques. Drop `num_critiques`, `critiques` and "
            "`critique_prompt`."
        )
    critique_format = CritiqueFormat.from_config(config, tokenizer)
    if critique_prompt is not None:
        critique_format.critique_prompt = critique_prompt.rstrip()
    prefixes = [
        _naming_row(row, critique_format.encode_prefix, prompt, response)
        for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
    ]
    if not config.critique:
        rows = [(row, critique_format.complete(prefix)) for row, prefix in enumerate(prefixes)]
        texts = [""] * len(rows)
    elif critiques is not None:
        given = [[texts] if isinstance(texts, str) else list(texts) for texts in critiques]
        rows = [
            (row, _naming_row(row, critique_format.complete, prefixes[row], text))
            for row, texts in enumerate(given)
            for text in texts
        ]
        texts = [text.strip() for texts in given for text in texts]
    else:
        _check_lengths(config, [len(prefix.input_ids) + max_new_tokens + 1 for prefix in prefixes])
        writer = _CritiqueWriter(model, critique_format, temperature, max_new_tokens, batch_size, show_progress)
        with _evaluation_mode(model):
            return writer.write(prefixes, num_critiques, seed)
    _check_lengths(config, [len(encoded.input_ids) for _, encoded in rows], [row for row, _ in rows])
    with _evaluation_mode(model):
        rewards = _read_rewards(model, [encoded for _, encoded in rows], batch_size, show_progress)
    samples: list[list[_Sample]] = [[] for _ in prefixes]
    for (row, encoded), text, reward in zip(rows, texts, rewards, strict=True):
        samples[row].append(_Sample(reward, text, encoded.input_ids[encoded.prefix_length : -1]))
    return [Score.of(row_samples) for row_samples in samples]


@contextmanager
def _evaluation_mode(model):
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


# ------------------------------------------------------------------------------------------------- given sequences


def _read_rewards(model, rows: list[EncodedCritique], batch_size: int, show_progress: bool) -> list[float]:
    """Rewards of whole sequences, by one forward pass each."""
    rewards = [0.0] * len(rows)
    for batch in _batches([len(row.input_ids) for row in rows], batch_size, show_progress):
        inputs = _left_padded([rows[index].input_ids for index in batch], model.device)
        for index, reward in zip(batch, model(**inputs, use_cache=False).logits[:, 0].tolist(), strict=True):
            rewards[index] = reward
    return rewards


def _left_padded(sequences: list[tuple[int, ...]], device: torch.device) -> dict[str, torch.Tensor]:
    """Pads are masked, so that their id does not matter."""
    width = max(map(len, sequences))
    pads = [width - len(sequence) for sequence in sequences]
    return {
        "input_ids": torch.tensor([[0] * pad + list(ids) for pad, ids in zip(pads, sequences, strict=True)]).to(
            device
        ),
        "attention_mask": torch.tensor([[0] * pad + [1] * (width - pad) for pad in pads]).to(device),
    }


def _batches(lengths: list[int], batch_size: int, show_progress: bool):
    """Indices in batches, longest first: the first batch shows whether memory suffices."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    with tqdm(total=len(order), desc="Scoring", unit="seq", disable=not show_progress, dynamic_ncols=True) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch))


# ---------------------------------------------------------------------------------------------- writing critiques


@dataclass(frozen=True)
class _CritiqueWriter:
    """Writes critiques and reads their rewards in the same pass."""

    model: Any
    critique_format: CritiqueFormat
    temperature: float
    max_new_tokens: int
    batch_size: int
    show_progress: bool

    def write(self, prefixes: list[EncodedPrefix], num_critiques: int, seed: int | None) -> list[Score]:
        if seed is None:
            seed = int(torch.randint(2**31, ()))  # follows torch.manual_seed
        jobs = [(row, sample) for row in range(len(prefixes)) for sample in range(num_critiques)]
        samples: list[dict[int, _Sample]] = [{} for _ in prefixes]
        for batch in _batches([len(prefixes[row].input_ids) for row, _ in jobs], self.batch_size, self.show_progress):
            batch_jobs = [jobs[index] for index in batch]
            ids = [prefixes[row].input_ids for row, _ in batch_jobs]
            seeds = [_row_seed(seed, sample, prefixes[row].input_ids) for row, sample in batch_jobs]
            for (row, sample), result in zip(batch_jobs, self._write_batch(ids, seeds), strict=True):
                samples[row][sample] = result
        return [Score.of([row[sample] for sample in range(num_critiques)]) for row in samples]

    def _write_batch(self, prefixes: list[tuple[int, ...]], seeds: list[int]) -> list[_Sample]:
        inputs = _left_padded(prefixes, self.model.device)
        width = inputs["input_ids"].shape[1]
        end = self.critique_format.end_token_id
        sampler = _GumbelSampler(self.temperature, seeds)
        ending = _EndOfCritique(end, _stop_ids(self.model.config, end), width, self.max_new_tokens)
        reader = _RewardReader(end, len(prefixes))
        hook = self.model.trunk.register_forward_hook(reader.read, with_kwargs=True)
        try:
            # Every value that the base model's own generation config could set is given here
            output_ids = self.model.language_model.generate(
                **inputs,
                logits_processor=LogitsProcessorList([sampler, ending]),
                stopping_criteria=StoppingCriteriaList([reader]),
                max_new_tokens=self.max_new_tokens + 2,  # the end token, and the step that feeds it
                do_sample=False,
                num_beams=1,
                repetition_penalty=1.0,
                no_repeat_ngram_size=0,
                eos_token_id=None,
                pad_token_id=end,
                use_cache=True,
                return_dict_in_generate=False,
            )
        finally:
            hook.remove()
        rewards = self.model.reward_from_hidden(torch.stack(reader.hidden_states))[:, 0].tolist()
        samples = []
        for ids, reward, cut in zip(output_ids[:, width:].tolist(), rewards, ending.cut.tolist(), strict=True):
            critique_ids = ids[: ids.index(end)]
            text = self.critique_format.decode(critique_ids)
            samples.append(_Sample(reward, text, tuple(critique_ids), "length" if cut else "stop"))
        return samples


def _row_seed(seed: int, sample: int, prefix_ids: tuple[int, ...]) -> int:
    """A seed that depends on the text judged, not on its place: batches, order and shards do not change a sample."""
    digest = hashlib.blake2b(f"{seed}/{sample}/{prefix_ids}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _stop_ids(config, end_token_id: int) -> list[int]:
    """Tokens by which a language model says that it is done, beside the end of turn."""
    eos = config.text_config.eos_token_id
    return [token_id for token_id in (eos if isinstance(eos, list) else [eos]) if token_id not in (None, end_token_id)]


class _GumbelSampler(LogitsProcessor):
    """Adds each row's own Gumbel noise, so that the arg max is a sample of the softmax at this temperature."""

    def __init__(self, temperature: float, seeds: list[int]):
        self.temperature = temperature
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if self.temperature == 0:
            return scores
        exponential = [torch.empty(scores.shape[1]).exponential_(generator=rng) for rng in self.generators]
        return scores / self.temperature - torch.stack(exponential).log().to(scores.device)


class _EndOfCritique(LogitsProcessor):
    """Lets any stop token close the critique with the end of turn, and closes it when the budget is spent."""

    def __init__(self, end_token_id: int, stop_ids: list[int], prefix_width: int, max_new_tokens: int):
        self.end_token_id = end_token_id
        self.stop_ids = stop_ids
        self.prefix_width = prefix_width
        self.last_width = prefix_width + max_new_tokens
        self.cut = torch.zeros(0, dtype=torch.bool)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if self.stop_ids:
            best = scores[:, [self.end_token_id, *self.stop_ids]].amax(-1)
            scores[:, self.stop_ids] = -torch.inf
            scores[:, self.end_token_id] = best
        if input_ids.shape[1] == self.prefix_width:
            self.cut = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        if input_ids.shape[1] == self.last_width:
            ended = (input_ids[:, self.prefix_width :] == self.end_token_id).any(-1)
            self.cut = ~ended & (scores.argmax(-1) != self.end_token_id)
            scores.fill_(-torch.inf)
            scores[:, self.end_token_id] = 0.0
        return scores


class _RewardReader(StoppingCriteria):
    """Keeps the hidden state at each row's end of turn; a row is done once it has one."""

    def __init__(self, end_token_id: int, batch_size: int):
        self.end_token_id = end_token_id
        self.hidden_states: list[torch.Tensor | None] = [None] * batch_size
        self.prefilled = False

    def read(self, module, args, kwargs, output):
        """Forward hook on the trunk: sees the tokens that are fed and their hidden states."""
        if not self.prefilled:
            return
        fed = kwargs["input_ids"] if "input_ids" in kwargs else args[0]  # GPT-2 passes it by position
        for row in (fed[:, -1] == self.end_token_id).nonzero()[:, 0].tolist():
            if self.hidden_states[row] is None:
                self.hidden_states[row] = output.last_hidden_state[row, -1]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        self.prefilled = True
        return torch.tensor([state is not None for state in self.hidden_states], device=input_ids.device)


# -------------------------------------------------------------------------------------------------------- checking


def _check_arguments(prompts, responses, num_critiques, temperature, max_new_tokens, critiques):
    for name, value in (("prompts", prompts), ("responses", responses)):
        if isinstance(value, str | dict) or not isinstance(value, Sequence):
            raise ValueError(f"`{name}` is {value!r:.60}; give a list with one entry per response to judge.")
    if len(prompts) != len(responses):
        raise ValueError(f"{len(prompts)} prompts but {len(responses)} responses; give one prompt per response.")
    if num_critiques < 1 or max_new_tokens < 1 or temperature < 0:
        raise ValueError("`num_critiques` and `max_new_tokens` must be at least 1 and `temperature` at least 0.")
    if critiques is None:
        if num_critiques > 1 and temperature == 0:
            raise ValueError("`num_critiques` above 1 needs `temperature` above 0: greedy critiques are all the same.")
        return
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


def _check_lengths(config, lengths: list[int], rows: list[int] | None = None):
    """Refuse rows that the model's context cannot hold."""
    context = context_length(config)
    too_long = [index for index, length in enumerate(lengths) if context is not None and length > context]
    if too_long:
        first = too_long[0]
        raise ValueError(
            f"Row {first if rows is None else rows[first]}: {lengths[first]} tokens with its critique, but the model's "
            f"context holds {context} ({len(too_long)} of {len(lengths)} rows are too long). Lower `max_new_tokens`, or "
            "shorten the prompts with `fit_prompts`."
        )


def context_length(config) -> int | None:
    """Longest sequence of a model in tokens; `None` where its config sets no limit."""
    return config.text_config.to_dict().get("max_position_embeddings")
