import pytest
from datasets import Dataset

from cloud_hf.data.builders.prompt_sources import PromptSource, canonical, plain_prompt, prompt_id, turns
from cloud_hf.data.rows import load_rows


def source(values, **options):
    return PromptSource("s", Dataset.from_dict({"prompt": values}), "prompt", **options)


def test_strings_and_chats_are_read_as_they_are():
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " Why? "}]
    for values in ([" Why?\n", "How"], [chat, chat[1:]]):
        outcomes = list(source(values).read())
        assert [outcome.prompt for outcome in outcomes] == values
        assert [outcome.row for outcome in outcomes] == [0, 1]


def test_rows_that_hold_no_prompt_are_named_with_their_reason():
    outcomes = list(source(["fine", None, "", " \n\t", "fine too"]).read())
    assert [getattr(outcome, "reason", None) for outcome in outcomes] == [None, "not a prompt", "empty", "empty", None]
    assert outcomes[1].details["error"] == "`prompt` is None; give a string or a list of chat messages."

    answered = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    empty = [{"role": "user", "content": " "}]
    outcomes = list(source([answered, empty, [], answered[:1]]).read())
    assert [getattr(outcome, "reason", None) for outcome in outcomes] == ["not a prompt"] * 3 + [None]
    assert "ends on a 'assistant' turn" in outcomes[0].details["error"]


def test_rows_with_tools_are_no_prompts():
    rows = Dataset.from_dict({"prompt": ["a", "b", "c", "d"], "tools": ["[{}]", None, "", "[]"]})
    outcomes = list(PromptSource("s", rows, "prompt").read())
    assert [getattr(outcome, "reason", None) for outcome in outcomes] == ["not a prompt", None, None, None]
    assert outcomes[0].details["error"] == "`prompt` comes with tools; only text is kept."


def test_trajectories_of_one_turn_are_prompts():
    turn = {"from": "user", "value": "Solve it."}
    answer = {"from": "assistant", "value": "How?"}
    outcomes = list(source([[turn], [turn, answer, turn], []], trajectories=True).read())
    assert outcomes[0].prompt == "Solve it."
    assert [outcome.reason for outcome in outcomes[1:]] == ["several turns", "not a prompt"]


def test_what_a_prompt_dataset_cannot_keep_is_refused():
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    with pytest.raises(ValueError, match="message 1 has tool_calls"):
        plain_prompt([{"role": "user", "content": "a"}, call, {"role": "tool", "content": "b"}])
    with pytest.raises(ValueError, match="comes with tools"):
        plain_prompt({"messages": [{"role": "user", "content": "a"}], "tools": [{"type": "function"}]})
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert plain_prompt(parts) == [{"role": "user", "content": "a\nb"}]
    assert plain_prompt([{"role": "user", "content": "a", "tool_calls": [], "name": None}]) == turns_as_chat("a")


def turns_as_chat(text):
    return [{"role": role, "content": content} for role, content in turns(text)]


def test_bytes_that_are_no_utf8_are_a_reason_and_not_an_end(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'{"prompt": "fine"}\n{"prompt": "not \xff fine"}\n{"prompt": "fine too"}\n')
    outcomes = list(PromptSource("s", load_rows(str(tmp_path / "rows.jsonl")), "prompt").read())
    assert [getattr(outcome, "reason", None) for outcome in outcomes] == [None, "not UTF-8", None]


def test_ids_are_the_same_everywhere():
    """Written out: a changed value would change every id that was ever made."""
    assert prompt_id("ultrafeedback", "What is 2+2?") == "b4e30ccad3b1c63d"
    assert (
        prompt_id("s", [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Où?"}])
        == "434a3a29637e2740"
    )


def test_ids_depend_on_source_and_text_alone():
    one = {outcome.prompt: outcome.id for outcome in source(["a", "b", "c"]).read()}
    other = {outcome.prompt: outcome.id for outcome in source(["c", "x", "a"]).read()}
    assert one["a"] == other["a"] and one["c"] == other["c"]
    assert len({*one.values(), *other.values()}) == 4
    assert prompt_id("s", "a") != prompt_id("t", "a")


def test_spellings_of_one_prompt():
    assert canonical("Où  est\nla balle ? ") == canonical("Ou\u0300 est la balle ?")
    assert canonical("a") == canonical([{"role": "user", "content": "a"}])
    distinct = [
        "a",
        "A",
        "ab",
        "a b",
        [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
        '[["user", "a"]]',
    ]
    assert len({canonical(prompt) for prompt in distinct}) == len(distinct)
