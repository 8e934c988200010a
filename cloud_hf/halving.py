"""
Choose the best of N candidates by successive halving: every candidate gets one critique, then the better half get more, and so on until
few are left. Does not import torch.

A candidate's reward is the mean over its critiques so far. With N candidates and at most k critiques per candidate, halving writes about
N (1 + log2(k) / 2) critiques instead of N k. A cheap reward model that first drops half of the candidates halves this number again.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .cascade import Spent
from .scores import Score, Scorer


@dataclass
class Tournament:
    """The candidates of one prompt."""

    count: int
    contenders: list[int] = field(init=False)  # indices of the remaining candidates, best first
    rewards: list[list[float]] = field(init=False)  # for each candidate, the rewards of its critiques

    def __post_init__(self):
        self.contenders = list(range(self.count))
        self.rewards = [[] for _ in range(self.count)]

    def rank(self, values: dict[int, float]):
        """Sort the contenders by their values, highest first; contenders with equal values keep their order."""
        self.contenders.sort(key=lambda place: -values[place])

    def halve(self):
        """Drop the lower half of the contenders; if their number is odd, the middle one stays."""
        del self.contenders[(len(self.contenders) + 1) // 2 :]


# Called with the number of critiques that each response already has, the number to add, and the (prompt, candidate) indices of
# the responses; returns the rewards of the new critiques
Ask = Callable[[int, int, list[tuple[int, int]]], Sequence[Sequence[float]]]


def run_halving(
    counts: Sequence[int], num_critiques: int, ask: Ask, cheap_rewards: Sequence[Sequence[float]] | None = None
) -> list[Tournament]:
    """
    Choose among candidates by successive halving.

    Args:
        counts (`Sequence[int]`):
            Number of candidates for each prompt.
        num_critiques (`int`):
            Maximum number of critiques per candidate. The contenders have 1, 2, 4, … critiques after successive rounds.
        ask (`Callable`):
            Returns the rewards of new critiques; called once per round, with the contenders of all prompts.
        cheap_rewards (`Sequence[Sequence[float]]`, *optional*):
            Rewards by prompt and candidate, from a cheap model. The lower half of the candidates get no critique.

    Returns:
        `list[Tournament]`: One tournament per prompt; its first contender is the chosen candidate.
    """
    prompts = list(map(Tournament, counts))
    for prompt, rewards in zip(prompts, cheap_rewards or (), strict=cheap_rewards is not None):
        prompt.rank(dict(enumerate(rewards)))
        prompt.halve()
    # The number of critiques per contender doubles as the number of contenders halves, so each later round writes about half a
    # critique per candidate
    written, total = 0, 1
    while written < num_critiques and (
        undecided := {number: one for number, one in enumerate(prompts) if len(one.contenders) > 1}
    ):
        picks = [(number, place) for number, one in undecided.items() for place in sorted(one.contenders)]
        for (number, place), rewards in zip(picks, ask(written, total - written, picks), strict=True):
            prompts[number].rewards[place].extend(rewards)
        for prompt in undecided.values():
            prompt.rank({place: statistics.fmean(prompt.rewards[place]) for place in prompt.contenders})
            if total < num_critiques:
                prompt.halve()
        written, total = total, min(2 * total, num_critiques)
    return prompts


def choose_by_halving(
    prompts: Sequence,
    candidates: Sequence[Sequence],
    scorer: Scorer,
    *,
    num_critiques: int = 4,
    temperature: float = 0.7,
    max_new_tokens: int = 1024,
    seed: int = 0,
    cheap: Scorer | None = None,
) -> tuple[list[int], Spent]:
    """
    Choose the best of N candidates for each prompt, writing further critiques only for the remaining contenders.

    Args:
        prompts (`Sequence`):
            See [`Scorer`].
        candidates (`Sequence[Sequence]`):
            Responses to each prompt.
        scorer ([`Scorer`]):
            Writes critiques.
        num_critiques, temperature, max_new_tokens, seed:
            See [`Scorer`]; `num_critiques` is the maximum per candidate.
        cheap ([`Scorer`], *optional*):
            A scorer that writes no critiques. The half of the candidates that it rewards least is dropped first.

    Returns:
        `tuple[list[int], Spent]`: The index of the chosen candidate for each prompt, and the cost of the critiques that `scorer` wrote.

    Raises:
        `ValueError`: If a prompt has no candidate, or an option is invalid.

    Examples:

    ```python
    >>> choices, spent = choose_by_halving(prompts, candidates, cloud, cheap=classic, num_critiques=4)
    ```
    """
    if len(prompts) != len(candidates) or not all(map(len, candidates)):
        raise ValueError("Give one list of candidates per prompt, each with at least one candidate.")
    spent = Spent()

    def score(by: Scorer, picks: list[tuple[int, int]], **options) -> list[Score]:
        chosen_prompts = [prompts[number] for number, _ in picks]
        responses = [candidates[number][place] for number, place in picks]
        return by.score(chosen_prompts, responses, max_new_tokens=max_new_tokens, **options)

    def ask(written: int, more: int, picks: list[tuple[int, int]]) -> list[tuple[float, ...]]:
        # Each round needs a new seed: the same seed would produce the same critiques again
        options = {"num_critiques": more, "temperature": temperature, "seed": seed + written}
        scores = score(scorer, picks, **options)
        spent.add(scores)
        return [one.rewards for one in scores]

    cheap_rewards = None
    if cheap is not None:
        everything = [(number, place) for number, row in enumerate(candidates) for place in range(len(row))]
        found = iter(score(cheap, everything))
        cheap_rewards = [[next(found).reward for _ in row] for row in candidates]
    judged = run_halving(list(map(len, candidates)), num_critiques, ask, cheap_rewards)
    return [one.contenders[0] for one in judged], spent
