"""Tool calls in Parquet are read as the same calls in JSON lines."""

import json

import pytest
from datasets import Dataset
from tokenizers_for_tests import make_tokenizer

from cloud_hf import CritiqueFormat
from cloud_hf.data.rows import load_rows
from cloud_hf.training.encoding import encode_pairs


def call(**arguments):
    function = {"name": "look_up", "arguments": arguments}
    return [{"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}]


ASKED = [{"role": "user", "content": "Where?"}, *call(here=True), {"role": "tool", "content": "Paris"}]
ROWS = [
    {"prompt": ASKED, "chosen": call(city="Paris"), "rejected": call(x=1, box={"left": 2})},
    {"prompt": ASKED[:1], "chosen": call(x=2), "rejected": call(box={"right": 3}, city="Rome")},
]
ROWS = [{**row, "chosen_feedback": "Yes.", "rejected_feedback": "No."} for row in ROWS]


@pytest.mark.parametrize("as_file", [True, False])
def test_arguments_that_only_other_rows_have_are_not_read(tmp_path, caplog, as_file):
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    structs = Dataset.from_list(ROWS)
    assert structs[0]["chosen"][0]["tool_calls"][0]["function"]["arguments"] == {"city": "Paris", "x": None}
    structs.to_parquet(tmp_path / "rows.parquet")
    rows = load_rows(str(tmp_path / "rows.parquet")) if as_file else structs
    expected = load_rows(str(tmp_path / "rows.jsonl"))
    critique_format = CritiqueFormat(make_tokenizer("qwen2_5"))
    found, same = (encode_pairs(each, critique_format, None, "error") for each in (rows, expected))
    assert found.to_list() == same.to_list()
    assert "tool calls in prompt, chosen, rejected store their arguments" in caplog.text


def test_nulls_in_json_text_are_kept(tmp_path):
    arguments = json.dumps({"city": None})
    rows = [{"prompt": "Where?", "chosen": call(), "rejected": "Here."}]
    rows[0]["chosen"][0]["tool_calls"][0]["function"]["arguments"] = arguments
    (tmp_path / "rows.jsonl").write_text(json.dumps(rows[0]))
    [row] = load_rows(str(tmp_path / "rows.jsonl"))
    assert row["chosen"][0]["tool_calls"][0]["function"]["arguments"] == arguments
