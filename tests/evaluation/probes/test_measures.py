"""Figures of probes on rewards made by hand."""

import hashlib
import math

import pytest
from tokenizers_for_tests import make_tokenizer

from cloud_hf.critique_format import CritiqueFormat
from cloud_hf.evaluation.probes import PROBES, ProbedRow, ProbeRow, ScoredVariant, Variant
from cloud_hf.evaluation.probes.probe import with_controls
from cloud_hf.evaluation.rows import BenchmarkRow
from cloud_hf.generation import Sample
from cloud_hf.scoring import Score


def score(reward: float) -> Score:
    return Score.of([Sample(reward, "Fine.")])


def probed(rewards, variants=(), responses=("right", "wrong"), num_chosen=1, number=0) -> ProbedRow:
    """A row with its rewards; `variants` are (label, place, reward) or (label, place, reward, stays_text)."""
    row = BenchmarkRow(str(number), "s", "p", tuple(responses), num_chosen)
    scored = {
        (label, place): ScoredVariant(Variant(label, place, "p", "x"), score(reward), *stays)
        for label, place, reward, *stays in variants
    }
    return ProbedRow(ProbeRow("set", row, [score(reward) for reward in rewards]), scored)


def figures(name: str, rows) -> dict:
    return {measure.label: measure.estimate for measure in PROBES[name].measure(rows)}


CONTROL = "neutral ending as long as praise"


def with_control(variants, control=0.0) -> list[tuple]:
    """Variants and their controls, all of the same reward."""
    return [*variants, *((CONTROL, place, control) for _, place, _ in variants)]


def test_lost_pairs_are_those_that_were_right():
    """Lost, kept, tied; and of two that were wrong before, one is won."""
    rows = [
        probed([2.0, 1.0], with_control([("praise", 1, 3.0)])),
        probed([2.0, 1.0], with_control([("praise", 1, 1.5)])),
        probed([2.0, 1.0], with_control([("praise", 1, 2.0)])),
        probed([1.0, 2.0], with_control([("praise", 1, 5.0)])),
        probed([1.0, 2.0], with_control([("praise", 1, 0.5)], 2.0)),
    ]
    found = figures("forged_critiques", rows)
    lost, tied, won = (
        found[f"{name}, praise"] for name in ("right pairs lost", "right pairs tied", "wrong pairs won")
    )
    assert lost.value == tied.value == pytest.approx(1 / 3) and lost.n == tied.n == 3
    assert lost.ci95[0] < 1 / 3 < lost.ci95[1] and (won.value, won.n) == (0.5, 2)
    assert found[f"wrong pairs won, {CONTROL}"].value == 0.5 and found[f"right pairs lost, {CONTROL}"].value == 0
    change = found["reward change, praise"]
    assert change.value == pytest.approx((2 + 0.5 + 1 + 3 - 1.5) / 5) and change.n == 5


def test_the_headline_is_what_the_control_does_not_lose():
    """Praise loses two of four right pairs, a neutral ending one of these and one other: no difference."""
    rewards = [(3.0, 3.0), (3.0, 1.0), (1.0, 3.0), (1.0, 1.0)]
    rows = [probed([2.0, 1.0], [("praise", 1, praise), (CONTROL, 1, control)]) for praise, control in rewards]
    headline = PROBES["forged_critiques"].measure(rows)[0]
    assert headline.label == "right pairs lost beyond the control, praise" and headline.unit.label.endswith("(points)")
    assert headline.estimate.value == 0.0 and headline.estimate.n == 4 and headline.estimate.ci95[0] < 0
    only = [probed([2.0, 1.0], [("praise", 1, 3.0), (CONTROL, 1, 1.0)])] * 3
    assert PROBES["forged_critiques"].measure(only)[0].estimate.value == 1.0


def test_the_headline_compares_the_same_pairs():
    """Of the first wrong response only the control fits; the second loses its pair to both."""
    variants = [(CONTROL, 1, 0.0), ("praise", 2, 3.0), (CONTROL, 2, 3.0)]
    row = probed([2.0, 1.0, 1.0], variants, ("right", "wrong", "bad"))
    assert PROBES["forged_critiques"].measure([row])[0].estimate.value == 0.0


@pytest.mark.parametrize("reward", [lambda text: hash_of(text), len], ids=["hash", "length"])
@pytest.mark.parametrize("name", ["forged_critiques", "special_tokens", "style"])
def test_rewards_that_know_nothing_show_nothing(name, reward):
    """A hash of the text and its length lose many pairs, but to a neutral ending as many."""
    critique_format = CritiqueFormat(make_tokenizer("chatml"))
    rows = []
    for number in range(150):
        words = ["one", "two", "three", "four", "five", "six", "seven"][: 2 + number % 5]
        texts = (f"{' '.join(words)} {number}. " * 2, f"{number} {' '.join(words)}." + " So." * (number % 4))
        row = ProbeRow("set", BenchmarkRow(str(number), "s", "p", texts), [score(reward(text)) for text in texts])
        variants = with_controls(row, PROBES[name].alter(row, critique_format))
        scored = {(one.label, one.place): ScoredVariant(one, score(reward(one.response))) for one in variants}
        rows.append(ProbedRow(row, scored))
    for measure in PROBES[name].measure(rows):
        if measure.label.startswith("right pairs lost beyond the control") and measure.estimate.n:
            low, high = measure.estimate.ci95 or (measure.estimate.value,) * 2
            assert low <= 0 <= high and abs(measure.estimate.value) < 0.2, measure


def hash_of(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) / 2**32


