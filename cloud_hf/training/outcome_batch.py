"""Build batches from rows and the critiques sampled for them, and split the model's output by pair and critique.

Shape suffixes: N pairs, K critiques of each response, S sequences per side (first the N x K written critiques, then the dataset's
critiques), P labelled tokens. A dimension of size 2 stands for the two sides, chosen and rejected.
"""

from dataclasses import dataclass
from typing import Any

import torch

from ..critique_format import EncodedPrefix
from ..generation import Sample
from .encoding import SIDES


def prefix_of(row: dict[str, Any], side: str) -> EncodedPrefix:
    """For one side of a row from [`encode_pairs`], return the encoded prompt and response that precede the critique."""
    return EncodedPrefix(tuple(row[f"{side}_ids"][: row[f"{side}_prefix_length"]]), False, "", "")


def with_critiques(row: dict[str, Any], chosen: Sample, rejected: Sample, end_token_id: int) -> dict[str, Any]:
    """Return a copy of a row with these critiques in place of its own."""
    samples = zip(SIDES, (chosen, rejected), strict=True)
    ids = {f"{side}_ids": [*prefix_of(row, side).input_ids, *s.critique_ids, end_token_id] for side, s in samples}
    return {**row, **ids}


@dataclass
class WrittenCritiques:
    """
    Written critiques of N pairs and the model's output for them.

    `output` (a [`~modeling_cloud.CLoudOutput`]) covers the chosen responses first and then the rejected ones. For each side, it has the
    written critiques, pair by pair, followed by the dataset's critiques if they serve as an anchor.
    """

    output: Any
    # If a critique was cut off, its end-of-turn token was not sampled, so it is not an action of the policy
    was_cut_2NK: torch.Tensor

    def __post_init__(self):
        self.losses_P, sequences = self.output.token_losses, self.output.token_sequences
        self.sequences_P = sequences
        self.num_written = self.was_cut_2NK[0].numel()
        self.num_sequences = len(self.output.logits) // 2
        side_P, place_P = sequences // self.num_sequences, sequences % self.num_sequences
        self.is_written_P = place_P < self.num_written
        # The tokens of a sequence are contiguous, so a token is the last of its sequence if the next token has a different
        # sequence number
        is_last_P = torch.ones_like(self.is_written_P)
        is_last_P[:-1] = sequences[1:] != sequences[:-1]
        was_cut_P = self.was_cut_2NK.flatten(1)[side_P, place_P.clamp(max=self.num_written - 1)]
        self.is_sampled_P = self.is_written_P & ~(is_last_P & was_cut_P)

    @property
    def rewards_2NK(self) -> torch.Tensor:
        """Rewards at the end of the written critiques."""
        return self._written(self.output.logits[:, 0])

    @property
    def logprobs_2NK(self) -> torch.Tensor:
        """Log-probabilities of the written critiques."""
        return -self.sums(self.losses_P)

    @property
    def lengths_2NK(self) -> torch.Tensor:
        """Number of tokens sampled for each critique, including the end-of-turn token unless the critique was cut off."""
        return self.sums(torch.ones_like(self.losses_P))

    @property
    def anchor_loss(self) -> torch.Tensor:
        """Summed cross-entropy of the dataset's critiques."""
        return self.losses_P[~self.is_written_P].sum()

    def kl_2NK(self, reference_P: torch.Tensor) -> torch.Tensor:
        """
        Estimate the KL divergence from the reference model, in nats per critique, as TRL's GRPO does. `reference_P` contains the
        reference model's cross-entropies.
        """
        # The estimator k3 of http://joschu.net/blog/kl-approx.html: it is unbiased, never negative, and has low
        # variance
        log_ratio_P = self.losses_P - reference_P
        return self.sums(log_ratio_P.exp() - log_ratio_P - 1)

    def sums(self, values_P: torch.Tensor) -> torch.Tensor:
        """Sum the values over the sampled tokens of each written critique."""
        sums = values_P.new_zeros(2 * self.num_sequences)
        return self._written(sums.index_add(0, self.sequences_P, values_P * self.is_sampled_P))

    def of_anchors(self, values: torch.Tensor) -> torch.Tensor:
        """Sum a per-sequence value over the dataset's critiques of each pair. The result has shape `(N,)`, or `(0,)` without an anchor."""
        return values.unflatten(0, (2, -1))[:, self.num_written :].sum(0)

    def _written(self, values: torch.Tensor) -> torch.Tensor:
        return values.unflatten(0, (2, -1))[:, : self.num_written].reshape(self.was_cut_2NK.shape)
