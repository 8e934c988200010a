"""Whatever a message holds is shown to the model, or refused: no field is dropped in silence."""

import copy
import json
import pickle
import re

import pytest
from tokenizers_for_tests import CRITIQUE_ROLE, FAMILIES, NO_SYSTEM, make_tokenizer

from cloud_hf import CritiqueFormat


ARGUMENTS = {
    "city": "Oslo",
    "days": 3,
    "wind": 1.5,
    "hourly": True,
    "unit": None,
    "tags": ["a", "b"],
    "box": {"x": ""},
}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}
OTHER_CALL = {"id": "c2", "type": "function", "function": {"name": "time", "arguments": {}}}
QUESTION, ANSWER = {"role": "user", "content": "Weather in Oslo?"}, {"role": "assistant", "content": "Cold."}
# One field of a message and what it may hold; the message lies in the prompt (before a user's turn) or is the response
EXTRAS = {
    "reasoning_content": "It is winter.",
    "reasoning": "It is winter.",
    "thinking": "It is winter.",
    "name": "ann",
    "refusal": "I must not.",
    "function_call": {"name": "weather", "arguments": "{}"},
    "weight": 1,
    "prefix": True,
    "annotations": [{"type": "note", "text": "n"}],
    "tool_calls": [CALL],
}


def make_format(family, **kwargs):
    return CritiqueFormat(make_tokenizer(family), critique_role=CRITIQUE_ROLE.get(family, "user"), **kwargs)


def conversations(family):
    """Chats that end with the response, in which messages hold more than text."""
    fine = {"role": "assistant", "content": "Fine."}
    turns = [QUESTION, ANSWER, {"role": "user", "content": "And now?"}, fine]
    for field, value in EXTRAS.items():
        for index in range(4):
            yield [{**turn, field: value} if place == index else turn for place, turn in enumerate(turns)]
    if family not in NO_SYSTEM:
        yield [{"role": "system", "content": "Be brief."}, *turns]
    call, both = {"role": "assistant", "content": "", "tool_calls": [CALL]}, [CALL, OTHER_CALL]
    result = {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "-3"}
    other = {"role": "tool", "tool_call_id": "c2", "content": "12:00"}
    yield [QUESTION, call, result, fine]
    yield [QUESTION, call, {"role": "tool", "content": "-3"}, turns[2], fine]
    yield [QUESTION, {**call, "tool_calls": both}, result, other, fine]
    yield [QUESTION, {**call, "tool_calls": [OTHER_CALL]}]
    yield [QUESTION, {"role": "assistant", "tool_calls": both}]


def variants(value, in_arguments=False):
    """Yield a value with one thing in it changed, and the path of that thing."""
    if isinstance(value, dict):
        for name, item in value.items():
            others = {key: other for key, other in value.items() if key != name}
            for path, changed in variants(item, in_arguments or name == "arguments"):
                yield (name, *path), {**value, name: changed}
            if in_arguments:
                yield (name,), others
                yield (name,), {**others, f"{name}Q": item}
    elif isinstance(value, list):
        for place, item in enumerate(value):
            for path, changed in variants(item, in_arguments):
                yield (place, *path), [*value[:place], changed, *value[place + 1 :]]
        yield (), value[:-1]
    elif isinstance(value, bool):
        yield (), not value
    else:
        yield (), f"{value}Q" if isinstance(value, str) else 7 if value is None else value + 1


def ids_of(critique_format, prompt, response):
    """The ids, or why there are none."""
    try:
        return critique_format.encode(prompt, response, "Good.").input_ids
    except ValueError as error:
        return str(error)


def is_label(path, chat):
    """The id of a call that no result names is a label without meaning."""
    if not path or path[-1] != "id":
        return False
    place = chat
    for part in path:
        place = place[part]
    return place not in [message.get("tool_call_id") for message in chat[:-1]]


