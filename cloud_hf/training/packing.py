"""Pack sequences of any length into one row without padding, storing shared prefixes only once.

Shape suffixes: B sequences, S segments, N tokens in the row.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..critique_format import IGNORE_INDEX


# Shorter prefixes are not shared but computed for each sequence, because another segment would cost more in attention
# calls than it saves
MIN_SHARED_TOKENS = 32


@dataclass(frozen=True)
class TokenSequence:
    """
    Token ids of shape `(T,)`, with the critique starting at index `prefix_length`.

    All tokens of the prefix except the last can be shared. Each sequence keeps its own last prefix token, because this token
    predicts the critique's first token, and because a classic model's reward is read there.
    """

    ids: np.ndarray
    prefix_length: int

    def labels(self) -> torch.Tensor:
        """Return the unshifted labels for the critique LM loss. Only critique tokens have labels."""
        labels = torch.tensor(self.ids, dtype=torch.long)
        labels[: self.prefix_length] = IGNORE_INDEX
        return labels


@dataclass(frozen=True)
class Segment:
    """Tokens `start` to `end` of a sequence. They continue the segment with the index `parent` (-1 for a root)."""

    sequence: int
    start: int
    end: int
    parent: int

    def __len__(self) -> int:
        return self.end - self.start


@dataclass
class Packing:
    """
    Layout of sequences in one row: a tree of segments in which each leaf is the end of one sequence. With `shared_prompt`,
    a prefix that several sequences share is stored once.

    Examples:

    ```python
    >>> packing = Packing([TokenSequence(np.arange(50), 48), TokenSequence(np.arange(60), 48)], shared_prompt=True)
    >>> [len(segment) for segment in packing.segments], packing.num_tokens
    ([47, 3, 13], 63)
    ```
    """

    sequences: list[TokenSequence]
    shared_prompt: bool
    segments: list[Segment] = field(default_factory=list, init=False)
    leaves: dict[int, int] = field(default_factory=dict, init=False)

    def __post_init__(self):
        self._add(list(range(len(self.sequences))), 0, -1)

    @property
    def num_tokens(self) -> int:
        """Return N, the number of tokens to compute."""
        return sum(map(len, self.segments))

    # Recursive, because a group of sequences that share a prefix may contain smaller groups that share a longer one (such as the critiques
    # of one response)
    def _add(self, members: list[int], start: int, parent: int):
        """Add the segments below `parent` for sequences that share their first `start` tokens."""
        for group in self._groups(members, start):
            segment = len(self.segments)
            if len(group) == 1:
                self.leaves[group[0]] = segment
                self.segments.append(Segment(group[0], start, len(self.sequences[group[0]].ids), parent))
            else:
                end = self._common_length(group)
                self.segments.append(Segment(group[0], start, end, parent))
                self._add(group, end, segment)

    def _groups(self, members: list[int], start: int) -> list[list[int]]:
        """Group the members by their next `MIN_SHARED_TOKENS` tokens; a member that is too short to share them gets its own group."""
        if not self.shared_prompt:
            return [[member] for member in members]
        groups: dict[bytes | int, list[int]] = defaultdict(list)
        for member in members:
            end = start + MIN_SHARED_TOKENS
            is_short = end > self._shareable(member)
            groups[member if is_short else self.sequences[member].ids[start:end].tobytes()].append(member)
        return list(groups.values())

    def _common_length(self, group: list[int]) -> int:
        shortest = min(map(self._shareable, group))
        table = np.stack([self.sequences[member].ids[:shortest] for member in group])
        differ = (table != table[0]).any(0)
        return int(differ.argmax()) if differ.any() else shortest

    def _shareable(self, member: int) -> int:
        return self.sequences[member].prefix_length - 1  # so that every sequence ends in its own leaf

    def tensors(self, labels: bool) -> dict[str, Any]:
        """
        Build the batch for [`CLoudForRewardModeling`]. `reward_positions` has shape `(B,)`. `input_ids`, `position_ids`,
        `attention_mask` (all ones) and, if requested, `labels` have shape `(1, N)`. `segments` has shape `(S, 2)`: the
        length and the parent of each segment. It consists of tuples rather than a tensor, so that it stays on the host,
        where it is read, when the tensors are moved to the GPU.
        """
        ends = np.cumsum([len(segment) for segment in self.segments])
        ids = np.concatenate([self.sequences[s.sequence].ids[s.start : s.end] for s in self.segments])
        # `reward_positions` comes first, because the Trainer uses the length of the first tensor as the batch size
        batch: dict[str, Any] = {
            "reward_positions": torch.tensor([ends[self.leaves[i]] - 1 for i in range(len(self.sequences))])
        }
        batch["input_ids"] = torch.from_numpy(ids)[None].long()
        # Each segment's positions continue from its parent's end, as if the sequences were separate
        batch["position_ids"] = torch.cat([torch.arange(s.start, s.end) for s in self.segments])[None]
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        if labels:
            # Shared segments have no labels, because they end before the critique
            parts = [self.sequences[s.sequence].labels()[s.start : s.end] for s in self.segments]
            batch["labels"] = torch.cat(parts)[None]
        batch["segments"] = tuple((len(segment), segment.parent) for segment in self.segments)
        return batch
