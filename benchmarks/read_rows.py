"""
Measure the speed and memory of `read_preferences`, which parses preference rows, on the forms in which people publish them: text, messages,
complete chats, transcripts, ShareGPT turns and JSON strings. Every form is written to a JSON lines file, loaded, and parsed.

A row contains a question, two earlier turns and two responses of about 600 characters each. Rows per second cover the parsing alone, on one
CPU core, without loading the file or tokenising the text. They are based on CPU time, so that other work on the machine does not matter.
Memory is the peak of one process that parses all forms in turn.

python benchmarks/read_rows.py
python benchmarks/read_rows.py --rows 20000   # faster
"""

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from recording import save


# Set before `datasets` is imported, so that the caches of a million rows are deleted with the folder
FOLDER = tempfile.TemporaryDirectory()
os.environ["HF_DATASETS_CACHE"] = FOLDER.name

from cloud_hf.data.preference_rows import read_preferences  # noqa: E402
from cloud_hf.data.rows import load_rows  # noqa: E402


ROWS_PER_SECOND_LIMIT = 5000
MEMORY_LIMIT_MB = 1000
ROLES = {"user": "human", "assistant": "gpt"}
SPEAKERS = {"user": "Human", "assistant": "Assistant"}

Messages = list[dict]


def prompt_of(number: int) -> Messages:
    text = f"Question {number}: which of the cups holds the ball after the swaps of this game? " * 2
    return [
        {"role": "user", "content": text},
        {"role": "assistant", "content": "Which swaps?"},
        {"role": "user", "content": f"Cups {number % 3} and 3."},
    ]


def response_of(number: int, letter: str) -> Messages:
    text = f"The swaps of game {number} move the ball to the next cup each time, and nothing else moves it. " * 6
    return [{"role": "assistant", "content": f"{text}The answer is {letter}."}]


def sharegpt(messages: Messages) -> Messages:
    return [{"from": ROLES[message["role"]], "value": message["content"]} for message in messages]


def parts(messages: Messages) -> Messages:
    return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]


def dump(messages: Messages) -> Messages:
    return [{**message, "refusal": None, "tool_calls": None, "annotations": []} for message in messages]


def transcript(messages: Messages) -> str:
    return "".join(f"\n\n{SPEAKERS[message['role']]}: {message['content']}" for message in messages)


def text(messages: Messages) -> str:
    return messages[-1]["content"]


def separate(write: Callable) -> Callable:
    """Return a writer for rows with a separate prompt and responses."""
    return lambda prompt, *sides: (
        {"prompt": write(prompt)} | dict(zip(("chosen", "rejected"), map(write, sides), strict=True))
    )


def whole(write: Callable) -> Callable:
    """Return a writer for rows with complete chats, without a separate prompt."""
    return lambda prompt, *sides: dict(
        zip(("chosen", "rejected"), (write([*prompt, *side]) for side in sides), strict=True)
    )


FORMS = {
    "text": separate(text),
    "messages": separate(list),
    "messages as text parts": separate(parts),
    "messages of an OpenAI dump": separate(dump),
    "whole chats": whole(list),
    "whole chats that repeat a prompt as text": lambda *row: {"prompt": text(row[0]), **whole(list)(*row)},
    "whole chats in JSON": whole(json.dumps),
    "transcripts": whole(transcript),
    "ShareGPT turns": separate(sharegpt),
    "texts without a prompt": whole(lambda chat: " ".join(message["content"] for message in chat)),
}  # fmt: skip


def write_rows(path: Path, form: str, rows: int):
    """Write rows in the given form as JSON lines."""
    with path.open("w", encoding="utf8") as file:
        for number in range(rows):
            row = FORMS[form](prompt_of(number), response_of(number, "A"), response_of(number, "B"))
            file.write(json.dumps(row) + "\n")


def measure(form: str, rows: int) -> dict[str, float]:
    path = Path(FOLDER.name) / "rows.jsonl"
    write_rows(path, form, rows)
    started = time.process_time()
    loaded = load_rows(str(path))
    read_from = time.process_time()
    found = read_preferences(loaded, form)
    ended = time.process_time()
    assert len(found) == rows
    found.cleanup_cache_files()
    loaded.cleanup_cache_files()
    print(f"{form}: {rows / (ended - read_from):,.0f} rows/s (limit {ROWS_PER_SECOND_LIMIT:,})", flush=True)
    return {"load_rows_per_second": rows / (read_from - started), "rows_per_second": rows / (ended - read_from)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="total number of rows over all forms")
    parser.add_argument("--output", default="benchmarks/results/read_rows.json")
    args = parser.parse_args()
    libraries = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    each = args.rows // len(FORMS)
    forms = {form: measure(form, each) for form in FORMS}
    slowest = min(forms, key=lambda form: forms[form]["rows_per_second"])
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    speed = forms[slowest]["rows_per_second"]
    result = {
        "rows": each * len(FORMS),
        "forms": {form: {name: round(value) for name, value in found.items()} for form, found in forms.items()},
        "slowest": {
            "form": slowest,
            "rows_per_second": round(speed),
            "limit": ROWS_PER_SECOND_LIMIT,
            "reached": speed >= ROWS_PER_SECOND_LIMIT,
        },
        "memory": {
            "libraries_mb": round(libraries),
            "peak_resident_mb": round(memory),
            "limit_mb": MEMORY_LIMIT_MB,
            "reached": memory < MEMORY_LIMIT_MB,
        },
    }
    print(save(args.output, result))


if __name__ == "__main__":
    main()
