"""Users' rows in every form: some made here, and those of `../shared/cases`; tests of these skip where the folder is absent."""

import json
from pathlib import Path

import pytest


CASES = Path(__file__).parents[3] / "shared" / "cases"


def case(name: str) -> str:
    if not CASES.is_dir():
        pytest.skip("needs the rows of ../shared/cases, which are not part of the product")
    return str(CASES / name)


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **fields):
    return {"role": "assistant", "content": text, **fields}


def sharegpt(speaker, text):
    return {"from": speaker, "value": text}


def columns(messages):
    return {name: [message[name] for message in messages] for name in ("role", "content")}


def parts(message):
    return {**message, "content": [{"type": "text", "text": message["content"]}]}


CHATS = [user("Hi"), assistant("Yes?"), user("Name a cup.")]
TRANSCRIPT = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Name a cup.\n\nAssistant:"
NULLS = {"refusal": None, "audio": None, "tool_calls": None, "annotations": [], "function_call": None}
WHOLE = {"chosen": [*CHATS, assistant("A")], "rejected": [*CHATS, assistant("B")]}
IN_JSON = {side: json.dumps(chat) for side, chat in WHOLE.items()}

# Each says the same as CHATS, "A" and "B"
FORMS = {
    "text responses": {"prompt": CHATS, "chosen": "A", "rejected": "B"},
    "lists of one text": {"prompt": CHATS, "chosen": ["A"], "rejected": ["B"]},
    "messages": {"prompt": CHATS, "chosen": [assistant("A")], "rejected": [assistant("B")]},
    "one message": {"prompt": CHATS, "chosen": assistant("A"), "rejected": assistant("B")},
    "whole chats": WHOLE,
    "whole chats with their last prompt": {"prompt": "Name a cup.", **WHOLE},
    "whole chats with their turns": {"prompt": CHATS, **WHOLE},
    "whole chats, prompt null": {"prompt": None, **WHOLE},
    "whole chats, prompt empty": {"prompt": "", **WHOLE},
    "whole transcripts": {"chosen": f"{TRANSCRIPT} A", "rejected": f"{TRANSCRIPT} B"},
    "whole transcripts, stripped": {"chosen": f"{TRANSCRIPT[2:]} A", "rejected": f"{TRANSCRIPT[2:]} B"},
    "whole transcripts, CRLF": {
        "chosen": f"{TRANSCRIPT} A".replace("\n", "\r\n"),
        "rejected": f"{TRANSCRIPT} B".replace("\n", "\r\n"),
    },
    "transcript and texts": {"prompt": TRANSCRIPT, "chosen": " A", "rejected": " B"},
    "transcript and transcripts": {"prompt": TRANSCRIPT, "chosen": f"{TRANSCRIPT} A", "rejected": f"{TRANSCRIPT} B"},
    "prompt in JSON": {"prompt": json.dumps(CHATS), "chosen": "A", "rejected": "B"},
    "whole chats in JSON": IN_JSON,
    "whole chats in JSON of JSON": {side: json.dumps(text) for side, text in IN_JSON.items()},
    "ShareGPT": {
        "prompt": [sharegpt("human", "Hi"), sharegpt("gpt", "Yes?"), sharegpt("human", "Name a cup.")],
        "chosen": sharegpt("gpt", "A"),
        "rejected": sharegpt("gpt", "B"),
    },
    "columns of messages": {
        "prompt": columns(CHATS),
        "chosen": columns([assistant("A")]),
        "rejected": columns([assistant("B")]),
    },
    "text parts": {
        "prompt": [parts(turn) for turn in CHATS],
        "chosen": [parts(assistant("A"))],
        "rejected": [parts(assistant("B"))],
    },
    "OpenAI dump": {"prompt": CHATS, "chosen": [assistant("A", **NULLS)], "rejected": [assistant("B", **NULLS)]},
}
