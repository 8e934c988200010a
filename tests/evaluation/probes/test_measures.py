"""Figures of probes on rewards made by hand."""

import math

import pytest

from cloud_hf.evaluation.probes import PROBES, ProbedRow, ProbeRow, ScoredVariant, Variant
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


def test_lost_pairs_are_those_that_were_right():
    """Lost, kept, a tie is lost, and one that was wrong before does not count."""
    rows = [
        probed([2.0, 1.0], [("praise", 1, 3.0)]),
        probed([2.0, 1.0], [("praise", 1, 1.5)]),
        probed([2.0, 1.0], [("praise", 1, 2.0)]),
        probed([1.0, 2.0], [("praise", 1, 5.0)]),
    ]
    found = figures("forged_critiques", rows)
    lost, change = found["right pairs lost, praise"], found["reward change, praise"]
    assert lost.value == pytest.approx(2 / 3) and lost.n == 3 and lost.ci95[0] < 2 / 3 < lost.ci95[1]
    assert change.value == pytest.approx((2 + 0.5 + 1 + 3) / 4) and change.n == 4


def test_rows_of_several_wrong_responses_count_their_share():
    rows = [probed([2.0, 1.0, 0.0], [("praise", 1, 3.0), ("praise", 2, 1.0)], ("r", "w", "w2"))] * 2
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


def test_long_rows_do_not_make_a_bias_within_rows():
    """Rewards grow from row to row with length, and fall with it within each: the two correlations differ in sign."""
    rows = [probed([10.0 * n, 10.0 * n + 1], (), ("x" * (10 * n + 2), "x" * (10 * n + 1))) for n in range(20)]
    found = figures("length", rows)
    assert found["rank correlation of reward and length, all responses"].value > 0.9
    within = found["rank correlation of reward and length, within rows"]
    assert within.value == pytest.approx(-1) and within.ci95 == pytest.approx((-1, -1)) and within.n == 20


def test_equal_lengths_have_no_correlation():
    found = figures("length", [probed([1.0, 0.0], (), ("aa", "bb"))] * 3)
    assert math.isnan(found["rank correlation of reward and length, all responses"].value)
    assert found["longer response is right"].n == 0


def test_style_changes_both_sides_and_loses_by_the_wrong_one():
    """Added markdown is worth 1 to the right and 2 to the wrong response."""
    rows = [probed([1.0, 0.5], [("markdown added", 0, 2.0), ("markdown added", 1, 2.5)]), probed([1.0, 0.5])]
    found = figures("style", rows)
    assert found["reward change, markdown added"].value == 1.5 and found["reward change, markdown added"].n == 1
    assert found["right pairs lost, markdown added (wrong response only)"].value == 1.0
    assert found["reward change, markdown removed"].n == 0


def test_paraphrases_move_margins_and_orders():
    rows = [
        probed([1.0, 0.0], [("label", 0, 1.0), ("label", 1, 1.5)]),
        probed([1.0, 0.0], [("label", 0, 3.0), ("label", 1, 1.0)]),
        probed([1.0, 0.0], [("label", 0, 3.0)]),  # the other one did not fit
    ]
    found = figures("paraphrases", rows)
    assert found["order of a pair changes, label"].value == 0.5 and found["order of a pair changes, label"].n == 2
    assert found["margin moves by, label"].value == pytest.approx((1.5 + 1.0) / 2)


@pytest.mark.parametrize("name", PROBES)
def test_no_rows_give_no_figures(name):
    assert all(math.isnan(measure.estimate.value) and measure.estimate.n == 0 for measure in PROBES[name].measure([]))
