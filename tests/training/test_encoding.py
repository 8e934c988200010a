import logging

import pytest
from datasets import Dataset
from tokenizers_for_tests import make_tokenizer

from cloud_hf import CritiqueFormat
from cloud_hf.training.encoding import encode_critiques, encode_pairs


ROW = {
    "id": "a",
    "prompt": "What is 12 + 30?",
    "chosen": "It is 42.",
    "rejected": "It is 43.",
    "chosen_feedback": "Right.",
    "rejected_feedback": "Wrong sum.",
}
LONG = {**ROW, "prompt": "word " * 300}


def encode(*rows, critique=True, max_length=None, policy="error", function=encode_pairs):
    critique_format = CritiqueFormat(make_tokenizer("llama3"), critique=critique)
    return function(Dataset.from_list(list(rows)), critique_format, max_length, policy)


def test_ids_are_those_of_the_format():
    critique_format = CritiqueFormat(make_tokenizer("llama3"))
    [pair] = encode(ROW)
    for side in ("chosen", "rejected"):
        encoded = critique_format.encode(ROW["prompt"], ROW[side], ROW[f"{side}_feedback"])
        assert pair[f"{side}_ids"] == list(encoded.input_ids)
        assert pair[f"{side}_prefix_length"] == encoded.prefix_length
    assert set(pair) == {"chosen_ids", "rejected_ids", "chosen_prefix_length", "rejected_prefix_length"}


def test_classic_needs_no_critiques_and_trl_message_form_is_taken():
    plain = {key: ROW[key] for key in ("prompt", "chosen", "rejected")}
    messages = {
        "prompt": [{"role": "user", "content": ROW["prompt"]}],
        "chosen": [{"role": "assistant", "content": ROW["chosen"]}],
        "rejected": [{"role": "assistant", "content": ROW["rejected"]}],
    }
    assert list(encode(plain, critique=False)) == list(encode(messages, critique=False))


def test_generated_ids_win_over_text():
    tokenizer = make_tokenizer("llama3")
    # the same text in other tokens: letter by letter
    ids = [tokenizer.convert_tokens_to_ids(letter) for letter in ["Ġ", *"Right", "."]]
    assert ids != tokenizer(" Right.", add_special_tokens=False)["input_ids"]
    [pair] = encode({**ROW, "chosen_feedback_ids": ids, "rejected_feedback_ids": ids, "rejected_feedback": "Right."})
    assert pair["chosen_ids"][pair["chosen_prefix_length"] : -1] == ids


def test_several_critiques_train_in_pairs():
    row = {**ROW, "chosen_feedback": ["A.", "B."], "rejected_feedback": ["C.", "D."]}
    row |= {"chosen_finish_reason": ["stop", "length"], "rejected_finish_reason": ["stop", "length"]}
    pairs = encode(row)
    texts = [
        [make_tokenizer("llama3").decode(pair[f"{side}_ids"][pair[f"{side}_prefix_length"] : -1]) for side in ("chosen", "rejected")]
        for pair in pairs
    ]  # fmt: skip
    assert texts == [[" A.", " C."], [" B.", " D."]]
    assert pairs["cut"] == [0, 2]


def test_sft_rows_carry_loss_on_critiques_alone():
    rows = encode(
        {**ROW, "chosen_feedback": ["A.", "B."], "rejected_feedback": ["C.", "D."]}, function=encode_critiques
    )
    tokenizer = make_tokenizer("llama3")
    learned = {tokenizer.decode([i for i in row["labels"] if i != -100]) for row in rows}
    assert learned == {f" {letter}.<|eot_id|>" for letter in "ABCD"}
    for row in rows:
        assert len(row["input_ids"]) == len(row["labels"])
        assert all(label in (-100, token) for label, token in zip(row["labels"], row["input_ids"], strict=True))


