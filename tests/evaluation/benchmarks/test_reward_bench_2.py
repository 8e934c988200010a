import math

import numpy as np
import pytest
from benchmark_files import write_rows

from cloud_hf.evaluation.benchmarks import reward_bench_2
from cloud_hf.evaluation.benchmarks.reward_bench_2 import best_of, score_ties


def row(subset, id_="1", num_chosen=1, num_rejected=3, **columns):
    chosen, rejected = [f"c{n}" for n in range(num_chosen)], [f"r{n}" for n in range(num_rejected)]
    return {"id": id_, "prompt": "p", "chosen": chosen, "rejected": rejected, "subset": subset, **columns}


def load(tmp_path, rows):
    return reward_bench_2.load([write_rows(tmp_path / "rows.jsonl", rows)])


@pytest.mark.parametrize(
    ("chosen", "rejected", "counts"),
    [
        (3, [0, 1, 2], 1.0),
        (1, [0, 2, 0], 0.0),
        (2, [2, 0, 1], 1 / 2),
        (2, [2, 2, 1], 1 / 3),
        (2, [2, 2, 2], 1 / 4),
        (1, [2, 2, 0], 0.0),
    ],
)
def test_a_shared_maximum_counts_in_part(chosen, rejected, counts):
    assert best_of([chosen], rejected) == counts


def ties(*rows):
    kinds, pairs, rewards = zip(*rows, strict=True)
    return score_ties(kinds, pairs, rewards)


def test_ties_by_hand():
    """Gap of the single right response 2; of the tied ones 1, whose spread is 0.5."""
    scores = ties(("ref", 1, ([3], [1, 0])), ("tied", 1, ([3, 2.5], [1.5, 0])))
    assert (scores.ref_accuracy, scores.tied_accuracy, scores.wider, scores.wider_hard) == (1, 1, 1, 1)
    assert scores.margin == pytest.approx(math.tanh(1 / 0.5 - 1))
    assert scores.score == pytest.approx(1 + 0.01 * math.tanh(1))
    assert (scores.pairs, scores.unpaired) == (1, 0)


def test_each_part_of_the_ties_score():
    # right responses all above wrong ones, but spread wider (4) than the gap (1)
    scores = ties(("ref", 1, ([9], [1])), ("tied", 1, ([6, 2], [1])))
    assert (scores.tied_accuracy, scores.wider, scores.wider_hard) == (1, 0, 0)
    assert scores.margin == pytest.approx(math.tanh(1 / 4 - 1))
    # the tied gap (3) is wider than the spread (1), the sibling's (0.5) is not
    scores = ties(("ref", 1, ([1.5], [1])), ("tied", 1, ([5, 4], [1])))
    assert (scores.wider, scores.wider_hard) == (1, 0) and scores.margin == pytest.approx(math.tanh(0.5 - 1))
    # one wrong response as good as the worst right one: a tie is wrong
    scores = ties(("ref", 1, ([1], [1])), ("tied", 1, ([5, 4], [4])))
    assert (scores.ref_accuracy, scores.tied_accuracy) == (0, 0)
    assert scores.score == pytest.approx(0.01 * math.tanh(0 / 1 - 1))


def test_a_spread_of_nothing():
    """Equal rewards of all right responses: an infinite ratio, or 0 / 0, which counts 0."""
    scores = ties(("ref", 1, ([3], [1])), ("tied", 1, ([3, 3], [1])))
    assert scores.margin == 1.0 and scores.score == pytest.approx(1.01)
    scores = ties(("ref", 1, ([3], [1])), ("tied", 1, ([1, 1], [1])))
    assert scores.margin == 0.0 and scores.score == pytest.approx(0.3)
    scores = ties(("ref", 1, ([0], [1])), ("tied", 1, ([0, 0], [1])))
    assert scores.margin == -1.0 and scores.score == pytest.approx(-0.01)


def test_ties_against_the_formula_written_out():
    """The published arithmetic, spelt once more over random rewards, some of them equal."""
    rng = np.random.default_rng(0)
    rows = []
    for pair in range(40):
        rows.append(("ref", pair, ([float(rng.integers(6))], list(rng.integers(6, size=3).astype(float)))))
        rows.append(("tied", pair, (list(rng.integers(3, 7, size=3) / 2), list(rng.integers(5, size=4) / 2))))
    total = []
    for pair in range(40):
        (ref_right, ref_wrong), (right, wrong) = rows[2 * pair][2], rows[2 * pair + 1][2]
        ref_gap, tied_gap, wide = min(ref_right) - max(ref_wrong), min(right) - max(wrong), max(right) - min(right)
        both = min(ref_gap, tied_gap)
        ratio = (both / wide if wide else math.copysign(math.inf, both) if both else math.nan) - 1
        parts = [tied_gap > 0, ref_gap > 0, tied_gap > wide, both > wide, 0 if math.isnan(ratio) else math.tanh(ratio)]
        total.append(np.dot([0.3, 0.3, 0.2, 0.2, 0.01], parts))
    assert ties(*rows).score == pytest.approx(np.mean(total))


