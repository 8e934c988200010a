"""Successive halving on recorded candidates, compared with full best-of-N on the same problems."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..halving import run_halving
from .candidates import ScoredSet
from .compute import is_estimated
from .ensembles import check_different, read_members
from .metrics.best_of_n import expected_best_of
from .stats import Estimate, json_safe, mean_estimate


@dataclass(frozen=True)
class Halving:
    """Best-of-N by successive halving with the critiques of `model`. The model `cheap`, if given, first drops half of the candidates."""

    model: str
    cheap: str | None = None

    @property
    def name(self) -> str:
        """The halving's name in reports."""
        return f"halving({','.join(filter(None, [self.cheap, self.model]))})"


@dataclass(frozen=True)
class HalvingResult:
    """
    Successive halving compared with full best-of-N, averaged over a model's seeds and a set's problems. Halving breaks ties at random,
    averaged over several orders; the full choice is the expectation over ties.
    """

    name: str  # name of the halving
    title: str  # title of the set
    num_critiques: int  # maximum per candidate
    worth: Estimate  # value of the candidate that halving chooses when it starts with all candidates
    full_worth: Estimate  # value of the candidate chosen with all critiques of all candidates
    difference: Estimate  # `worth` minus `full_worth`
    tokens: Estimate  # critique tokens that halving spends per problem
    full_tokens: Estimate  # tokens of all critiques per problem
    is_share: bool  # whether values are shares from 0 to 1, which are shown in percent
    has_estimated_tokens: bool = False  # see `compute.is_estimated`

    @property
    def share(self) -> float:
        """Tokens that halving spends, as a share of the tokens that full best-of-N spends."""
        return self.tokens.value / self.full_tokens.value

    def summary(self) -> dict[str, Any]:
        """Return the result in JSON form."""
        return {**json_safe(self), "share_of_tokens": self.share}


def halve_recorded(
    rewards: Sequence[Sequence[Sequence[float]]],
    tokens: Sequence[Sequence[Sequence[int]]],
    cheap_rewards: Sequence[Sequence[float]] | None = None,
) -> tuple[list[int], list[int]]:
    """
    Choose candidates by halving on recorded critiques. Returns the index of each problem's choice, and the tokens spent on each problem.

    `rewards` and `tokens` are indexed by problem, candidate and critique, with the same number of critiques for each candidate.
    `cheap_rewards` contains the cheap model's rewards by problem and candidate.

    Examples:

    ```python
    >>> halve_recorded([[[1.0, 1.0], [0.0, 9.0]]], [[[10, 11], [20, 22]]])  # the first critiques rule out the second candidate
    ([0], [30])
    ```
    """

    def ask(written: int, more: int, picks: list[tuple[int, int]]) -> list[Sequence[float]]:
        return [rewards[problem][place][written : written + more] for problem, place in picks]

    judged = run_halving(list(map(len, rewards)), len(rewards[0][0]), ask, cheap_rewards)
    spent = [
        sum(sum(of_candidate[: len(done)]) for of_candidate, done in zip(row, one.rewards, strict=True))
        for row, one in zip(tokens, judged, strict=True)
    ]
    return [one.contenders[0] for one in judged], spent


def compare_halving(
    halving: Halving, found: ScoredSet, tokens: Sequence[Sequence[Sequence[Sequence[int]]]]
) -> HalvingResult:
    """
    Compare halving with full best-of-N on a set, averaged over seeds and, for halving, over several orders of each problem's candidates.
    `tokens` is indexed by seed, problem, candidate and critique.
    """
    worth_of = [problem.worth or () for problem in found.problems]
    orders = _orders(list(map(len, worth_of)))
    turns = [(problem, order) for problem, of_problem in enumerate(orders) for order in of_problem]
    problems = [problem for problem, _ in turns]

    def reordered(rows: Sequence[Sequence]) -> list[list]:
        return [[rows[problem][place] for place in order] for problem, order in turns]

    columns = []
    for seed, (of_seed, counts) in enumerate(zip(found.scores[halving.model], tokens, strict=True)):
        rewards = [[score.rewards for score in row] for row in of_seed]
        cheap = None
        if halving.cheap is not None:
            others = found.rewards(halving.cheap)
            cheap = reordered(others[seed % len(others)])  # a classic model has only one seed
        choices, costs = halve_recorded(reordered(rewards), reordered(counts), cheap)
        values = [row[place] for row, place in zip(reordered(worth_of), choices, strict=True)]
        ours, spent = (np.bincount(problems, column) / np.bincount(problems) for column in (values, costs))
        whole = ([score.reward for score in row] for row in of_seed)
        theirs = np.array(list(map(expected_best_of, whole, worth_of)))
        full = [sum(map(sum, row)) for row in counts]
        columns.append([ours, theirs, ours - theirs, spent, full])
    halved, whole, difference, spent, full = (mean_estimate(column.tolist()) for column in np.mean(columns, axis=0))
    count = len(found.scores[halving.model][0][0][0].rewards)
    estimated = any(is_estimated(of_seed) for of_seed in found.scores[halving.model])
    estimates = (halved, whole, difference, spent, full)
    return HalvingResult(halving.name, found.title, count, *estimates, found.is_share, estimated)


def _orders(counts: Sequence[int]) -> list[np.ndarray]:
    """
    Return, for each problem, several orders of its candidates: a random one and its rotations, shape (orders, candidates).

    Halving prefers the earlier one of two candidates that tie, and in many files the right candidate comes first. In these orders, each
    candidate has each position once.
    """
    rng = np.random.default_rng(0)  # the same in every run, so that reports are reproducible
    return [rng.permutation(count)[np.add.outer(range(count), range(count)) % count] for count in counts]


def read_halvings(texts: Sequence[str], models: Sequence[str], num_critiques: int) -> list[Halving]:
    """
    Parse halvings such as `"cheap,full"` or `"full"`, which list names or short names of `models`. Raises `ValueError` if a model is
    unknown, if there are more than two models, or if halving saves nothing because there is one critique per candidate and no cheap model.
    """
    found: list[Halving] = []
    for text in texts:
        *cheap, model = read_members("halving", text, text.split(","), models)
        if model in cheap or len(cheap) > 1:
            raise ValueError(
                f"`halving` {text!r}: name one model, or a cheap model and another one, separated by a comma."
            )
        if not cheap and num_critiques == 1:
            raise ValueError(
                f"`halving` {text!r} uses one critique per candidate, which leaves nothing to save: set `num_critiques` above 1, or put a cheap "
                "model first."
            )
        found.append(Halving(model, *cheap))
    check_different("halving", found)
    return found
