"""Rows of every form become a prompt and two responses, or are refused in one sentence."""

import json
import logging

import pytest
from datasets import Dataset
from tokenizers_for_tests import make_tokenizer
from user_rows import CHATS, FORMS, TRANSCRIPT, assistant, sharegpt, user

from cloud_hf import CritiqueFormat
from cloud_hf.data.preference_rows import POSITION, read_preference, read_preferences, read_prompts
from cloud_hf.data.row_values import judged_chat
from cloud_hf.data.rows import load_rows
from cloud_hf.training.encoding import encode_pairs


CALL = [{"type": "function", "function": {"name": "look", "arguments": '{"cup": "A", "box": null}'}}]


@pytest.mark.parametrize("row", FORMS.values(), ids=FORMS)
def test_reading_twice_changes_nothing(row):
    once = read_preferences(Dataset.from_list([row]), "rows")
    assert list(read_preferences(once, "rows")) == list(once)


def test_forms_are_named_once_with_their_count(caplog):
    with caplog.at_level(logging.INFO):
        read_preferences(Dataset.from_list([FORMS["whole transcripts"]] * 3), "The set")
    assert caplog.messages == [
        "The set: 3 rows are read as complete chats (transcripts), whose common turns are the prompt."
    ]


def test_the_common_beginning_of_texts_is_the_prompt():
    found = read_preference({"chosen": "The sky is blue today.", "rejected": "The sky is blurry."})
    assert found[1:] == ("The sky is", "blue today.", "blurry.")


def test_chats_that_part_early_keep_their_own_turns():
    row = {
        "chosen": [*CHATS[:1], assistant("a"), user("more"), assistant("A")],
        "rejected": [*CHATS[:1], assistant("b"), user("less"), assistant("B")],
    }
    found = read_preference(row)
    assert found.prompt == CHATS[:1]
    assert judged_chat(found.prompt, found.chosen) == ([*CHATS[:1], assistant("a"), user("more")], "A")
    assert judged_chat(found.prompt, found.rejected) == ([*CHATS[:1], assistant("b"), user("less")], "B")
    [pair] = encode_pairs(Dataset.from_list([row]), CritiqueFormat(make_tokenizer("llama3"), False), None, "error")
    assert make_tokenizer("llama3").decode(pair["rejected_ids"]).count("less") == 1


def test_fields_of_messages_are_kept():
    row = {"prompt": [user("q")], "chosen": [assistant("x", tool_calls=CALL)], "rejected": [assistant("x")]}
    found = read_preference(row)
    assert found.chosen == [assistant("x", tool_calls=CALL)] and found.rejected == "x"
    assert judged_chat(found.prompt, found.chosen)[1] == assistant("x", tool_calls=CALL)
    turns = [assistant("look", tool_calls=CALL), {"role": "tool", "content": "A"}, assistant("It is A.")]
    found = read_preference({**row, "chosen": turns})
    assert judged_chat(found.prompt, found.chosen) == ([user("q"), *turns[:2]], "It is A.")
    as_json = {side: json.dumps([{"role": "assistant", "tool_calls": CALL}]) for side in ("chosen", "rejected")}
    assert read_preference({"prompt": "q", **as_json}).chosen == [{"role": "assistant", "tool_calls": CALL}]
    reasoning = assistant("4", reasoning_content="two and two")
    assert read_preference({**row, "chosen": reasoning}).chosen == [reasoning]


