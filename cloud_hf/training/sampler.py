"""Samplers that fill batches up to a token budget and keep the pairs of one row together."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import Sampler

from .collator import DataCollatorForCLoud
from .encoding import SIDES


@dataclass(frozen=True)
class PairGroup:
    """
    Indices of pairs that stay in one batch because they share a prompt; `tokens` is the padded size of a batch that
    contains only these pairs.
    """

    pairs: tuple[int, ...]
    tokens: int


def group_pairs(
    dataset: Dataset, collator: DataCollatorForCLoud, max_pairs: int, token_budget: int | None = None
) -> list[PairGroup]:
    """
    Group the pairs of an encoded dataset, in dataset order. The pairs of one row form a group if the collator shares prompts and the pairs
    fit within `max_pairs` and `token_budget`; otherwise, each pair is its own group.

    Raises:
        `ValueError`: If a single pair exceeds the budget.
    """
    groups = []
    for pairs in _rows(dataset, max_pairs if collator.shared_prompt else 1):
        tokens = collator.num_tokens([example for _, example in pairs])
        if token_budget is None or tokens <= token_budget:
            groups.append(PairGroup(tuple(index for index, _ in pairs), tokens))
            continue
        for index, example in pairs:
            tokens = collator.num_tokens([example])
            if tokens > token_budget:
                raise ValueError(
                    f"The train dataset, pair {index}: its two sequences have {tokens} tokens, but `token_budget` is "
                    f"{token_budget}. Raise `token_budget`, or lower `max_length`."
                )
            groups.append(PairGroup((index,), tokens))
    return groups


def _rows(dataset: Any, max_pairs: int) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    """
    Yield the pairs of each row (consecutive pairs with the same prompt and responses) with their indices, at most
    `max_pairs` at a time.
    """

    def prefixes(pair: tuple[int, dict[str, Any]]) -> list[list[int]]:
        return [pair[1][f"{side}_ids"][: pair[1][f"{side}_prefix_length"]] for side in SIDES]

    for _, row in groupby(enumerate(dataset), key=prefixes):
        while pairs := list(islice(row, max_pairs)):
            yield pairs


class _SeededSampler(Sampler):
    """Sampler whose order depends only on its seed and the epoch."""

    def __init__(self, seed: int):
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int):
        """Select the epoch whose order the sampler uses."""
        self.epoch = epoch

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed + self.epoch)


class TokenBudgetSampler(_SeededSampler):
    """
    Sampler of batches whose pairs have about the same length. Each batch has at most `token_budget` tokens and
    `max_pairs` pairs.

    Batches come in rounds of `num_processes`, one per process, with the same number of pairs in all batches of a
    round. Seed and epoch determine which pairs share a batch and the order of the rounds, but not the number of
    rounds, so all epochs have the same number of steps. This works because lengths are rounded up by at most a
    sixteenth, and only pairs with the same rounded length trade places.

    If the shortest pairs do not fill a round, one of them is repeated to fill it. With `drop_last`, they are dropped
    instead, and `ValueError` is raised if no pair is left.

    Examples:

    ```python
    >>> groups = [PairGroup((0,), 100), PairGroup((1,), 40), PairGroup((2,), 50)]
    >>> sorted(TokenBudgetSampler(groups, token_budget=100, max_pairs=8, padded=False))
    [[0], [2, 1]]
    ```
    """

    def __init__(
        self, groups: list[PairGroup], token_budget: int, max_pairs: int, padded: bool,
        num_processes: int = 1, seed: int = 0, drop_last: bool = False,
    ):  # fmt: skip
        super().__init__(seed)
        self.token_budget, self.max_pairs, self.padded = token_budget, max_pairs, padded
        self.num_processes = num_processes
        # `alike` maps each key (number of pairs, rounded length) to its groups, and `turns` has the keys of the groups
        # in each batch. An epoch may choose any groups with these keys, so batches stay within the budget in every
        # epoch
        self.alike: dict[tuple[int, int], list[PairGroup]] = defaultdict(list)
        self.turns: list[list[list[tuple[int, int]]]] = []
        for members in self._by_size(groups, drop_last):
            self._plan_turns(members)
        if not self.turns:
            raise ValueError(
                f"The train dataset has {len(groups)} pairs for {num_processes} processes, and `dataloader_drop_last` "
                "drops them all."
            )

    def _by_size(self, groups: list[PairGroup], drop_last: bool) -> Iterator[list[PairGroup]]:
        """
        Yield lists of groups with the same number of pairs, longest first. The length of each list is a multiple of
        the number of processes.
        """
        # Size 1 always exists and comes last, since groups of larger sizes may be split into it
        by_size: dict[int, list[PairGroup]] = defaultdict(list, {1: []})
        for group in groups:
            by_size[len(group.pairs)].append(group)
        for size in sorted(by_size, reverse=True):
            members = sorted(by_size[size], key=lambda group: group.tokens, reverse=True)
            left = len(members) % self.num_processes
            if left and size > 1:  # all processes need the same number of groups, so split those left over
                members, rest = members[:-left], members[-left:]
                by_size[1] += [PairGroup((pair,), group.tokens) for group in rest for pair in group.pairs]
            elif left and drop_last:
                members = members[:-left]
            elif left:
                members += [members[-1]] * (self.num_processes - left)
            yield members

    def _plan_turns(self, members: list[PairGroup]):
        """
        Divide groups of the same size into rounds, each with as many groups as the limits allow. In a round, process `i`
        gets every `num_processes`-th group, starting with group `i`.
        """
        keys = [(len(group.pairs), self._rounded(group.tokens)) for group in members]
        for key, group in zip(keys, members, strict=True):
            self.alike[key].append(group)
        step, start = self.num_processes, 0
        while start < len(keys):
            end = start + step
            # The first process has the longest group of each stride, so if its batch fits, all do
            while end < len(keys) and self._fits(keys[start : end + step : step]):
                end += step
            self.turns.append([keys[first:end:step] for first in range(start, start + step)])
            start = end

    def _rounded(self, tokens: int) -> int:
        # Round to five significant bits: coarse enough to make groups of similar length interchangeable, but fine enough to fill batches
        unit = 2 ** max(0, tokens.bit_length() - 5)
        return min(-(-tokens // unit) * unit, self.token_budget)

    def _fits(self, batch: list[tuple[int, int]]) -> bool:
        tokens = [tokens for _, tokens in batch]
        taken = len(tokens) * max(tokens) if self.padded else sum(tokens)
        return taken <= self.token_budget and sum(size for size, _ in batch) <= self.max_pairs

    def __iter__(self) -> Iterator[list[int]]:
        generator = self._generator()
        drawn = {key: iter(_shuffled(groups, generator)) for key, groups in self.alike.items()}
        turns = [[[next(drawn[key]) for key in batch] for batch in turn] for turn in self.turns]
        for turn in _shuffled(turns, generator):
            for batch in turn:
                yield [pair for group in batch for pair in group.pairs]

    def __len__(self) -> int:
        return len(self.turns) * self.num_processes


class GroupSampler(_SeededSampler):
    """Sampler that draws pairs in random order but keeps the pairs of a group together."""

    def __init__(self, groups: list[PairGroup], seed: int = 0):
        super().__init__(seed)
        self.groups = groups

    def __iter__(self) -> Iterator[int]:
        for group in _shuffled(self.groups, self._generator()):
            yield from group.pairs

    def __len__(self) -> int:
        return sum(len(group.pairs) for group in self.groups)


def _shuffled(items: list, generator: torch.Generator) -> list:
    return [items[index] for index in torch.randperm(len(items), generator=generator).tolist()]
