"""Collate encoded pairs into padded or concatenated batches."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from trl.trainer.reward_trainer import DataCollatorForPreference
from trl.trainer.utils import pad

from ..critique_format import IGNORE_INDEX
from ..modeling_cloud import labelled
from .encoding import SIDES
from .packing import Packing, TokenSequence


@dataclass
class DataCollatorForCLoud(DataCollatorForPreference):
    """
    Pads pairs as [`~trl.trainer.reward_trainer.DataCollatorForPreference`] does (all chosen first, then all rejected),
    and adds the labels for the critique LM loss.

    Examples must have `chosen_ids`, `rejected_ids`, `chosen_prefix_length` and `rejected_prefix_length`, as returned by [`encode_pairs`].
    The returned dictionary has `input_ids` and `attention_mask` of shape `(2 * pairs, T)`, and `reward_positions` of shape `(2 * pairs,)`.
    If `critique` is set, it also has `labels` of shape `(2 * pairs, T)`, and `target_positions`. If the examples have `margin` or `cut`
    (how many of the pair's critiques were truncated during generation), the dictionary also has them, with shape `(pairs,)`.

    With `padding_free` or `shared_prompt`, the sequences are concatenated into one row. The dictionary then has the tensors
    of [`Packing.tensors`] instead, with `reward_positions` in the same order: all chosen, then all rejected.

    Args:
        critique (`bool`, *optional*, defaults to `True`):
            Whether to return labels. Classic models need none, because they write no critiques.
        padding_free (`bool`, *optional*, defaults to `False`):
            Whether to flatten the batch.
        shared_prompt (`bool`, *optional*, defaults to `False`):
            Whether to flatten the batch and keep only one copy of each prefix that several sequences share.
        inner_rewards (`int`, *optional*, defaults to `0`):
            Number of tokens inside each critique at which the reward is read, in addition to the end. Adds
            `inner_positions` of shape `(2 * pairs, inner_rewards)`.
        seed (`int`, *optional*, defaults to `0`):
            Seed for choosing these tokens. Apart from the seed, the choice depends only on the pair.
    """

    critique: bool = True
    padding_free: bool = False
    shared_prompt: bool = False
    inner_rewards: int = 0
    seed: int = 0

    @property
    def flattens(self) -> bool:
        """Return whether each batch is a single row without padding."""
        return self.padding_free or self.shared_prompt

    def num_tokens(self, examples: list[dict[str, Any]]) -> int:
        """Count the tokens, including padding, in the batch that `examples` form."""
        if self.flattens:
            return Packing(_sequences(examples), self.shared_prompt).num_tokens
        multiple = self.pad_to_multiple_of or 1
        longest = max(len(example[f"{side}_ids"]) for example in examples for side in SIDES)
        return 2 * len(examples) * -(-longest // multiple) * multiple

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        if self.flattens:
            batch = Packing(_sequences(examples), self.shared_prompt).tensors(self.critique)
            if "margin" in examples[0]:
                batch["margin"] = torch.tensor([example["margin"] for example in examples], dtype=torch.float)
        else:
            batch = super().torch_call(examples)
            batch["reward_positions"] = batch["attention_mask"].sum(-1) - 1
            if self.critique:
                # Unshifted, because the model shifts labels itself. Padding has no label
                batch["labels"] = pad(
                    [sequence.labels() for sequence in _sequences(examples)],
                    padding_value=IGNORE_INDEX,
                    padding_side="right",
                    pad_to_multiple_of=self.pad_to_multiple_of,
                )
        if self.critique:
            # Computed here on the CPU, because on a GPU, the host would have to wait to learn the number of labels
            batch["target_positions"] = labelled(batch["labels"][:, 1:])
        if self.inner_rewards:
            before_BR = np.concatenate([self._before_the_end(examples, side) for side in SIDES])
            batch["inner_positions"] = batch["reward_positions"][:, None] - torch.from_numpy(before_BR)
        if "cut" in examples[0]:
            batch["cut"] = torch.tensor([example["cut"] for example in examples])
        return batch

    def _before_the_end(self, examples: list[dict[str, Any]], side: str) -> np.ndarray:
        """
        Return the positions inside each critique at which the reward is read, as numbers of tokens before the end of
        turn. On both sides of a pair, it is read at the same relative positions.
        """
        lengths = np.array(
            [len(example[f"{side}_ids"]) - example[f"{side}_prefix_length"] - 1 for example in examples]
        )
        fractions_PR = np.stack([_inner_fractions(example, self.inner_rewards, self.seed) for example in examples])
        # Read the reward after at least one critique token, and no later than the end of the critique
        tokens_PR = np.ceil(fractions_PR * lengths[:, None]).astype(int).clip(1)
        return (lengths[:, None] + 1 - tokens_PR).clip(0)


def _inner_fractions(example: dict[str, Any], count: int, seed: int) -> np.ndarray:
    """
    Sample a relative position from each of `count` equal parts of a critique. The generator is seeded with `seed` and
    the token ids of both sides, so the result does not depend on the order or sharding of the rows.
    """
    ids = tuple(tuple(example[f"{side}_ids"]) for side in SIDES)
    digest = hashlib.blake2b(f"{seed}/{ids}".encode(), digest_size=8).digest()
    generator = np.random.default_rng(int.from_bytes(digest, "big"))
    return (np.arange(count) + generator.random(count)) / count


def _sequences(examples: list[dict[str, Any]]) -> list[TokenSequence]:
    """Return all chosen sequences, then all rejected ones."""
    return [
        TokenSequence(np.asarray(example[f"{side}_ids"]), example[f"{side}_prefix_length"])
        for side in SIDES
        for example in examples
    ]