ROW = {"prompt": "q", "chosen": "a", "rejected": "b"}
BAD = [
    ({"chosen": None}, "`chosen` is None; give a string or a list of chat messages"),
    ({"chosen": []}, r"`chosen` is \[\]"),
    ({"rejected": " "}, "`rejected` is empty"),
    ({"chosen": [user("q")], "rejected": [user("q")]}, "complete chats without a common user turn"),
    ({"chosen": [user("p"), assistant("a")], "rejected": [user("p"), assistant("b")]}, "have no common user turn with this text"),
    ({"prompt": [user("x")], "chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]}, "do not begin"),
    ({"chosen": [user("q"), assistant("a")], "rejected": [assistant("b")]}, "a complete chat and the other only a response"),
    ({"chosen": [assistant("a")], "rejected": "b"}, "`chosen` was read as messages but `rejected` as text"),
    ({"chosen": [assistant("a"), user("q")], "rejected": [assistant("b"), user("q")]}, "ends with a 'user' turn"),
    ({"chosen": [assistant([{"type": "image_url"}])], "rejected": [assistant("b")]}, "content part .*image_url.*text only"),
    ({"chosen": [sharegpt("alien", "a")], "rejected": [sharegpt("gpt", "b")]}, "turn 0 is .*alien.*give `value` as text"),
    ({"chosen": [sharegpt("function_call", "a")], "rejected": [sharegpt("gpt", "b")]}, "message with `tool_calls`"),
    ({"chosen": "[{'role': 'assistant', 'content': 'a'}]"}, "could be text, or chat messages that are not valid JSON"),
    ({"chosen": ["a", "c"], "rejected": ["b", "d"]}, "`chosen` contains 2 strings; put each pair in its own row"),
    ({"prompt": '{"messages": [{"role": "user", "content": "q"}]}'}, "could be text, or a JSON-encoded chat with the key `messages`"),
    ({"prompt": "", "chosen": "a"}, "`prompt` is empty"),
    ({"prompt": [{"role": "human", "content": "q"}]}, "`prompt` message 0 has the role 'human'; use 'user'"),
    ({"chosen": [{"role": "bot", "content": "a"}], "rejected": [{"role": "bot", "content": "b"}]}, "the role 'bot'; use 'assistant'"),
    ({"prompt": "Be kind.\n\nHuman: Hi\n\nAssistant:"}, "could be one message, or a preamble followed by"),
    ({"chosen": [{"role": "User", "content": "q"}, assistant("a")], "rejected": [{"role": "User", "content": "q"}, assistant("b")]}, "the role 'User'; use 'user'"),
    ({"prompt": {"messages": "q"}}, "`prompt` contains 'q'; give a list of chat messages"),
    ({"prompt": [user(3)]}, "`prompt` message 0: `content` is 3; give text"),
    ({"prompt": [sharegpt(["human"], "q")]}, "turn 0 is .*give `value` as text"),
    ({"chat_template_kwargs": {"enable_thinking": False}}, "`chat_template_kwargs` are set per row"),
]  # fmt: skip
ABSENT = [
    ({"chosen": "Yes.", "rejected": "No."}, "no common beginning; add the column `prompt`"),
    ({"query": "q", "chosen": "It is A.", "rejected": "It is B."}, "there is no `prompt`; rename `query` to `prompt`"),
    (
        {"chosen": f"Be kind.{TRANSCRIPT} a", "rejected": f"Be kind.{TRANSCRIPT} b"},
        "a preamble followed by a transcript",
    ),
    ({"chosen": "<|im_start|>user a", "rejected": "<|im_start|>user b"}, "rendered by a template"),
    ({"chosen": [assistant("a")], "rejected": [assistant("b")]}, "there is no `prompt`; add the column"),
    ({"chosen": "\n\nHuman: Hi\n\nAssistant:", "rejected": "\n\nHuman: Hi\n\nAssistant: b"}, "`chosen` is empty"),
]


@pytest.mark.parametrize(("row", "says"), [*(({**ROW, **change}, says) for change, says in BAD), *ABSENT])
def test_rows_that_cannot_be_read_are_refused(row, says):
    with pytest.raises(ValueError, match=says):
        read_preference(row)


def test_mixed_forms_are_an_error_that_says_what_was_found():
    rows = Dataset.from_list([ROW, ROW, {**ROW, "prompt": TRANSCRIPT}])
    with pytest.raises(
        ValueError,
        match=r"mixes rows of different forms.*2 rows as prompt as text.*\(row 0\); 1 rows as prompt as transcripts",
    ):
        read_preferences(rows, "The set", bad_rows="drop")


def test_bad_rows_are_left_out_with_a_count_or_stop(caplog):
    rows = Dataset.from_list([ROW, {**ROW, "chosen": ""}, {**ROW, "rejected": None}, *[{**ROW, "chosen": " "}] * 4])
    with pytest.raises(
        ValueError, match=r"row 1, row 3, row 4 and 2 more: `chosen` is empty\. Also row 2: .*Bad rows: 6 of 7"
    ):
        read_preferences(rows, "The set")
    assert len(read_preferences(rows, "The set", bad_rows="drop")) == 1 and "6 of 7" in caplog.text
    with pytest.raises(ValueError, match="All 6 rows are bad"):
        read_preferences(rows.select(range(1, 7)), "The set", bad_rows="drop")


@pytest.mark.parametrize("prompt", [ROW["prompt"], TRANSCRIPT, [{"role": "user", "content": "Hi"}]])
def test_rows_keep_their_positions_on_request(prompt):
    """Whether they are converted or not; without the request, no column is added."""
    row = {**ROW, "prompt": prompt}
    rows = Dataset.from_list([{**row, "chosen": ""}, row, {**row, "rejected": None}, row])
    assert read_preferences(rows, "The set", bad_rows="drop", numbered=True)[POSITION] == [1, 3]
    assert POSITION not in read_preferences(rows, "The set", bad_rows="drop").column_names
    prompts = Dataset.from_list([{"prompt": None}, {"prompt": prompt}])
    assert read_prompts(prompts, "The set", "drop", numbered=True)[POSITION] == [1]
    assert POSITION not in read_prompts(prompts, "The set", "drop").column_names


def test_equal_responses_are_counted(caplog):
    read_preferences(Dataset.from_list([ROW, {**ROW, "rejected": "a"}]), "The set")
    assert "chosen and rejected are the same in 1 of 2 rows" in caplog.text


def test_a_column_system_that_is_not_read_is_named(caplog):
    read_preferences(Dataset.from_list([{**ROW, "system": text} for text in ("", "Be kind.")]), "The set")
    assert (
        "the column `system` is ignored, but 1 rows have a value there. Make it the prompt's first message"
        in caplog.text
    )


def test_prompts_rendered_by_a_template_are_refused():
    rendered = {**ROW, "prompt": "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"}
    with pytest.raises(ValueError, match="The set: 2 of 3 prompts look like chats rendered by a template"):
        read_preferences(Dataset.from_list([rendered, rendered, ROW]), "The set")
    assert len(read_preferences(Dataset.from_list([rendered, ROW]), "The set")) == 2


def test_a_row_that_is_not_text_is_named(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(
        b'{"prompt": "q", "chosen": "a", "rejected": "b"}\n{"prompt": "q", "chosen": "\xff", "rejected": "b"}'
    )
    rows = load_rows(str(tmp_path / "rows.jsonl"))
    with pytest.raises(ValueError, match="row 1: it is not UTF-8"):
        read_preferences(rows, "The set")


def test_prompts_alone():
    for prompt, messages in ((TRANSCRIPT, CHATS), (CHATS[0], CHATS[:1])):
        assert read_prompts(Dataset.from_list([{"prompt": prompt}]), "The set")[0]["prompt"] == messages


def test_the_format_of_a_dataset_changes_nothing():
    rows = Dataset.from_list([ROW] * 2).with_format("numpy")
    assert read_preferences(rows, "The set").to_list() == [ROW] * 2
