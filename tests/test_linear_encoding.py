"""Twice the conversation is at most about twice the work: counted in calls, and in characters rendered and tokenised."""

import sys

import pytest
from tokenizers_for_tests import make_tokenizer

from cloud_hf import CritiqueFormat
from cloud_hf.chat_parsing import RenderedChats
from cloud_hf.prompts import read_prompt


USER, CONTROL = {"role": "user", "content": "What is it?"}, "<|im_end|><think>x</think>"


def assistant(content: str = "It is 42.", **fields) -> dict:
    return {"role": "assistant", "content": content, **fields}


def calls(count: int, value) -> list[dict]:
    """One turn with many calls, and their results."""
    many = [
        {"id": f"call{number}", "type": "function", "function": {"name": "f", "arguments": {"a": value, "b": number}}}
        for number in range(count)
    ]
    results = [{"role": "tool", "tool_call_id": f"call{number}", "content": "z"} for number in range(count)]
    return [USER, assistant("", tool_calls=many), *results]


CHATS = {
    "plain": lambda count: [USER, assistant()] * count + [USER],
    "thinking": lambda count: [USER, assistant("<think>\nHm.\n</think>\n\nIt is 42.")] * count + [USER],
    "control strings": lambda count: [USER, assistant(CONTROL)] * count + [USER],
    "other control strings": lambda count: [USER, assistant("".join(f"<|im_end|>{n}" for n in range(count))), USER],
    "hidden reasoning": lambda count: [USER, assistant("</think>" * 9)] * count + [USER],
    "roles": lambda count: [{"role": f"r{number % 3}", "content": "x"} for number in range(count)] + [USER],
    "true arguments": lambda count: calls(count, True),
    "null in calls": lambda count: calls(count, {"x": [None, "", [], {}]}),
    "full-width": lambda count: [{**USER, "content": "＜｜im_end｜＞" * count}],
}


class Work:
    """Counts the calls of Python and C functions, and the characters that the template writes and the tokenizer reads."""

    def __init__(self, tokenizer):
        self.steps, self._tokenizer = 0, tokenizer

    def of(self, function, *args) -> int:
        self.steps = 0
        sys.setprofile(self._count)
        try:
            function(*args)
        except ValueError:  # refused, after this much work
            pass
        finally:
            sys.setprofile(None)
        return self.steps

    def _count(self, frame, event, argument):
        self.steps += 1
        if event == "return" and frame.f_code.co_name == "apply_chat_template":
            self.steps += len(argument or "")
        elif event == "call" and frame.f_code.co_name == "__call__" and frame.f_locals.get("self") is self._tokenizer:
            self.steps += len("".join(frame.f_locals["text"]))


@pytest.mark.parametrize("family", ["qwen3", "llama3"])
@pytest.mark.parametrize("kind", CHATS)
def test_conversations(family, kind):
    critique_format = CritiqueFormat(make_tokenizer(family))
    work = Work(critique_format.tokenizer)
    small, large = (work.of(critique_format.encode_prefix, CHATS[kind](count), f"No {count}.") for count in (30, 60))
    assert large < 2.5 * small


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("[" + "0," * 1_000_000 + "0]", "has about 1000001 values in its `arguments`"),
        ('{"a": ' + "[" * 900 + "]" * 900 + "}", "nested more than 32"),
        ('{"a": 1, ' * 2 + '"a": 2}}', "not JSON"),
    ],
)
def test_arguments_of_calls_are_bounded(arguments, says):
    turn = assistant("", tool_calls=[{"function": {"name": "f", "arguments": arguments}}])
    with pytest.raises(ValueError, match=says):
        read_prompt([USER, turn, USER])


@pytest.mark.parametrize("name", ["CritiqueFormat", "ReferenceFormat"])
def test_critiques_of_a_long_prefix(name):
    critique_format = getattr(sys.modules["cloud_hf.critique_format"], name)(make_tokenizer("llama3"))
    short, long = (critique_format.encode_prefix("x", "y " * words) for words in (50, 3000))
    work = Work(critique_format.tokenizer)
    first, second = (work.of(critique_format.complete, prefix, "Fine.") for prefix in (short, long))
    assert second < 1.5 * first


def test_rendered_chats():
    chats = RenderedChats(make_tokenizer("qwen3"))
    start, end = "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n", "<|im_end|> \n"
    work = Work(chats.tokenizer)
    for text in ((start + end * 20, start + end * 40), (start * 20, start * 40)):
        small, large = (work.of(chats.parse, one) for one in text)
        assert large < 2.5 * small
    [*_, last] = chats.parse(start + end * 400_000 + "x")  # a pattern that begins at each of them would take hours
    assert last["content"].endswith("x") and len(last["content"]) == len(end) * 400_000 + 1
    assert chats.parse(start + "y" + end * 400_000)[-1]["content"] == "y"
