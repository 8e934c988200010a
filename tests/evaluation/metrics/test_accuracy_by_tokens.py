import pytest

from cloud_hf.evaluation.metrics.accuracy_by_tokens import Reading, accuracy_against_tokens


def row(*responses):
    return [[Reading(tuple(rewards), tokens) for rewards, tokens in critiques] for critiques in responses]


# Read every 4 tokens: the first pair is right from token 8, the second until its critique ends
ROWS = [
    row([([0.0, 2.0, 2.0, 3.0], 14)], [([1.0, 1.0, 1.0], 9)]),
    row([([1.0, 0.5], 6)], [([0.0, 0.75], 4)]),
]


def test_accuracy_and_tokens_by_hand():
    found = accuracy_against_tokens(ROWS, [1, 1], 4)
    assert [point.limit for point in found.points] == [4, 8, None]
    assert [point.accuracy.value for point in found.points] == [0.5, 0.5, 0.5]
    assert [point.tokens.value for point in found.points] == [4.0, (8 + (6 + 4) / 2) / 2, ((14 + 9) / 2 + 5) / 2]
    complete = accuracy_against_tokens(ROWS[:1], [1], 4).points[-1]
    assert complete.limit is None and complete.accuracy.value == 1.0


def test_a_limit_between_readings_reads_to_the_one_before():
    assert ROWS[0][0][0].at(11, read_every=4) == ROWS[0][0][0].at(8, read_every=4) == (2.0, 8)


def test_the_readings_bound_an_estimated_number_of_tokens():
    for estimate, tokens in ((3, 8), (9, 9), (50, 11)):
        assert Reading((0.0, 1.0, 2.0), estimate).at(None, read_every=4) == (2.0, tokens)


@pytest.mark.parametrize(
    ("combine", "accuracies"), [("mean", [0.0, 0.0]), ("median", [1.0, 1.0]), ("vote", [1.0, 1.0])]
)
def test_critiques_are_combined_as_asked(combine, accuracies):
    """One of three critiques is far from the others."""
    outlier = row([([2.0, 2.0], 5), ([2.0, 2.0], 5), ([-9.0, -9.0], 5)], [([1.0, 1.0], 5)] * 3)
    points = accuracy_against_tokens([outlier], [1], 4, combine).points
    assert [point.accuracy.value for point in points] == accuracies


def test_likelihoods_weight_partial_rewards():
    pair = row([([2.0, 2.0], 5), ([-9.0, -9.0], 5)], [([1.0, 1.0], 5)] * 2)
    for known, accuracy in (([0.0, -20.0], 1.0), ([-20.0, 0.0], 0.0)):
        early, complete = accuracy_against_tokens([pair], [1], 4, "likelihood", [[known, [0.0, 0.0]]]).points
        assert early.accuracy.value == complete.accuracy.value == accuracy


def test_several_critiques_and_right_responses_are_averaged():
    several = row([([0.0, 4.0], 5), ([2.0, 2.0], 5)], [([3.0, 3.0], 4)], [([0.5, 3.0], 7)])
    early, complete = accuracy_against_tokens([several], [2], 4).points
    assert early.accuracy.value == 1.0 and early.tokens.value == (8 + 4 + 4) / 3
    assert complete.accuracy.value == 0.0 and complete.tokens.value == (10 + 4 + 7) / 3  # ties are not right
