"""Batches of encoded pairs."""

from dataclasses import dataclass
from typing import Any

import torch
from trl.trainer.reward_trainer import DataCollatorForPreference
from trl.trainer.utils import pad

from ..critique_format import IGNORE_INDEX


@dataclass
class DataCollatorForCLoud(DataCollatorForPreference):
    """
    Pads pairs as [`~trl.trainer.reward_trainer.DataCollatorForPreference`] does (all chosen first, then all rejected),
    and adds the labels of the critique LM loss.

    Examples must have `chosen_ids`, `rejected_ids`, `chosen_prefix_length` and `rejected_prefix_length`, as
    [`encode_pairs`] makes them. The returned dictionary has `input_ids`, `attention_mask` and, if `critique` is set,
    `labels`, all of shape `(2 * pairs, T)`, and where the examples have them `margin` and `cut` (critiques of the pair
    that were cut at the token budget), of shape `(pairs,)`.

    Args:
        critique (`bool`, *optional*, defaults to `True`):
            Whether to return labels. A classic model has nothing to write.
    """

    critique: bool = True

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        if self.critique:
            labels = [_labels(example, side) for side in ("chosen", "rejected") for example in examples]
            batch["labels"] = pad(
                labels, padding_value=IGNORE_INDEX, padding_side="right", pad_to_multiple_of=self.pad_to_multiple_of
            )
        if "cut" in examples[0]:
            batch["cut"] = torch.tensor([example["cut"] for example in examples])
        return batch


def _labels(example: dict[str, Any], side: str) -> torch.Tensor:
    labels = torch.tensor(example[f"{side}_ids"])
    labels[: example[f"{side}_prefix_length"]] = IGNORE_INDEX
    return labels
