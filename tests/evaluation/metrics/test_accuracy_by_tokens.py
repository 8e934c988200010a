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


def test_several_critiques_and_right_responses_are_averaged():
    several = row([([0.0, 4.0], 5), ([2.0, 2.0], 5)], [([3.0, 3.0], 4)], [([0.5, 3.0], 7)])
    early, complete = accuracy_against_tokens([several], [2], 4).points
    assert early.accuracy.value == 1.0 and early.tokens.value == (8 + 4 + 4) / 3
    assert complete.accuracy.value == 0.0 and complete.tokens.value == (10 + 4 + 7) / 3  # ties are not right