def test_margins_are_kept():
    assert encode({**ROW, "margin": 2})["margin"] == [2.0]
    with pytest.raises(ValueError, match="`margin` is True; give a number"):
        encode({**ROW, "margin": True})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"prompt": None}, r"row 1 \(id 'a'\): `prompt` is None"),
        ({"prompt": " "}, "row 1 .*`prompt` is empty"),
        ({"chosen": ""}, "row 1 .*`chosen` is empty"),
        ({"rejected": None}, "row 1 .*`rejected` is None"),
        ({"chosen_feedback": None}, "row 1 .*`chosen_feedback` is None"),
        ({"chosen_feedback": "  "}, "row 1 .*`chosen_feedback` contains an empty"),
        ({"margin": None}, "row 1 .*`margin` is None"),
        ({"margin": float("nan")}, "row 1 .*`margin` is nan"),
    ],
)
def test_bad_rows_are_named(change, says):
    with pytest.raises(ValueError, match=says):
        encode({**ROW, "margin": 0.5}, {**ROW, "margin": 0.5, **change})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"chosen_feedback": ["A.", "B."], "rejected_feedback": ["C."]}, "contains 2 critique.* but `rejected_feedback` contains 1"),
        ({"chosen_feedback": ["A.", "B."], "rejected_feedback": ["C.", "D."], "chosen_feedback_ids": [[5]]}, "2 critique.* but `chosen_feedback_ids` contains 1"),
        ({"chosen_feedback": [], "rejected_feedback": []}, "non-empty list"),
        ({"chosen_finish_reason": "stop"}, "give one per critique in both columns"),
        ({"chosen_feedback_ids": [5, 6, 7]}, "do not decode to"),
        ({"chosen_feedback_ids": [5, -1]}, "`chosen_feedback_ids` contain -1"),
        ({"prompt": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}, "ends on a 'assistant'"),
    ],
)  # fmt: skip
def test_bad_critiques_and_messages_are_named(change, says):
    with pytest.raises(ValueError, match=f"train dataset, row 0 .*{says}"):
        encode({**ROW, **change})


def test_an_empty_dataset_says_so():
    with pytest.raises(ValueError, match="train dataset has no rows"):
        encode_pairs(Dataset.from_list([ROW]).select([]), CritiqueFormat(make_tokenizer("llama3")), None, "error")


def test_missing_and_misspelt_columns_are_named():
    row = {("choosen" if key == "chosen" else key): value for key, value in ROW.items()}
    with pytest.raises(ValueError, match=r"needs the column\(s\) chosen \(rename 'choosen' to 'chosen'"):
        encode(row)
    with pytest.raises(ValueError, match=r"needs the column\(s\) chosen_feedback, rejected_feedback"):
        encode({key: ROW[key] for key in ("prompt", "chosen", "rejected")})


def test_overlong_rows(caplog):
    with pytest.raises(ValueError, match=r"row 1 .*\d+ tokens with its critique, but the limit is 150"):
        encode(ROW, LONG, max_length=150)
    with caplog.at_level(logging.WARNING):
        assert len(encode(ROW, LONG, max_length=150, policy="drop")) == 1
        assert "dropped 1 of 2 rows because they are over-long" in caplog.text
        pairs = encode(ROW, LONG, max_length=150, policy="truncate_prompt")
        assert "the prompt was shortened in 1 pair(s)" in caplog.text
    assert len(pairs) == 2 and 130 < max(map(len, pairs["rejected_ids"])) <= 150
    contexts = [pairs[1][f"{side}_ids"][: pairs[1][f"{side}_prefix_length"]] for side in ("chosen", "rejected")]
    shared = sum(a == b for a, b in zip(*contexts, strict=False))
    assert shared > 50  # both responses see the same shortened prompt
    with pytest.raises(ValueError, match="no rows left: all 1 are over-long"):
        encode({**ROW, "chosen": "word " * 300}, max_length=150, policy="truncate_prompt")


def test_dropped_thinking_is_counted(caplog):
    row = {**ROW, "chosen": "<think>hm</think>It is 42."}
    with caplog.at_level(logging.WARNING):
        encode_pairs(Dataset.from_list([row]), CritiqueFormat(make_tokenizer("qwen3")), None, "error")
    assert "the chat template changes 1 response(s)" in caplog.text