def test_the_average_of_six(tmp_path):
    rows = load(
        tmp_path,
        [row(name, str(n)) for name in reward_bench_2.BEST_OF_FOUR for n in range(2)]
        + [
            row("Ties", "ref:0", 1, 2),
            row("Ties", "tied:0", 2, 2),
            row("Ties", "ref:1", 1, 2),
            row("Ties", "tied:1", 2, 2),
        ],
    )
    good, shared, bad = [1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0]
    rewards = [good, good, good, bad, shared, shared, bad, bad, good, shared]
    rewards += [[1, 0, 0], [1, 1, 0, 0], [0, 1, 0], [0, 0, 1, 0]]
    scores = reward_bench_2.score(rows, rewards)
    assert [scores.figures[name].value for name in reward_bench_2.BEST_OF_FOUR] == [1.0, 0.5, 0.5, 0.0, 0.75]
    assert scores.figures["Ties"].value == pytest.approx(0.5)  # margins of 1 and -1
    assert scores.value == scores.figures["Average"].value == pytest.approx((1 + 0.5 + 0.5 + 0 + 0.75 + 0.5) / 6)
    assert scores.details["ties"]["pairs"] == 2 and scores.missing == () and scores.ties == 3
    low, high = scores.figures["Average"].ci95
    assert low < scores.value < high
    low, high = scores.figures["Ties"].ci95
    assert low == pytest.approx(-0.01) and high == pytest.approx(1.01)  # both pairs the bad one, or the good one
    more = load(tmp_path, [row("Ties", "ref:2", 1, 1)])
    with_single = reward_bench_2.score([*rows, *more], [*rewards, [1, 0]])
    assert with_single.figures["Ties"].ci95 is None and with_single.figures["Average"].ci95 is None
    assert with_single.figures["Ties"].value == pytest.approx(0.3 * 2 / 3 + 0.3 / 2 + 0.2)


def test_missing_and_unknown_subsets_and_rows_without_sibling(tmp_path):
    rows = load(tmp_path, [row("Math"), row("Poetry"), row("Ties", "ref:1", 1, 1), row("ties", "tied:2", 2, 1)])
    scores = reward_bench_2.score(rows, [[1, 0, 0, 0], [1, 0, 0, 0], [1, 0], [1, 1, 0]])
    assert math.isnan(scores.value) and scores.figures["Math"].value == 1.0
    assert scores.missing == ("Factuality", "Precise IF", "Safety", "Focus") and scores.unknown == {"Poetry": 1}
    assert math.isnan(scores.figures["Ties"].value) and scores.figures["Ties"].ci95 is None
    assert scores.details["ties"]["unpaired"] == 2 and scores.details["ties"]["ref_accuracy"] == 1.0
    assert scores.details["ties"]["score"] is None


@pytest.mark.parametrize("reward", [[1, 0, 0, 0], [0, 1, 0, 0]])
def test_rows_that_are_all_alike_have_no_interval(tmp_path, reward):
    """From 100 % to 100 % would claim certainty. Few rows of a subset are named."""
    kinds = [("ref", 1), ("tied", 2)]
    made = [row(name, str(n)) for name in reward_bench_2.BEST_OF_FOUR for n in range(12)]
    made += [row("Ties", f"{kind}:{n}", chosen, 2) for n in range(3) for kind, chosen in kinds]
    rewards = [reward] * 60 + [[5, 0, 0] if len(one["chosen"]) == 1 else [5, 5, 0, 0] for one in made[60:]]
    scores = reward_bench_2.score(load(tmp_path, made), rewards)
    assert scores.figures["Ties"].ci95 is None and scores.figures["Average"].ci95 is None
    assert scores.figures["Math"].ci95 is not None and scores.few == ("Ties",)
    assert any(note.startswith("Fewer than 10 rows of Ties: intervals of means") for note in scores.notes())


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (row("Math", num_chosen=2), "there are 2 chosen responses, but rows of Math have one"),
        (row("Ties", "tied:1"), "a tied row needs at least two chosen responses; this one has 1"),
        (row("Ties", "ref:1", num_chosen=2), "there are 2 chosen responses, but rows of Ties have one"),
        (row("Ties", "7"), "has the id '7', which does not have the form"),
        (row("Math", num_rejected=0), "`rejected` is an empty list"),
        ({**row("Math"), "subset": None}, r"`subset` is None"),
    ],
)
def test_bad_rows_are_named(tmp_path, bad, says):
    with pytest.raises(ValueError, match=says):
        load(tmp_path, [bad])
