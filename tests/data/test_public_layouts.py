"""Layouts are recognised by their columns; what fits several or none is refused."""

import json

import pytest
from public_rows import SETS, rows_of
from user_rows import case

from cloud_hf.data.public_layouts import LAYOUTS, find_layout, matching
from cloud_hf.data.rows import check_columns, load_rows


PAIR = ("chosen", "rejected")


@pytest.mark.parametrize("name", SETS)
def test_columns_recognise_a_set(name):
    row = rows_of(name)[0]
    assert find_layout("auto", list(row), row, SOURCE) == SETS[name][0]


@pytest.mark.parametrize(
    ("columns", "fits"),
    [
        (("question", "system", *PAIR), ["orca"]),
        (("prompt", "source", *PAIR, "chosen-rating", "rejected-rating"), ["ultrafeedback_argilla"]),
        (("prompt", *PAIR, "source", "margin"), ["tulu3"]),
        (("conversations", *PAIR, "source"), ["sharegpt"]),
        (("instruction", "prompt", *PAIR), ["alpaca", "tulu3"]),
        (("instruction", "completions", *PAIR), ["ultrafeedback", "alpaca"]),
        (("prompt", "response"), []),
    ],
)
def test_the_most_specific_layouts_fit(columns, fits):
    assert matching(columns) == fits


SOURCE = ("rows.jsonl", "train", None)


def test_what_is_ambiguous_or_unknown_is_named():
    with pytest.raises(
        ValueError, match=r"^rows.jsonl fits `alpaca` \(.*\) and `tulu3` .* The dataset has: instruction"
    ):
        find_layout("auto", ["instruction", "prompt", *PAIR], {"chosen": "a"}, SOURCE)
    with pytest.raises(
        ValueError, match=r"^rows.jsonl fits none of the layouts ultrafeedback, .* The dataset has: text"
    ):
        find_layout("auto", ["text"], {}, SOURCE)
    with pytest.raises(ValueError, match=r"It has chats, but no pairs. Extract their prompts: cloud-hf build-prompts"):
        find_layout("auto", ["messages"], {}, SOURCE)


def test_each_layout_keeps_the_columns_that_it_does_not_replace():
    for name, layout in LAYOUTS.items():
        assert not set(layout.replaced) & {"id", *PAIR}, name


BAD_ROWS = [
    ("Nectar", {"answers": [{"answer": "a"}]}, "`answers` contains .*; each item needs `rank`"),
    ("Nectar", {"answers": "[{'answer'"}, "`answers` is not JSON"),
    ("UltraFeedback", {"completions": None}, "`completions` is None; give a list"),
    ("HelpSteer 3", {"overall_preference": "first"}, "`overall_preference` is 'first'; give a number"),
    ("Chatbot Arena", {"winner": "model_c"}, "`winner` is 'model_c'; it must be model_a, model_b or a tie"),
    ("Chatbot Arena 55k", {"response_a": '["a", "b"]'}, "have different numbers of turns"),
    ("Chatbot Arena 55k", {"response_a": "[1]"}, "must be lists of strings"),
    ("LLaMA-Factory ranking", {"input": 3}, "`instruction` and `input` must be strings"),
    ("WebGPT", {"question": {"id": 1}}, "`question` contains .*; each item needs `full_text`"),
    (
        "Truthy DPO",
        {"prompt": [{"role": "system", "content": "Be rude."}]},
        "`system` differs from the system message in the prompt",
    ),
    ("Truthy DPO", {"prompt": 3}, "the prompt is 3; with a column `system`, it must be text"),
    ("LLaMA-Factory ranking", {"history": [["a", "b"]]}, "`history` contains earlier turns"),
]


@pytest.mark.parametrize(("name", "change", "says"), BAD_ROWS)
def test_a_row_of_another_shape_is_refused(name, change, says):
    with pytest.raises(ValueError, match=says):
        LAYOUTS[SETS[name][0]].read({**rows_of(name)[0], **change})


