import math

import pytest
from benchmark_files import pair, write_rows
from datasets import Dataset

from cloud_hf.evaluation.benchmarks import llm_bar, preference_pairs, reward_bench
from cloud_hf.evaluation.rows import BenchmarkRow, check_unique, make_row, split_rewards


def test_rows_of_many_sources_keep_their_order_and_get_ids(tmp_path):
    first = write_rows(tmp_path / "first.jsonl", [pair("x", 1), pair("x", 0)])
    second = write_rows(tmp_path / "second.jsonl.gz", [{"prompt": "p", "chosen": "a", "rejected": "b"}] * 2)
    saved = str(tmp_path / "saved")
    chat = [{"role": "user", "content": "Hi"}]
    sides = {
        side: [{"role": "assistant", "content": text}] for side, text in (("chosen", "good"), ("rejected", "bad"))
    }
    Dataset.from_list([pair("y", prompt=chat, **sides)]).save_to_disk(saved)
    rows = preference_pairs.load([first, second, saved])
    assert [row.id for row in rows] == ["x/1", "x/0", "second/0", "second/1", "y/0"]
    assert rows[-1].responses == ("good", "bad") and rows[-1].prompt == chat
    assert [row.subset for row in rows] == ["x", "x", "second", "second", "y"]


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"chosen": None}, r"row 1 \(id 'x/1'\): `chosen` is None"),
        ({"rejected": 3}, "`rejected` is 3"),
        ({"prompt": [{"role": "assistant", "content": "Hi"}]}, "`prompt` ends on a 'assistant' turn"),
        ({"prompt": None}, "`prompt` is None"),
    ],
)
def test_bad_rows_are_named_with_their_file(columns, says):
    row = pair("x", 1, **columns)
    with pytest.raises(ValueError, match=says) as error:
        make_row("file.jsonl", 1, row, "x", row["chosen"], row["rejected"])
    assert str(error.value).startswith("file.jsonl, row 1")


def test_an_id_that_stands_twice_is_an_error(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [pair("x"), pair("y"), pair("x")])
    with pytest.raises(ValueError, match=r"Rows 0 and 2 have the same id 'x/0'"):
        preference_pairs.load([path])
    other = write_rows(tmp_path / "other.jsonl", [{**pair("x"), "id": 7}, {**pair("y"), "id": 7}])
    assert [row.id for row in preference_pairs.load([other])] == ["x/7", "y/7"]
    with pytest.raises(ValueError, match="no rows"):
        check_unique([])
    with pytest.raises(ValueError, match="at least one file"):
        preference_pairs.load([])


@pytest.mark.parametrize("load", [preference_pairs.load, reward_bench.load, llm_bar.load])
def test_several_responses_on_a_side_of_a_pair_are_an_error(load, tmp_path):
    """None of them may be left out in silence."""
    rows = [
        pair("hep-go", chosen=["good"], rejected=["bad"]),
        pair("hep-go", 1, chosen=["good"], rejected=["bad", "worse"]),
    ]
    assert len(load([write_rows(tmp_path / "one.jsonl", rows[:1])])) == 1
    with pytest.raises(
        ValueError, match=r"hep-go/1.*(2 rejected responses; give one of each|`rejected` contains 2 strings)"
    ):
        load([write_rows(tmp_path / "two.jsonl", rows)])


def test_other_columns_are_an_error(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [{"prompt": "p", "chosen": "a", "rejecetd": "b"}])
    with pytest.raises(ValueError, match=r"rejected \(rename 'rejecetd' to 'rejected'"):
        preference_pairs.load([path])


ROWS = [BenchmarkRow("a", "x", "p", ("r", "s", "t"), 2), BenchmarkRow("b", "x", "p", ("r", "r"))]


def test_rewards_are_parted_into_right_and_wrong():
    assert split_rewards(ROWS, [[1, 2, 3], (4.0, 5.0)]) == [([1.0, 2.0], [3.0]), ([4.0], [5.0])]
    assert [row.is_undecidable for row in ROWS] == [False, True]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_rewards_must_be_finite(bad):
    with pytest.raises(ValueError, match=rf"Row 'b': a reward is {bad}"):
        split_rewards(ROWS, [[1, 2, 3], [4, bad]])


def test_no_reward_may_be_missing():
    with pytest.raises(ValueError, match="2 rows but rewards for 1"):
        split_rewards(ROWS, [[1, 2, 3]])
    with pytest.raises(ValueError, match="Row 'b': 3 rewards for 2 responses"):
        split_rewards(ROWS, [[1, 2, 3], [1, 2, 3]])
