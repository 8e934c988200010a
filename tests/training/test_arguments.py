import pytest
from datasets import Dataset
from trainers_for_tests import make_rows
from trl import ModelConfig

from cloud_hf.training.arguments import DataArguments, model_name, split_by_prompt


def test_all_rows_of_a_prompt_are_on_one_side():
    rows = Dataset.from_list([{"prompt": f"Question {i % 40}", "number": i} for i in range(120)])
    train, test = split_by_prompt(rows, 0.05)
    assert len(set(test["prompt"])) == 2 and len(test) == 6
    assert not set(train["prompt"]) & set(test["prompt"])
    assert sorted([*train["number"], *test["number"]]) == list(range(120))
    again = split_by_prompt(rows.select(range(119, -1, -1)), 0.05)[1]
    assert set(again["number"]) == set(test["number"])  # by contents, not by order


def test_chats_are_prompts_too():
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": f"{i % 4}"}]} for i in range(8)])
    train, test = split_by_prompt(rows, 0.5)
    assert len(train) == len(test) == 4


@pytest.mark.parametrize("test_size", [0.0, 1.0, 5.0, 0.01, float("nan")])
def test_a_share_that_leaves_a_side_empty(test_size):
    with pytest.raises(ValueError, match="leaves one side of 16 prompts empty"):
        split_by_prompt(make_rows(16), test_size)


def test_where_evaluation_rows_come_from(tmp_path):
    make_rows(20).to_json(tmp_path / "rows.jsonl")
    args = DataArguments(str(tmp_path / "rows.jsonl"), test_size=0.25)
    train, test = args.load("steps")
    assert (len(train), len(test)) == (15, 5)
    args.eval_dataset_name = str(tmp_path / "rows.jsonl")
    for strategy in ("steps", "no"):
        with pytest.raises(ValueError, match="holds training rows out for evaluation"):
            args.load(strategy)


def test_a_model_folder_that_does_not_exist():
    with pytest.raises(FileNotFoundError, match=r"There is no folder runs/a/base"):
        model_name(ModelConfig("runs/a/base"))