def test_votes_on_the_first_turn_see_the_first_turn():
    row = rows_of("Chatbot Arena")[0]
    assert list(map(len, LAYOUTS["arena"].read({**row, "turn": 1}).responses)) == [2, 2]


def test_ratings_of_aspects_are_averaged():
    row = rows_of("UltraFeedback")[0]
    for completion, rating in zip(row["completions"], "531", strict=True):
        del completion["fine-grained_score"], completion["overall_score"]
        completion["annotations"]["honesty"]["Rating"] = rating
    assert LAYOUTS["ultrafeedback"].read(row).ratings == [2.75, 3.75, 2.5]
    row["completions"] = [{"response": "a", "overall_score": 7.0}, {"response": "b", "overall_score": 2.0}]
    assert LAYOUTS["ultrafeedback"].read(row).ratings == [7.0, 2.0]
    assert json.dumps(row)


def test_the_column_system_comes_before_a_prompt_of_any_form():
    turns = {"from": "human", "value": "q"}, {"role": "user", "content": "q"}
    for turn, system in zip(
        turns, ({"from": "system", "value": "s"}, {"role": "system", "content": "s"}), strict=True
    ):
        row = {"conversations": [turn], "chosen": "a", "rejected": "b", "system": "s"}
        assert LAYOUTS["sharegpt"].read(row).given["prompt"] == [system, turn]
        assert LAYOUTS["sharegpt"].read({**row, "conversations": [system, turn]}).given["prompt"] == [system, turn]


@pytest.mark.parametrize(
    ("name", "output"), [("data/*.parquet", "dataset"), ("my data.jsonl", "my-data"), ("a/b", "b")]
)
def test_the_command_names_a_folder(name, output):
    with pytest.raises(ValueError, match=rf" --output_dir {output}-pairs$"):
        check_columns(["prompt", "answers"], PAIR, "Rows", (name, "train", None))


def test_responses_under_other_names_are_named():
    with pytest.raises(
        ValueError, match=r"If the responses are in winner, loser, name the better one chosen .* Otherwise"
    ):
        check_columns(["prompt", "winner", "loser"], PAIR, "Rows", SOURCE)
    with pytest.raises(ValueError, match=r"If the responses are in accepted, name the better one chosen"):
        check_columns(["prompt", "accepted", "rejected"], PAIR, "Rows", SOURCE)


HINTS = [
    ("05_helpsteer2", "It looks like HelpSteer 2. Convert it: cloud-hf prepare --layout helpsteer2 --dataset_name rows.jsonl"),
    ("08_nectar", "It looks like Nectar. Convert it: cloud-hf prepare --layout nectar .* --output_dir rows-pairs"),
    ("41_messages", "It has chats, but no pairs. .* cloud-hf build-prompts .* --prompt_column messages --drop_last_answer True"),
    ("44_hh_prompt", "It has prompts, but no pairs. Build them: cloud-hf build-preferences --dataset_name rows.jsonl"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "says"), HINTS)
def test_missing_columns_lead_to_the_command_that_makes_pairs(name, says):
    columns = load_rows(case(f"{name}.jsonl")).column_names
    with pytest.raises(ValueError, match=rf"needs the column\(s\) chosen, rejected\. .* {says}"):
        check_columns(columns, PAIR, "The train dataset", SOURCE)


@pytest.mark.parametrize("name", SETS)
def test_what_training_does_not_read_is_refused_with_its_layout(name):
    layout = SETS[name][0]
    columns = list(rows_of(name)[0])
    if {"prompt", *PAIR} <= {*columns} or LAYOUTS[layout].direct:
        check_columns(columns, PAIR, "Rows")
    else:
        with pytest.raises(ValueError, match=f"--layout {layout} --dataset_name DATASET"):
            check_columns(columns, PAIR, "Rows")


def test_the_command_names_split_and_configuration():
    with pytest.raises(
        ValueError, match="--dataset_name org/set --dataset_config c --dataset_split test --output_dir"
    ):
        check_columns(["prompt", "answers"], PAIR, "Rows", ("org/set", "test", "c"))
