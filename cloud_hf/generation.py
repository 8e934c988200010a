"""Critiques and rewards with transformers, in one pass over one KV cache.

The critique is written by `generate`, and the reward is read in that same pass: when a row's end of turn is fed, a hook
keeps the hidden state. There is no second prefill, and no text is tokenised again. (Where a format reads the reward from
the critique's text, as [`ReferenceFormat`], that is a second pass: see `rereads_critiques`.)
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from .critique_format import CritiqueFormat, EncodedCritique, EncodedPrefix


@dataclass(frozen=True)
class Sample:
    """One critique and its reward."""

    reward: float
    critique: str = ""
    critique_ids: tuple[int, ...] = ()
    finish_reason: str = "stop"


# ------------------------------------------------------------------------------------------------- given sequences


def read_rewards(model, rows: list[EncodedCritique], batch_size: int, show_progress: bool) -> list[float]:
    """Rewards of whole sequences, by one forward pass each."""
    rewards = [0.0] * len(rows)
    for batch in _batches([len(row.input_ids) for row in rows], batch_size, show_progress):
        inputs = _left_padded([rows[index].input_ids for index in batch], model.device)
        for index, reward in zip(batch, model(**inputs, use_cache=False).logits[:, 0].tolist(), strict=True):
            rewards[index] = reward
    return rewards


def _left_padded(sequences: list[tuple[int, ...]], device: torch.device) -> dict[str, torch.Tensor]:
    """
    Pads are masked. They repeat the row's first token, so that a repetition penalty, which looks at ids, sees no token
    there that the row does not hold.
    """
    width = max(map(len, sequences))
    pads = [width - len(sequence) for sequence in sequences]
    return {
        "input_ids": torch.tensor([[ids[0]] * pad + list(ids) for pad, ids in zip(pads, sequences, strict=True)]).to(
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
class CritiqueWriter:
    """Writes critiques and reads their rewards in the same pass."""

    model: Any
    critique_format: CritiqueFormat
    temperature: float
    max_new_tokens: int
    batch_size: int
    show_progress: bool

    def write(self, prefixes: list[EncodedPrefix], num_critiques: int, seed: int | None) -> list[list[Sample]]:
        """`num_critiques` samples for each prefix."""
        if seed is None:
            seed = int(torch.randint(2**31, ()))  # follows torch.manual_seed
        jobs = [(row, sample) for row in range(len(prefixes)) for sample in range(num_critiques)]
        samples: list[dict[int, Sample]] = [{} for _ in prefixes]
        for batch in _batches([len(prefixes[row].input_ids) for row, _ in jobs], self.batch_size, self.show_progress):
            batch_jobs = [jobs[index] for index in batch]
            ids = [prefixes[row].input_ids for row, _ in batch_jobs]
            seeds = [row_seed(seed, sample, prefixes[row].input_ids) for row, sample in batch_jobs]
            for (row, sample), result in zip(batch_jobs, self._write_batch(ids, seeds), strict=True):
                samples[row][sample] = result
        return [[row[sample] for sample in range(num_critiques)] for row in samples]

    def _write_batch(self, prefixes: list[tuple[int, ...]], seeds: list[int]) -> list[Sample]:
        inputs = _left_padded(prefixes, self.model.device)
        width = inputs["input_ids"].shape[1]
        end = self.critique_format.end_token_id
        sampler = _GumbelSampler(self.temperature, seeds, end, width)
        stop_ids, banned_ids = (
            find(self.model.config) for find in (self.critique_format.stop_ids, self.critique_format.banned_ids)
        )
        ending = _EndOfCritique(end, stop_ids, banned_ids, width, self.max_new_tokens)
        reader = _RewardReader(end, len(prefixes))
        hook = self.model.trunk.register_forward_hook(reader.read, with_kwargs=True)
        try:
            # The language model inside a reward model has a neutral generation config
            output_ids = self.model.language_model.generate(
                **inputs,
                logits_processor=LogitsProcessorList([sampler, ending]),
                stopping_criteria=StoppingCriteriaList([reader]),
                max_new_tokens=self.max_new_tokens + 2,  # the end token, and the step that feeds it
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
        rewards = self.model.reward_from_hidden(torch.stack(reader.hidden_states))[:, 0].tolist()
        samples = []
        for ids, reward, cut in zip(output_ids[:, width:].tolist(), rewards, ending.cut.tolist(), strict=True):
            critique_ids = ids[: ids.index(end)]
            text = self.critique_format.decode(critique_ids)
            samples.append(Sample(reward, text, tuple(critique_ids), "length" if cut else "stop"))
        return samples


def row_seed(seed: int, sample: int, prefix_ids: tuple[int, ...]) -> int:
    """A seed that depends on the text judged, not on its place: batches, order and shards do not change a sample."""
    digest = hashlib.blake2b(f"{seed}/{sample}/{prefix_ids}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


class _GumbelSampler(LogitsProcessor):
    """Adds each row's own Gumbel noise, so that the arg max is a sample of the softmax at this temperature."""

    def __init__(self, temperature: float, seeds: list[int], end_token_id: int, prefix_width: int):
        self.temperature = temperature
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.end_token_id = end_token_id
        self.prefix_width = prefix_width

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if self.temperature == 0:
            return scores
        exponential = torch.ones(scores.shape)
        ended = (input_ids[:, self.prefix_width :] == self.end_token_id).any(-1).tolist()
        for row, generator in enumerate(self.generators):
            if not ended[row]:
                exponential[row].exponential_(generator=generator)
        return scores / self.temperature - exponential.log().to(scores.device)


class _EndOfCritique(LogitsProcessor):
    """Lets any stop token close the critique with the end of turn, and closes it when the budget is spent."""

    def __init__(
        self, end_token_id: int, stop_ids: list[int], banned_ids: list[int], prefix_width: int, max_new_tokens: int
    ):
        self.end_token_id = end_token_id
        self.stop_ids = stop_ids
        self.banned_ids = banned_ids
        self.prefix_width = prefix_width
        self.last_width = prefix_width + max_new_tokens
        self.cut = torch.zeros(0, dtype=torch.bool)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if self.stop_ids:
            best = scores[:, [self.end_token_id, *self.stop_ids]].amax(-1)
            scores[:, self.stop_ids] = -torch.inf
            scores[:, self.end_token_id] = best
        scores[:, self.banned_ids] = -torch.inf
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
