import pytest
from benchmark_files import pair, write_rows

from cloud_hf.evaluation.benchmarks import judge_bench
from cloud_hf.evaluation.benchmarks.judge_bench import Games, games_of


def official(number, label, source="mmlu-pro-law", **columns):
    row = {"pair_id": f"id-{number}", "original_id": "7", "source": source, "question": "q", "label": label}
    return {**row, "response_model": "m", "response_A": "answer A", "response_B": "answer B", **columns}


def load(tmp_path, rows):
    return judge_bench.load([write_rows(tmp_path / "rows.jsonl", rows)])


def test_the_label_says_which_response_is_right(tmp_path):
    first, second = load(tmp_path, [official(0, "A>B"), official(1, "B>A")])
    assert (first.chosen, first.rejected, first.details) == (("answer A",), ("answer B",), {"label": "A>B"})
    assert (second.chosen, second.rejected, second.details) == (("answer B",), ("answer A",), {"label": "B>A"})
    assert first.prompt == "q" and first.id == "knowledge/id-0"


@pytest.mark.parametrize("label", ["A>B", "B>A"])
def test_one_reward_per_response_gives_the_same_verdict_in_both_orders_but_for_ties(label):
    won, lost, tie = (games_of(label, rewards) for rewards in ((2.0, 1.0), (1.0, 2.0), (1.0, 1.0)))
    assert won.single_game_is_right and won.points == 2 and won.is_consistent
    assert not lost.single_game_is_right and lost.points == -2 and lost.is_consistent
    # the second response of each game gets the tie, so A wins one and B the other
    assert (tie.first, tie.second, tie.points, tie.is_consistent) == ("B>A", "A>B", 0, False)
    assert tie.single_game_is_right == (label == "B>A")


@pytest.mark.parametrize("label", ["A>B", "B>A"])
def test_two_games(label):
    """Resampled critiques can reverse a verdict."""
    assert games_of(label, (2.0, 1.0), (1.0, 2.0)).points == 0
    assert games_of(label, (1.0, 2.0), (2.0, 1.0)).points == 0
    assert games_of(label, (2.0, 1.0), (3.0, 1.0)).points == 2
    # a tie in the second game goes to A, which comes second there
    assert games_of(label, (2.0, 1.0), (1.0, 1.0)).points == (2 if label == "A>B" else 0)


def test_points_of_verdicts_that_are_none():
    """A game without verdict counts nothing, so that one won game decides."""
    assert Games("A>B", "A>B", "A=B").points == 1
    assert Games("A>B", "none", "B>A").points == -1
    assert Games("A>B", "none", None).points == 0
    assert not Games("A>B", "A=B").single_game_is_right


def test_scores(tmp_path):
    rows = load(
        tmp_path,
        [
            official(0, "A>B"),
            official(1, "B>A"),
            official(2, "A>B", "livebench-math"),
            official(3, "B>A", "livebench-math"),
            official(4, "B>A", "livebench-reasoning", response_A="same", response_B="same"),
        ],
    )
    rewards = [(2, 1), (1, 2), (1, 1), (1, 1), (3, 3)]
    scores = judge_bench.score(rows, rewards)
    assert scores.figures["both orders"].value == scores.value == 0.2
    assert scores.figures["single game"].value == 0.6  # the two ties labelled B>A are given to B
    assert scores.figures["math, single game"].value == 0.5 and scores.figures["math, both orders"].value == 0.0
    assert (scores.ties, scores.undecidable) == (3, 1)
    assert scores.missing == ("coding",)
    assert scores.details == {"games_won_and_lost_alike": 3, "inconsistent": 3}
    second = [(2, 1), (2, 1), (2, 1), (2, 1), (3, 3)]
    scores = judge_bench.score(rows, rewards, second)
    # the second row won one game of two; of the first games' ties, B got both
    assert scores.figures["both orders"].value == pytest.approx(2 / 5)
    assert scores.details == {"games_won_and_lost_alike": 3, "inconsistent": 3}


def test_both_layouts_load(tmp_path):
    path = write_rows(
        tmp_path / "judgebench-gpt.jsonl",
        [pair("judgebench-coding", 0, gold_position="A"), pair("judgebench-coding", 1, gold_position="B")],
    )
    rows = judge_bench.load([path])
    assert [row.details["label"] for row in rows] == ["A>B", "B>A"] and rows[0].subset == "coding"
    assert rows[1].chosen == ("good",)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (official(0, "A=B"), "`label` is 'A=B'; it must be A>B or B>A"),
        (
            {key: value for key, value in official(0, "A>B").items() if key != "source"},
            r"needs the column\(s\) source",
        ),
        (pair("x"), r"needs the column\(s\) gold_position"),
        (pair("x", gold_position=1), "`gold_position` is 1"),
    ],
)
def test_bad_rows_are_named(tmp_path, row, says):
    with pytest.raises(ValueError, match=says):
        load(tmp_path, [row])


def test_unknown_sources_and_splits(tmp_path):
    rows = load(tmp_path, [official(0, "A>B", "arena-hard"), official(1, "A>B")])
    scores = judge_bench.score(rows, [(1, 0), (0, 1)])
    assert scores.unknown == {"arena-hard": 1} and scores.figures["both orders"].n == 1 and scores.value == 0.0
    with pytest.raises(ValueError, match="`split` is 'gemini'"):
        judge_bench.load(split="gemini")