@pytest.mark.parametrize("keep_thinking", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_any_field_changed_changes_the_ids_or_is_refused(family, keep_thinking):
    critique_format = make_format(family, keep_thinking=keep_thinking)
    plain = ids_of(critique_format, [QUESTION, ANSWER, {"role": "user", "content": "And now?"}], "Fine.")
    silent = []
    for chat in conversations(family):
        before = ids_of(critique_format, chat[:-1], chat[-1])
        if isinstance(before, str):
            continue
        if before == plain:
            silent.append(chat)
        for path, (*prompt, response) in variants(chat):
            if prompt and not is_label(path, chat) and ids_of(critique_format, prompt, response) == before:
                silent.append((path, chat))
    assert not silent, f"{len(silent)} changes are not seen, first: {silent[0]}"


@pytest.mark.parametrize("family", ["llama3_1", "qwen2_5", "qwen3"])
def test_arguments_as_json_text_are_arguments(family):
    critique_format = make_format(family)

    def ids(arguments, **extra):
        call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}, **extra}
        result = {"role": "tool", "tool_call_id": "c1", "content": "-3"}
        prompt = [QUESTION, {"role": "assistant", "content": None, "tool_calls": [call]}, result]
        return critique_format.encode(prompt, "Cold.", "Good.").input_ids

    assert ids(json.dumps(ARGUMENTS)) == ids(ARGUMENTS)
    assert ids("") == ids("{}") == ids(None) == ids({})
    assert ids({"unit": None}) != ids({})
    assert "null" in critique_format.tokenizer.decode(ids('{"unit": null}'))
    for arguments, says in (
        ("{", "not JSON"),
        ("[1]", "must be a JSON object"),
        ('{"a": 1, "a": 2}', "a name occurs twice"),
    ):
        with pytest.raises(ValueError, match=f"message 1, tool call 0.* `arguments` .*{says}"):
            ids(arguments)
    with pytest.raises(ValueError, match="has the type 'custom'"):
        ids({}, type="custom")


