import pytest
from datasets import Dataset
from shared_data import read_rows, shared_data
from table_scorer import TableScorer
from tokenizers_for_tests import make_tokenizer

from cloud_hf import CritiqueFormat, TransformersScorer
from cloud_hf.evaluation import evaluate_pairs


def evaluate(rows, rewards, **options):
    scorer = TableScorer(rewards)
    critique_format = CritiqueFormat(make_tokenizer("llama3"))
    return scorer, evaluate_pairs(scorer, Dataset.from_list(rows), critique_format, max_new_tokens=10, **options)


ROWS = [
    {"id": "a", "prompt": "p", "chosen": "good", "rejected": "bad", "subset": "x"},
    {"id": "b", "prompt": "p", "chosen": "bad", "rejected": "good", "subset": "x"},
    {"id": "c", "prompt": "p", "chosen": "good", "rejected": "also", "subset": "y"},
    {"id": "d", "prompt": "p", "chosen": "good", "rejected": "cut", "subset": "y"},
]
REWARDS = {"good": 1.0, "also": 1.0, "bad": -1.0, "cut": 0.5, "": 0.0}


def test_ties_are_wrong_and_reported():
    scorer, result = evaluate(ROWS, REWARDS, group_column="subset", num_critiques=2)
    assert (result.n, result.accuracy, result.ties, result.dropped, result.shortened) == (4, 0.5, 1, 0, 0)
    assert result.critiques_cut == 1 / 8
    assert {name: group["accuracy"] for name, group in result.by_group.items()} == {"x": 0.5, "y": 0.5}
    assert result.ci95 == pytest.approx((0.1500, 0.8500), abs=1e-4)  # Wilson's interval of 2 in 4
    assert [(pair.id, pair.chosen.reward, pair.rejected.reward) for pair in result.pairs][2] == ("c", 1.0, 1.0)
    assert scorer.calls[0][2] == {"max_new_tokens": 10, "num_critiques": 2}
    assert "pairs" not in result.summary()


def test_overlong_rows_are_counted_not_lost():
    rows = [ROWS[0], {**ROWS[0], "id": "long", "prompt": "word " * 300}]
    with pytest.raises(ValueError, match=r"row 1 \(id 'long'\): \d+ tokens with its critique, but the limit is 200"):
        evaluate(rows, REWARDS, context_length=200)
    _, dropped = evaluate(rows, REWARDS, context_length=200, overlong_policy="drop")
    assert (dropped.n, dropped.dropped, dropped.shortened) == (1, 1, 0)
    scorer, shortened = evaluate(rows, REWARDS, context_length=200, overlong_policy="truncate_prompt")
    assert (shortened.n, shortened.dropped, shortened.shortened) == (2, 0, 1)
    prompts = scorer.calls[0][0]
    assert prompts[2] == prompts[3] and prompts[2].startswith("…")
    with pytest.raises(
        ValueError,
        match=r"None of the 1 rows fits .* context of 200 tokens, of which 11 are reserved for the critique",
    ):
        evaluate(rows[1:], REWARDS, context_length=200, overlong_policy="drop")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"chosen": None}, r"row 1 \(id 'a'\): `chosen` is None"),
        ({"prompt": ""}, r"row 1 \(id 'a'\): `prompt` is empty"),
        ({"rejected": None}, "`rejected` is None"),
        ({"id": "HumanEval/3", "prompt": ""}, r"row 1 \(id 'HumanEval/3'\): "),
    ],
)
def test_bad_rows_are_named(row, says):
    with pytest.raises(ValueError, match=says):
        evaluate([ROWS[0], {**ROWS[0], **row}], REWARDS)


def test_bad_rows_are_counted_by_kind_and_dropped_on_request(caplog):
    rows = [*ROWS, {**ROWS[0], "rejected": ""}, {**ROWS[0], "chosen": None}, {**ROWS[0], "rejected": " "}]
    with pytest.raises(
        ValueError, match=r"row 4 .*, row 6 .*: `rejected` is empty.* Also row 5 .*`chosen` is None.*3 of 7"
    ):
        evaluate(rows, REWARDS)
    _, result = evaluate(rows, REWARDS, bad_rows="drop")
    assert result.n == 4 and "3 of 7" in caplog.text
    _, result = evaluate(rows[::-1], REWARDS, bad_rows="drop")
    assert [pair.index for pair in result.pairs] == [3, 4, 5, 6]


def test_missing_columns_are_named():
    with pytest.raises(ValueError, match=r"rejected \(rename 'rejecetd' to 'rejected'"):
        evaluate([{"prompt": "p", "chosen": "good", "rejecetd": "bad"}], REWARDS)
    with pytest.raises(ValueError, match="`group_column` needs the column"):
        evaluate(ROWS, REWARDS, group_column="topic")


def test_every_real_pairwise_file_passes(model, classic_model):
    """Real chats, several turns, long rows, unicode and code; what counts is that nothing breaks or is lost."""
    tokenizer = make_tokenizer("llama3")
    files = scored = 0
    for path in sorted((shared_data() / "eval").iterdir()):
        rows = read_rows(path)[:4]
        if "chosen" not in rows[0] or not isinstance(rows[0]["chosen"], str):
            continue
        files += 1
        rows = Dataset.from_list([{key: row[key] for key in ("id", "prompt", "chosen", "rejected")} for row in rows])
        for judge in (model, classic_model):
            result = evaluate_pairs(
                TransformersScorer(judge, tokenizer),
                rows,
                CritiqueFormat.from_config(judge.config, tokenizer),
                context_length=512,
                overlong_policy="drop" if len(rows) > 1 else "truncate_prompt",
                max_new_tokens=4,
            ) if _some_fit(rows, judge, tokenizer) else None  # fmt: skip
            assert result is None or result.n + result.dropped == len(rows)
            scored += result.n if result else 0
    assert files >= 25 and scored >= 20, (files, scored)


def _some_fit(rows, judge, tokenizer) -> bool:
    critique_format = CritiqueFormat.from_config(judge.config, tokenizer)
    lengths = [
        max(len(critique_format.encode_prefix(row["prompt"], row[side]).input_ids) for side in ("chosen", "rejected"))
        for row in rows
    ]
    return min(lengths) + 5 <= 512
