"""Successive halving: rounds counted by hand, and the choice of the full best-of-N where rewards do not vary."""

import numpy as np
import pytest
from table_scorer import TableScorer

from cloud_hf.halving import choose_by_halving, run_halving
from cloud_hf.scores import Sample, Score


def recorded(rewards):
    """Rewards by prompt, candidate and critique."""
    return lambda written, more, picks: [rewards[a][b][written : written + more] for a, b in picks]


def test_rounds_of_sixteen():
    """16 candidates get 1 critique, 8 two, 4 four, 2 eight: 40 critiques instead of 128."""
    rewards = np.random.default_rng(0).normal(size=(1, 16, 8))
    [found] = run_halving([16], 8, recorded(rewards))
    assert sorted(map(len, found.rewards)) == [1] * 8 + [2] * 4 + [4] * 2 + [8] * 2
    left = list(range(16))
    for total in (1, 2, 4):
        left = sorted(left, key=lambda place: -rewards[0, place, :total].mean())[: len(left) // 2]
    assert found.contenders[0] == max(left, key=lambda place: rewards[0, place].mean())
    [cheap_first] = run_halving([16], 8, recorded(rewards), [range(16)])
    assert all(not cheap_first.rewards[place] for place in range(8)) and len(cheap_first.rewards[15]) >= 1


@pytest.mark.parametrize("count", [1, 2, 3, 5, 16])
@pytest.mark.parametrize("num_critiques", [1, 3, 4])
def test_steady_rewards_give_the_choice_of_full_best_of_n(count, num_critiques):
    values = np.random.default_rng(count).permutation(count)
    rewards = np.repeat(values[None, :, None], num_critiques, axis=2).astype(float)
    [found] = run_halving([count], num_critiques, recorded(rewards))
    assert found.contenders[0] == values.argmax()
    assert max(map(len, found.rewards)) <= num_critiques and sum(map(len, found.rewards)) <= count * num_critiques


def test_it_spends_critiques_on_contenders_only():
    class Critic:
        def __init__(self):
            self.calls = []

        def score(self, prompts, responses, *, num_critiques, seed, **options):
            self.calls.append((len(responses), num_critiques, seed))
            samples = {text: [Sample(float(text), "x", (1, 2))] * num_critiques for text in responses}
            return [Score.of(samples[text]) for text in responses]

    critic, cheap = Critic(), TableScorer({str(number): -number for number in range(8)})
    choices, spent = choose_by_halving(
        ["p", "q"], [[str(n) for n in range(8)], ["3", "5"]], critic, cheap=cheap, seed=7
    )
    # Of the eight, the cheap model keeps 0 to 3; of the two, it keeps 3, which needs no critique
    assert choices == [3, 0] and critic.calls == [(4, 1, 7), (2, 1, 8)]
    assert (spent.responses, spent.tokens) == (6, 12)
    with pytest.raises(ValueError, match="at least one candidate"):
        choose_by_halving(["p"], [[]], critic)