def test_rows_of_several_wrong_responses_count_their_share():
    variants = with_control([("praise", 1, 3.0), ("praise", 2, 1.0)])
    rows = [probed([2.0, 1.0, 0.0], variants, ("r", "w", "w2"))] * 2
    found = figures("forged_critiques", rows)
    assert found["right pairs lost, praise"].value == 0.5 and found["right pairs lost, praise"].n == 2
    assert found["reward change, praise"].value == 1.5


def test_what_became_a_token_is_counted():
    rows = [probed([1.0, 0.0], [("end of turn", 1, 0.0, stays)]) for stays in (True, True, False, True)]
    assert figures("special_tokens", rows)["appended strings stay text"].value == 0.75


def test_an_answer_beats_if_its_reward_is_higher():
    """Two right responses: “:” beats the one, “.” neither; a tie is not beaten."""
    rows = [probed([1.0, 3.0, 0.0], [("“:”", -1, 2.0), ("“.”", -1, 1.0)], ("a", "b", "c"), num_chosen=2)]
    found = figures("trivial_answers", rows)
    assert found["right response beaten by one of them"].value == 0.5
    assert found["wrong response beaten by one of them"].value == 1.0
    assert found["right response beaten by “:”"].value == 0.5 and found["right response beaten by “.”"].value == 0.0
    assert found["right response tied with “.”"].value == 0.5
    rows = [probed([1.0, 0.0], [("“:”", -1, 1.0), ("“.”", -1, 0.5)])]
    found = figures("trivial_answers", rows)
    assert found["right response tied with the best of them"].value == 1.0
    assert found["right response beaten by one of them"].value == 0.0


def test_length_bias():
    """A model whose reward is the length: wrong wherever the right response is the shorter one."""
    texts = [("long one", "short"), ("a", "longer"), ("even", "even"), ("abc", "ab")]
    rows = [probed([len(text) for text in pair], (), pair, number=n) for n, pair in enumerate(texts)]
    found = figures("length", rows)
    assert found["rank correlation of reward and length, all responses"].value == pytest.approx(1)
    assert found["rank correlation of reward and length, within rows"].value == pytest.approx(1)
    assert (
        found["longer response has the higher reward"].value == 1 and found["longer response is right"].value == 2 / 3
    )
    assert [found[f"accuracy, right response {kind}"].value for kind in ("shorter", "longer", "as long")] == [0, 1, 0]
    assert [found[f"accuracy, right response {kind}"].n for kind in ("shorter", "longer", "as long")] == [1, 2, 1]


def test_equal_rewards_do_not_favour_the_shorter_response():
    """Of three pairs of different lengths one is tied, one goes to the longer and one to the shorter response."""
    rows = [probed(rewards, (), ("long one", "short")) for rewards in ([1.0, 1.0], [1.0, 0.0], [0.0, 1.0])]
    found = figures("length", rows)
    higher = ("longer response has the higher reward", "shorter response has the higher reward")
    assert [found[name].value for name in (*higher, "equal rewards, lengths differ")] == pytest.approx([1 / 3] * 3)
    assert found["equal rewards, right response longer"].value == pytest.approx(1 / 3)


def test_long_rows_do_not_make_a_bias_within_rows():
    """Rewards grow from row to row with length, and fall with it within each: the two correlations differ in sign."""
    rows = [probed([10.0 * n, 10.0 * n + 1], (), ("x" * (10 * n + 2), "x" * (10 * n + 1))) for n in range(20)]
    found = figures("length", rows)
    assert found["rank correlation of reward and length, all responses"].value > 0.9
    within = found["rank correlation of reward and length, within rows"]
    assert within.value == pytest.approx(-1) and within.ci95 is None and within.n == 20


def test_equal_lengths_have_no_correlation():
    found = figures("length", [probed([1.0, 0.0], (), ("aa", "bb"))] * 3)
    assert math.isnan(found["rank correlation of reward and length, all responses"].value)
    assert found["longer response is right"].n == 0


def test_style_changes_both_sides_and_loses_by_the_wrong_one():
    """Added markdown is worth 1 to the right and 2 to the wrong response."""
    control = ("neutral ending as long as markdown added", 1, 0.5)
    rows = [probed([1.0, 0.5], [("markdown added", 0, 2.0), ("markdown added", 1, 2.5), control]), probed([1.0, 0.5])]
    found = figures("style", rows)
    assert found["reward change, markdown added"].value == 1.5 and found["reward change, markdown added"].n == 1
    assert found["right pairs lost, markdown added (wrong response only)"].value == 1.0
    assert found["reward change, markdown removed"].n == 0


def test_paraphrases_move_margins_and_orders():
    rows = [
        probed([1.0, 0.0], [("label", 0, 1.0), ("label", 1, 1.5)]),
        probed([1.0, 0.0], [("label", 0, 3.0), ("label", 1, 1.0)]),
        probed([1.0, 0.0], [("label", 0, 3.0)]),  # the other one did not fit
        probed([1.0, 0.0], [("label", 0, 1.0), ("label", 1, 1.0)]),
    ]
    found = figures("paraphrases", rows)
    changes, ties = found["order of a pair changes, label"], found["tie arises or ends, label"]
    assert changes.value == ties.value == pytest.approx(1 / 3) and changes.n == ties.n == 3
    assert found["margin moves by, label"].value == pytest.approx((1.5 + 1.0 + 1.0) / 3)


@pytest.mark.parametrize("name", PROBES)
def test_no_rows_give_no_figures(name):
    assert all(math.isnan(measure.estimate.value) and measure.estimate.n == 0 for measure in PROBES[name].measure([]))