def test_the_order_of_a_calls_name_and_arguments_does_not_matter():
    """The OpenAI client and vLLM put the arguments first, and some templates show the function as it is."""
    tokenizer = copy.deepcopy(make_tokenizer("llama3_1"))
    calls = "{% for message in messages %}{% for call in message.tool_calls %}{{ call.function | tojson }}"
    tokenizer.chat_template = f"{calls}{{% endfor %}}{{% endfor %}}{tokenizer.chat_template}"
    critique_format = CritiqueFormat(tokenizer)
    function = {"name": "weather", "arguments": ARGUMENTS}
    texts = [
        critique_format.encode_prefix(
            "x", {"role": "assistant", "content": "", "tool_calls": [{"function": dict(fields)}]}
        ).text
        for fields in (function.items(), reversed(function.items()))
    ]
    assert texts[0] == texts[1] and '{"name": "weather", "arguments": ' in texts[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_null_and_empty_fields_are_nothing(family):
    """As `model_dump()` of a message of the OpenAI client has them."""
    critique_format = make_format(family)
    nothing = {
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": None,
        "name": "",
    }
    plain = [QUESTION, ANSWER, {"role": "user", "content": "And now?"}]
    full = [{**turn, **nothing, "content": [{"type": "text", "text": turn["content"], "x": None}]} for turn in plain]
    ids = critique_format.encode(plain, "Fine.", "Good.").input_ids
    assert critique_format.encode(full, {**ANSWER, **nothing, "content": "Fine."}, "Good.").input_ids == ids


def test_responses_that_differ_only_in_their_calls_are_told_apart():
    def ids(family, cup):
        call = {"type": "function", "function": {"name": "look", "arguments": {"cup": cup}}}
        response = {"role": "assistant", "content": "Let me look.", "tool_calls": [call]}
        critique_format = make_format(family)
        return critique_format.tokenizer.decode(critique_format.encode("Where is it?", response, "Good.").input_ids)

    for family in ("qwen2_5", "qwen3"):
        assert '{"cup": "A"}' in ids(family, "A") and '{"cup": "B"}' in ids(family, "B")
    # One template knows no calls, the other shows a call but not the text next to it
    for family, field in (("llama3", r"tool_calls\[0\].function.name"), ("llama3_1", "content")):
        with pytest.raises(ValueError, match=f"does not show `{field}` of the response"):
            ids(family, "A")


# Writes arguments as some families do, but only texts in lists
PARAMETERS = """{% for turn in messages %}<|im_start|>{{ turn.role }}\n{{ turn.content }}{% for call in turn.tool_calls or [] %}\
{{ call.function.name }}{% for name, value in call.function.arguments.items() %}{{ name }}:{% if value is string or value is boolean %}\
{{ value }}{% else %}{{ value | select('string') | join }}{% endif %}\n{% endfor %}{% endfor %}<|im_end|>\n{% endfor %}"""


def test_arguments_that_are_not_written_as_json():
    tokenizer = copy.copy(make_tokenizer("qwen3"))
    tokenizer.chat_template = PARAMETERS
    critique_format = CritiqueFormat(tokenizer)

    def encode(arguments):
        call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
        return critique_format.encode("x", {**ANSWER, "tool_calls": [call]}, "Good.").input_ids

    assert encode({}) != encode({"a": True, "b": ["x"], "c": True}) != encode({"a": True, "b": ["x"], "c": False})
    with pytest.raises(ValueError, match=r"does not show `tool_calls\[0\].function.arguments`"):
        encode({"a": True, "b": [True], "c": True})


@pytest.mark.parametrize(("field", "value"), [("arguments", False), ("arguments", [True]), ("type", "function")])
@pytest.mark.parametrize("family", ["llama3_1", "qwen3"])
def test_fields_of_calls_outside_of_calls_are_refused(family, field, value):
    tool = {"type": "function", "function": {"name": "f", "strict": False, "parameters": {"enum": [True]}}}
    prompt = {"messages": [{**QUESTION, field: value}], "tools": [tool]}
    with pytest.raises(ValueError, match=f"does not show `{field}"):
        make_format(family).encode(prompt, "Cold.", "Good.")


def test_reasoning_is_shown_with_keep_thinking_and_refused_without():
    response = {"role": "assistant", "content": "4", "reasoning_content": "two and two"}
    for family in ("qwen3", "llama3"):
        with pytest.raises(ValueError, match=r"does not show `reasoning_content` of the response.*keep_thinking"):
            make_format(family).encode("2+2?", response, "Good.")
        critique_format = make_format(family, keep_thinking=True)
        encoded = critique_format.encode("2+2?", response, "Good.")
        assert "<think>\ntwo and two\n</think>\n\n4" in critique_format.tokenizer.decode(encoded.input_ids)
        assert not encoded.response_changed


def test_remembered_shapes_do_not_change_how_a_format_is_pickled():
    critique_format = make_format("qwen3")
    before = pickle.dumps(critique_format)
    critique_format.encode("x", "x", "x")
    assert pickle.dumps(critique_format) == before


def test_bad_messages_are_refused_by_name():
    critique_format = make_format("qwen3")
    for response, says in (
        ({"role": "user", "content": "x"}, "`response` is a message with the role 'user'"),
        ({**ANSWER, "tool_calls": "weather"}, "`response` has the `tool_calls` 'weather'"),
        ({**ANSWER, "tool_calls": [{"function": "weather"}]}, "tool call 0 has the `function` 'weather'"),
        ({**ANSWER, "when": {1, 2}}, "`when` contains {1, 2}"),
        ({**ANSWER, "a b": 1}, "the field 'a b', which is not a name"),
        ({"role": "assistant"}, "no text `content`"),
        ({**ANSWER, "content": [{"type": "text", "text": "x", "cache": True}]}, "contains the content part"),
    ):
        with pytest.raises(ValueError, match=re.escape(says)):
            critique_format.encode("x", response, "x")
