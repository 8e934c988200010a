"""Write critiques and read rewards with transformers, in one pass over one KV cache.

`generate` writes the critique. When it feeds a row's end-of-turn token to the model, a hook keeps the hidden state from which
the reward is read. No second prefill is needed, and no text is tokenised again. (A format that reads the reward from the
critique's text, such as [`ReferenceFormat`], does need a second pass; see `rereads_critiques`.)
"""

import copy
import hashlib
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import (
    Cache,
    DynamicCache,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from .critique_format import CritiqueFormat, EncodedCritique, EncodedPrefix
from .scores import STABLE_READS, Sample, Sampling


# ------------------------------------------------------------------------------------------------- given sequences


def read_partial_rewards(
    model, rows: list[EncodedCritique], batch_size: int, show_progress: bool, read_every: int | None = None
) -> list[tuple[float, ...]]:
    """
    Read the rewards of complete sequences, without generation. For each sequence, return the rewards at every
    `read_every`-th critique token, followed by the reward at the end.
    """
    rewards: list[tuple[float, ...]] = [()] * len(rows)
    for batch in length_batches([len(row.input_ids) for row in rows], batch_size, show_progress):
        inputs = _left_padded([rows[index].input_ids for index in batch], model.device)
        last = inputs["input_ids"].shape[1] - 1
        places = [_inner_places(rows[index], read_every) for index in batch]
        inner_BR = torch.full((len(batch), max(map(len, places))), last)
        for row, (index, found) in enumerate(zip(batch, places, strict=True)):
            inner_BR[row, : len(found)] = torch.tensor(found) + (last - rows[index].reward_position)
        ends_B = torch.full((len(batch),), last)
        options = {"use_cache": False, "return_dict": True}
        output = model(**inputs, reward_positions=ends_B, inner_positions=inner_BR, **options)
        read_BR, reward_B = output.inner_rewards.tolist(), output.logits[:, 0].tolist()
        for index, found, read, reward in zip(batch, places, read_BR, reward_B, strict=True):
            rewards[index] = (*read[: len(found)], reward)
    return rewards


def _inner_places(row: EncodedCritique, read_every: int | None) -> range:
    """Return the positions in a sequence of every `read_every`-th critique token."""
    if read_every is None:
        return range(0)
    return range(row.prefix_length + read_every - 1, row.reward_position, read_every)


def _left_padded(sequences: list[tuple[int, ...]], device: torch.device) -> dict[str, torch.Tensor]:
    """
    Pad sequences on the left, and return them with an attention mask. A row is padded with its own first token, because a
    repetition penalty ignores the mask, and must not see an id that the row does not contain.
    """
    width = max(map(len, sequences))
    pads = [width - len(sequence) for sequence in sequences]
    rows = [[ids[0]] * pad + list(ids) for pad, ids in zip(pads, sequences, strict=True)]
    mask = [[0] * pad + [1] * (width - pad) for pad in pads]
    return {"input_ids": torch.tensor(rows).to(device), "attention_mask": torch.tensor(mask).to(device)}


def length_batches(lengths: list[int], batch_size: int, show_progress: bool):
    """Yield batches of indices, longest sequences first, so that the first batch shows whether there is enough memory."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    with tqdm(total=len(order), desc="Scoring", unit="seq", disable=not show_progress, dynamic_ncols=True) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch))


# ---------------------------------------------------------------------------------------------- writing critiques


@dataclass(frozen=True)
class CritiqueWriter:
    """Writes critiques and reads their rewards in the same pass."""

    model: Any
    critique_format: CritiqueFormat
    sampling: Sampling
    batch_size: int
    show_progress: bool

    def write(self, prefixes: list[EncodedPrefix]) -> list[list[Sample]]:
        """Write the critiques for each prefix."""
        num_critiques, seed = self.sampling.num_critiques, self.sampling.seed
        if seed is None:
            seed = int(torch.randint(2**31, ()))  # follows torch.manual_seed
        shares = num_critiques > 1 and can_share_prefill(self.model.language_model)
        # Prefixes per prefill, chosen so that their critiques fill complete batches
        at_once = self.batch_size // math.gcd(self.batch_size, num_critiques)
        samples: list[list[Sample]] = [[] for _ in prefixes]
        for rows in length_batches([len(prefix.input_ids) for prefix in prefixes], at_once, self.show_progress):
            inputs = _left_padded([prefixes[row].input_ids for row in rows], self.model.device)
            cache = self._prefill(inputs) if shares else None
            jobs = [(place, number) for place in range(len(rows)) for number in range(num_critiques)]
            while jobs:
                batch, jobs = jobs[: self.batch_size], jobs[self.batch_size :]
                places = [place for place, _ in batch]
                seeds = [row_seed(seed, number, prefixes[rows[place]].input_ids) for place, number in batch]
                # `generate` extends the cache in place, so only the last batch gets the original
                written = self._write_batch(inputs, places, seeds, copy.deepcopy(cache) if jobs else cache)
                for place, sample in zip(places, written, strict=True):
                    samples[rows[place]].append(sample)
        return samples

    def _prefill(self, inputs: dict[str, torch.Tensor]) -> Cache:
        """Fill a cache with the prefixes except for their last token, which `generate` needs for its first logits."""
        cache = _new_cache(self.model.language_model)
        all_but_last = {name: tensor[:, :-1] for name, tensor in inputs.items()}
        unread = torch.zeros(len(inputs["input_ids"]), dtype=torch.long)
        self.model(**all_but_last, reward_positions=unread, past_key_values=cache, use_cache=True)
        return cache

    def _write_batch(
        self, inputs: dict[str, torch.Tensor], places: list[int], seeds: list[int], cache: Cache | None
    ) -> list[Sample]:
        """Write a critique for each of `places`, which are row indices in `inputs`. The call modifies `cache`."""
        if places != list(range(len(inputs["input_ids"]))):
            index = torch.tensor(places, device=self.model.device)
            inputs = {name: tensor[index] for name, tensor in inputs.items()}
            if cache is not None:
                cache.reorder_cache(index)  # pyright: ignore[reportArgumentType]  # a long tensor
        width = inputs["input_ids"].shape[1]
        end = self.critique_format.end_token_id
        temperature, max_new_tokens = self.sampling.temperature, self.sampling.max_new_tokens
        reader = _RewardReader(end, self.model.reward_from_hidden, self.sampling)
        ends = _Ends(self.critique_format, self.model)
        ending = _EndOfCritique(ends, width + max_new_tokens, reader)
        processors, likelihood = [], _Likelihood(ends)
        if temperature > 0:
            processors = [likelihood, _GumbelSampler(temperature, seeds, reader, self.model.device)]
        # OPT calls the decoder inside its trunk without the trunk
        hook = self.model.trunk.get_decoder().register_forward_hook(reader.read, with_kwargs=True)
        try:
            # Call the inner language model, because its generation config is neutral; the outer model's generation
            # config contains the base's sampling defaults
            output_ids = self.model.language_model.generate(
                **inputs,
                **({} if cache is None else {"past_key_values": cache}),
                logits_processor=LogitsProcessorList([*processors, ending]),
                stopping_criteria=StoppingCriteriaList([reader]),
                max_new_tokens=max_new_tokens + 2,  # the end token, and the step that feeds it
                repetition_penalty=self.critique_format.repetition_penalty,
                do_sample=False,
                num_beams=1,
                eos_token_id=None,
                pad_token_id=end,
                use_cache=True,
                return_dict_in_generate=False,
            )
        finally:
            hook.remove()
        rewards = self.model.reward_from_hidden(reader.hidden_BH)[:, 0].tolist()
        likelihoods = likelihood.means() if temperature > 0 else [None] * len(rewards)
        columns = output_ids[:, width:].tolist(), rewards, ending.finish_reasons(), reader.inner_rewards(), likelihoods
        step, samples = self.sampling.read_every, []
        for ids, reward, reason, inner, mean in zip(*columns, strict=True):
            critique_ids = ids[: ids.index(end)]
            partial = None if step is None else tuple(inner[: len(critique_ids) // step])
            text = self.critique_format.decode(critique_ids)
            samples.append(Sample(reward, text, tuple(critique_ids), reason, partial, mean))
        return samples


def can_share_prefill(language_model: PreTrainedModel) -> bool:
    """
    Return whether `generate` can continue from an earlier prefill whose rows are repeated. If a model keeps state outside a
    [`~transformers.DynamicCache`], each critique needs its own prefill.
    """
    if "past_key_values" not in inspect.signature(language_model.forward).parameters:
        return False  # Mamba, RWKV and xLSTM name their state differently
    if not language_model._supports_default_dynamic_cache():  # pyright: ignore[reportCallIssue]  # a method
        return False  # MiniMax has its own cache class
    if not language_model._is_stateful:
        return True
    # Hybrid models keep their recurrent states in the cache, except RecurrentGemma, which keeps them in its modules
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in _new_cache(language_model).layers)


def _new_cache(language_model: PreTrainedModel) -> DynamicCache:
    """Create the cache that `generate` would create."""
    return DynamicCache(config=language_model.config.get_text_config(decoder=True))


def row_seed(seed: int, sample: int, prefix_ids: tuple[int, ...]) -> int:
    """Derive a seed from the judged text rather than its position, so that batching, order and sharding do not change a sample."""
    digest = hashlib.blake2b(f"{seed}/{sample}/{prefix_ids}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


class _RewardReader(StoppingCriteria):
    """
    Stopping criterion that keeps the hidden state at each row's end-of-turn token, and ends the row after that token has been fed. It also
    reads the reward at every `read_every`-th token, and detects rows whose last readings agree (`stop_when_stable`).

    All tensors stay on the device: a copy to the host would make the host wait for the device at every step.
    """

    def __init__(self, end_token_id: int, reward_from_hidden: Callable, sampling: Sampling):
        self.end_token_id = end_token_id
        self.reward_from_hidden = reward_from_hidden
        self.read_every, self.stop_when_stable = sampling.read_every, sampling.stop_when_stable
        self.fed = 0  # critique tokens fed so far in each row
        self.inner: list[torch.Tensor] = []  # for each reading, the rewards of all rows, shape (B,)
        self.stable_B: torch.Tensor | None = None
        self.hidden_BH: torch.Tensor | None = None
        self.ended_B: torch.Tensor | None = None

    def read(self, module, args, kwargs, output):
        """Keep the hidden states of rows that end at this step. A forward hook on the decoder, where it sees which tokens are fed."""
        fed_BT = kwargs["input_ids"] if "input_ids" in kwargs else args[0]  # GPT-2 passes the ids positionally
        hidden_BH = output.last_hidden_state[:, -1]
        if self.hidden_BH is None or self.ended_B is None:  # the first call feeds the prefix
            self.hidden_BH = torch.zeros_like(hidden_BH)
            self.ended_B = torch.zeros(len(hidden_BH), dtype=torch.bool, device=hidden_BH.device)
            return
        ends_B = (fed_BT[:, -1] == self.end_token_id).to(hidden_BH.device) & ~self.ended_B
        self.hidden_BH = torch.where(ends_B[:, None], hidden_BH, self.hidden_BH)
        self.ended_B = self.ended_B | ends_B
        self.fed += 1
        self.stable_B = None
        if self.read_every is not None and self.fed % self.read_every == 0:
            self.inner.append(self.reward_from_hidden(hidden_BH)[:, 0])
            if self.stop_when_stable is not None and len(self.inner) >= STABLE_READS:
                last_SB = torch.stack(self.inner[-STABLE_READS:])
                self.stable_B = (last_SB.amax(0) - last_SB.amin(0) < self.stop_when_stable) & ~self.ended()

    def inner_rewards(self) -> list[list[float]]:
        """Return the rewards read at every `read_every`-th token, per row; those after a row's end are meaningless."""
        assert self.ended_B is not None
        return torch.stack(self.inner, 1).tolist() if self.inner else [[]] * len(self.ended_B)

    def __call__(self, input_ids, scores, **kwargs):
        return self.ended().to(input_ids.device)

    def ended(self) -> torch.Tensor:
        """Return which rows have ended. The prefix must have been fed."""
        assert self.ended_B is not None
        return self.ended_B


class _Ends:
    """The tokens that end a critique, and those that must not occur in it."""

    def __init__(self, critique_format: CritiqueFormat, model: Any):
        self.end_token_id = critique_format.end_token_id
        stop_ids = critique_format.stop_ids(model.config, model.generation_config)
        banned_ids = critique_format.banned_ids(model.config)
        # Kept on the device: indexing with a list would copy the list to the device at every step
        self.end_ids = torch.tensor([self.end_token_id, *stop_ids], device=model.device)
        self.never_written = torch.tensor([*stop_ids, *banned_ids], dtype=torch.long, device=model.device)

    def merge(self, scores: torch.Tensor) -> torch.Tensor:
        """Give the end-of-turn token the highest score of all end tokens, and forbid the other end tokens and banned tokens, in place."""
        scores[:, self.end_token_id] = scores.index_select(1, self.end_ids.to(scores.device)).amax(-1)
        return scores.index_fill_(1, self.never_written.to(scores.device), -torch.inf)


class _Likelihood(LogitsProcessor):
    """
    Logits processor that sums the log-probabilities of each row's critique tokens, before temperature is applied. All end tokens count as a
    single token, as in vLLM. The sums stay on the device until generation ends.
    """

    def __init__(self, ends: _Ends):
        self.ends = ends
        self.scores_BV: torch.Tensor | None = None

    def __call__(self, input_ids, scores):
        if self.scores_BV is None:
            self.sum_B = torch.zeros(len(scores), device=scores.device)
            self.count_B = torch.zeros_like(self.sum_B)
            self.open_B = torch.ones_like(self.sum_B, dtype=torch.bool)
        else:  # the token chosen at the previous step
            chosen_B = input_ids[:, -1]
            found_B = self.scores_BV.gather(1, chosen_B[:, None])[:, 0] - self.scores_BV.logsumexp(-1)
            # The end token is followed by one more token, then padding
            self.open_B &= chosen_B != self.ends.end_token_id
            self.sum_B += torch.where(self.open_B, found_B, 0.0)
            self.count_B += self.open_B
        self.scores_BV = self.ends.merge(scores.clone())
        return scores

    def means(self) -> list[float]:
        """Return the mean log-probability of each row; 0.0 for an empty critique."""
        return (self.sum_B / self.count_B.clamp(min=1)).tolist()


# Devices on which each row's noise comes from a torch generator. Elsewhere, that would launch a kernel per row and step
_WITH_GENERATORS = ("cpu",)


class _GumbelSampler(LogitsProcessor):
    """Logits processor that adds each row's own Gumbel noise, so that the arg max is a sample from the softmax at this temperature."""

    def __init__(self, temperature: float, seeds: list[int], reader: _RewardReader, device: torch.device):
        self.temperature = temperature
        self.reader = reader
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.seeds_B = torch.tensor([_signed(seed) for seed in seeds], device=device)
        self.step = 0

    def __call__(self, input_ids, scores):
        if scores.device.type in _WITH_GENERATORS:
            noise = self._noise_of_generators(scores.shape)
        else:
            noise = exponential_noise(self.seeds_B.to(scores.device), self.step, scores.shape[1])
        self.step += 1
        return scores / self.temperature - noise.log()  # minus the log of exponential noise is Gumbel noise

    def _noise_of_generators(self, shape: torch.Size) -> torch.Tensor:
        noise = torch.ones(shape)
        for row, (generator, ended) in enumerate(zip(self.generators, self.reader.ended().tolist(), strict=True)):
            if not ended:
                noise[row].exponential_(generator=generator)
        return noise


def exponential_noise(seeds_B: torch.Tensor, step: int, size: int) -> torch.Tensor:
    """
    Sample exponential noise of shape `(B, size)` for all rows at once, on the device of `seeds_B` (int64). Each value depends only on its
    row's seed, the step and its column: it is an output of SplitMix64 (doi 10.1145/2660193.2660195), a generator that can start at any
    position of its sequence.
    """
    keys_B = _split_mix(seeds_B + _signed((step + 1) * _GOLDEN))
    columns = torch.arange(1, size + 1, device=seeds_B.device) * _signed(_GOLDEN)
    bits = _split_mix(keys_B[:, None] + columns)
    # Use 53 bits, and do not round them before this conversion to float: the largest Gumbel noise comes from the smallest numbers
    uniform = (bits >> 11 & 2**53 - 1).float() * 2.0**-53
    return -torch.log1p(-uniform.clamp(2.0**-54, 1 - 2.0**-24))


_GOLDEN = 0x9E3779B97F4A7C15


def _split_mix(z: torch.Tensor) -> torch.Tensor:
    """Scramble 64-bit integers. Products wrap around; the masks make right shifts fill with zeros."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ (z >> shift & 2 ** (64 - shift) - 1)) * _signed(factor)
    return z ^ (z >> 31 & 2**33 - 1)


def _signed(number: int) -> int:
    """Return the low 64 bits of a number as a signed integer."""
    return (number + 2**63) % 2**64 - 2**63


class _EndOfCritique(LogitsProcessor):
    """Turns any stop token into the end of turn, and forces the end of turn when the token budget is used up or the reward is stable."""

    def __init__(self, ends: _Ends, last_width: int, reader: _RewardReader):
        self.ends = ends
        self.last_width = last_width
        self.reader = reader
        self.cut_B: torch.Tensor | None = None
        self.settled_B: torch.Tensor | None = None

    def __call__(self, input_ids, scores):
        scores = self.ends.merge(scores)
        if self.reader.stable_B is not None:
            stable_B = self.reader.stable_B.to(scores.device)
            settled_B = stable_B & (scores.argmax(-1) != self.ends.end_token_id)
            self.settled_B = settled_B if self.settled_B is None else self.settled_B | settled_B
            scores.masked_fill_(stable_B[:, None], -torch.inf)
            scores[:, self.ends.end_token_id].masked_fill_(stable_B, 0.0)
        if input_ids.shape[1] == self.last_width:
            self.cut_B = ~self.reader.ended().to(scores.device) & (scores.argmax(-1) != self.ends.end_token_id)
            scores.fill_(-torch.inf)
            scores[:, self.ends.end_token_id] = 0.0
        return scores

    def finish_reasons(self) -> list[str]:
        reasons = ["stop"] * len(self.reader.ended())
        for reason, rows_B in (("length", self.cut_B), ("stable", self.settled_B)):
            for row in [] if rows_B is None else rows_B.nonzero()[:, 0].tolist():
                reasons[row] = reason
        return reasons
