"""
Read preference rows of any common form as a prompt and two responses.

Each column is recognised by its shape: text (for a response, also a list of one), chat messages (`role` and `content`, also as a single
message, with text parts, or with the empty fields of an OpenAI dump), ShareGPT turns (`from` and `value`), JSON of either, or an Anthropic
transcript (`"\\n\\nHuman: …"`). Responses may be whole chats, with or without a column `prompt`. A dataset has one form; a row that can be
read in two ways is refused.
"""

import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from datasets import Dataset, Features, Json, LargeList, List, Value
from tqdm import tqdm

from ..prompts import part_text
from .bad_rows import BadRows, without
from .rows import check_columns


logger = logging.getLogger(__name__)

SIDES = ("chosen", "rejected")
PAIR_COLUMNS = ("prompt", *SIDES)

# Text, or messages of which the last is judged where a response is more than text. `Any`, because most code takes text alone
Response = Any

TEXT, MESSAGES, SHAREGPT, TRANSCRIPT, ABSENT = "text", "messages", "ShareGPT turns", "transcripts", "absent"
WITH_TOOLS = "messages with tools"
JSON_MESSAGES, JSON_SHAREGPT = "JSON of messages", "JSON of ShareGPT turns"
ONE_MESSAGE, ONE_TEXT, MESSAGE_COLUMNS = "one message", "lists of one text", "columns of messages"

_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant", "model": "assistant",
    "bot": "assistant", "system": "system", "tool": "tool", "observation": "tool", "prompter": "user",
}  # fmt: skip

# Columns that hold the prompt in some sets; without `prompt`, texts would be split at their common beginning instead
_LIKE_PROMPT = (
    "input", "query", "question", "instruction", "problem", "post", "context", "history", "messages", "conversation",
)  # fmt: skip

_TURN = re.compile(r"\n\n(Human|Assistant):")
_LOOKS_LIKE_MESSAGES = re.compile(r"\s*\[?\s*\{\s*['\"](role|content|from|value)['\"]\s*:")
_MAY_BE_JSON = re.compile(r"\s*\"?\s*\[?\s*\{\s*\\?['\"]")
_RENDERED_PROMPT = re.compile(
    r"\s*(<\|(im_start|start_header_id|begin_of_text|user|system)\|>|(<s>\s*)?\[INST\]|(<bos>)?<start_of_turn>)"
)
_RENDERED = re.compile(r"\s*(<\||<s>|\[INST\]|<start_of_turn>|<bos>)")


class Form(NamedTuple):
    """The form of a row: that of its prompt, that of its responses, and whether these are whole chats."""

    prompt: str
    responses: str
    whole: bool = False

    def __str__(self):
        if self.prompt == ABSENT and not self.whole:
            return "texts without a prompt, whose common beginning is the prompt"
        if self.prompt == ABSENT:
            return f"whole chats ({self.responses}), whose common turns are the prompt"
        responses = (
            f"whole chats ({self.responses}), which repeat it" if self.whole else f"responses as {self.responses}"
        )
        return f"prompt as {self.prompt}, {responses}"


# Forms that the other modules read as they are
_OURS = {Form(prompt, responses) for prompt in (TEXT, MESSAGES, WITH_TOOLS) for responses in (TEXT, MESSAGES)}


class Preference(NamedTuple):
    """
    A preference row in our columns.

    `prompt` is text or a list of messages. A response is text or a list of messages of which the last is judged.
    """

    form: Form
    prompt: str | list[dict[str, Any]]
    chosen: Response
    rejected: Response


# ------------------------------------------------------------------------------------------------------- datasets


def read_preferences(
    rows: Dataset,
    name: str,
    *,
    required: tuple[str, ...] = (),
    bad_rows: str = "error",
    check: Callable[[dict[str, Any]], Any] | None = None,
) -> Dataset:
    """
    Bring a preference dataset to our columns: `prompt` (text or messages), `chosen` and `rejected` (text, or messages where a response
    is more than text). Other columns stay.

    Args:
        rows (`Dataset`):
            Rows of any form that the module describes.
        name (`str`):
            Start of the messages, such as `"The train dataset"`.
        required (`tuple[str, ...]`, *optional*):
            Further columns that the rows must have.
        bad_rows (`str`, *optional*, defaults to `"error"`):
            `"error"` or `"drop"`; see [`BadRows`].
        check (`Callable`, *optional*):
            Called with each row in our columns; raises `ValueError` for one that cannot be used.

    Raises:
        `ValueError`: If a column is missing, rows cannot be used, or the dataset mixes forms; the message names all kinds.
    """
    check_columns(rows.column_names, (*SIDES, *required), name)
    rows = rows.with_format(None)
    found, same, system, rendered, plain = _Scan(name, bad_rows), 0, 0, 0, True
    for index, row in tqdm(iterate_rows(rows), name, len(rows), unit=" rows", disable=None):
        with found.row(index, row):
            read = read_preference(row)
            if check is not None:
                check({**row, "prompt": read.prompt, "chosen": read.chosen, "rejected": read.rejected})
            found.add(index, read.form)
            same += read.chosen == read.rejected
            system += bool(row.get("system"))
            rendered += isinstance(read.prompt, str) and bool(_RENDERED_PROMPT.match(read.prompt))
            plain &= isinstance(read.chosen, str) and isinstance(read.rejected, str)
    rows, form = found.settle(rows)
    if same:
        logger.warning("%s: chosen and rejected are the same in %d of %d rows.", name, same, len(rows))
    if system:
        logger.warning(
            "%s: the column `system` is not read, but %d rows have one. Make it the prompt's first message, as "
            "`cloud-hf prepare --layout system` does.",
            name,
            system,
        )
    if rendered * 2 > len(rows):
        raise ValueError(
            f"{name}: {rendered} of {len(rows)} prompts look like chats rendered by a template, which would be rendered "
            "again. Give chat messages."
        )
    if form is None or form in _OURS:
        return rows
    is_text = (form.prompt == TEXT and not form.whole) or (
        form.prompt == ABSENT and form.responses in (TEXT, ONE_TEXT)
    )
    text, messages = Value("string"), List(Json())
    kinds = {"prompt": text if is_text else messages, **dict.fromkeys(SIDES, text if plain else messages)}
    return _convert(rows, kinds, _read_batch, plain=plain)


def read_prompts(rows: Dataset, name: str, bad_rows: str = "error") -> Dataset:
    """Bring the column `prompt` of a dataset without responses to text or messages, as [`read_preferences`] does."""
    check_columns(rows.column_names, ("prompt",), name)
    rows = rows.with_format(None)
    found = _Scan(name, bad_rows)
    for index, row in iterate_rows(rows):
        with found.row(index, row):
            kind, _ = read_column(row["prompt"], "prompt")
            found.add(index, kind)
    rows, kind = found.settle(rows)
    if kind in (None, TEXT, MESSAGES, WITH_TOOLS):
        return rows
    return _convert(rows, {"prompt": List(Json())}, _read_prompt_batch)


class _Scan:
    """Counts the forms of rows, and collects those that cannot be read."""

    def __init__(self, name: str, bad_rows: str):
        self.name, self.bad = name, BadRows(name, bad_rows)
        self.forms: Counter[Any] = Counter()
        self.examples: dict[Any, int] = {}

    @contextmanager
    def row(self, index: int, row: Mapping[str, Any]) -> Iterator[None]:
        """Note the row as bad if the body raises `ValueError`."""
        try:
            yield
        except ValueError as error:
            self.bad.add(index, row, str(error))

    def add(self, index: int, form: Any):
        """Count a row of this form."""
        self.forms[form] += 1
        self.examples.setdefault(form, index)

    def settle(self, rows: Dataset) -> tuple[Dataset, Any]:
        """Return the rows without bad ones, and their form. Raises `ValueError` if rows are bad, or forms are mixed."""
        if len(self.forms) > 1:
            found = "; ".join(
                f"{number} rows as {form} (row {self.examples[form]})" for form, number in self.forms.most_common()
            )
            raise ValueError(f"{self.name} mixes forms of rows: {found}. Bring all to one form, or split the dataset.")
        rows = without(rows, self.bad.settle(len(rows)))
        [form] = self.forms or [None]
        level = logging.INFO if form in (TEXT, Form(TEXT, TEXT)) else logging.WARNING
        logger.log(level, "%s: %d rows are read as %s.", self.name, len(rows), form)
        return rows, form


def iterate_rows(rows: Dataset) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the positions and the rows, in batches for speed. Text that is not valid becomes a `_NotText`."""
    columns = rows.with_format("arrow")
    plain = not any(map(_holds_json, rows.features.values()))
    for start in range(0, len(rows), 1000):
        stop = min(start + 1000, len(rows))
        if plain:
            try:
                table: Any = columns[start:stop]
                yield from enumerate(table.to_pylist(), start)
                continue
            except UnicodeDecodeError:
                pass  # in one of the rows; find it below
        for index in range(start, stop):
            try:
                yield index, rows[index]
            except UnicodeDecodeError as error:
                yield index, _NotText(error)


class _NotText(dict):
    """A row whose bytes are not UTF-8."""

    def __init__(self, error: UnicodeDecodeError):
        super().__init__()
        self.error = error

    def __missing__(self, column: str):
        raise ValueError(f"it is not UTF-8 ({self.error}). Save the file as UTF-8.")


def _holds_json(feature: Any) -> bool:
    """Whether a column holds values that `datasets` decodes from JSON."""
    if isinstance(feature, dict):
        return any(map(_holds_json, feature.values()))
    return isinstance(feature, Json) or (isinstance(feature, List | LargeList) and _holds_json(feature.feature))


def _convert(rows: Dataset, kinds: dict[str, Any], convert: Callable, **options: Any) -> Dataset:
    """Replace columns by those of `kinds`."""
    kept = {name: feature for name, feature in rows.features.items() if name not in kinds}
    old = [name for name in kinds if name in rows.column_names]
    features = Features({**kept, **kinds})
    return rows.map(
        convert, batched=True, remove_columns=old, features=features, fn_kwargs=options, desc="Reading rows"
    )


def _read_prompt_batch(batch: dict[str, list]) -> dict[str, list]:
    return {"prompt": [read_column(value, "prompt")[1] for value in batch["prompt"]]}


def _read_batch(batch: dict[str, list], plain: bool) -> dict[str, list]:
    columns: dict[str, list] = {"prompt": [], "chosen": [], "rejected": []}
    for values in zip(*batch.values(), strict=True):
        found = read_preference(dict(zip(batch, values, strict=True)))
        columns["prompt"].append(found.prompt)
        for side, response in zip(SIDES, (found.chosen, found.rejected), strict=True):
            is_text = isinstance(response, str) and not plain
            columns[side].append([{"role": "assistant", "content": response}] if is_text else response)
    return columns


# ----------------------------------------------------------------------------------------------------------- rows


def read_preference(row: Mapping[str, Any]) -> Preference:
    """
    Read one row. Raises `ValueError`, naming the field, if it cannot be read, or can be read in two ways.

    Examples:

    ```python
    >>> read_preference({"chosen": "\\n\\nHuman: Hi\\n\\nAssistant: Hello", "rejected": "\\n\\nHuman: Hi\\n\\nAssistant: What?"})[1:]
    ([{'role': 'user', 'content': 'Hi'}], 'Hello', 'What?')
    ```
    """
    if row.get("chat_template_kwargs"):
        raise ValueError(
            "`chat_template_kwargs` differ by row, but a reward model has the same in all chats. Remove the column."
        )
    (kind, chosen), (other, rejected) = (read_column(row[side], side) for side in SIDES)
    if kind != other:
        raise ValueError(f"`chosen` reads as {kind} but `rejected` as {other}; give both in the same form.")
    # Whole chats need no prompt, so an empty one is none
    has_prompt = "prompt" in row and (row["prompt"] not in (None, "", []) or _is_response(chosen))
    prompt_kind, prompt = read_column(row["prompt"], "prompt") if has_prompt else (ABSENT, [])
    if isinstance(chosen, str) or isinstance(rejected, str):
        if prompt_kind == ABSENT and (other_name := next((name for name in _LIKE_PROMPT if row.get(name)), None)):
            raise ValueError(
                f"there is no `prompt`; rename `{other_name}` to `prompt` if it is the prompt, or remove it."
            )
        return _with_texts(prompt_kind, prompt, kind, str(chosen), str(rejected))
    if _is_response(chosen) != _is_response(rejected):
        raise ValueError("one of `chosen` and `rejected` is a whole chat and the other only its end; give both alike.")
    if _is_response(chosen):
        if prompt_kind == ABSENT:
            raise ValueError(
                "`chosen` and `rejected` start with the response and there is no `prompt`; add the column."
            )
        form = Form(prompt_kind, kind)
    else:
        form, prompt, chosen, rejected = Form(prompt_kind, kind, True), *_split(prompt_kind, prompt, chosen, rejected)
    return Preference(form, prompt, check_response(chosen, "chosen"), check_response(rejected, "rejected"))


def _is_response(value: str | list[dict[str, Any]]) -> bool:
    """Whether a column holds a response alone, not a whole chat."""
    return isinstance(value, str) or value[0]["role"] in ("assistant", "tool")


def read_column(value: Any, column: str) -> tuple[str, str | list[dict[str, Any]]]:
    """Return the kind of a prompt or response, and its text or messages. Raises `ValueError` naming the column."""
    if isinstance(value, str):
        return _read_text(value, column)
    if (
        isinstance(value, dict)
        and value.keys() & {"role", "from"}
        and all(isinstance(v, list) for v in value.values())
    ):
        # How `datasets` stores a `Sequence` of messages
        turns = [dict(zip(value, turn, strict=True)) for turn in zip(*value.values(), strict=True)]
        return MESSAGE_COLUMNS, _read_turns(turns, column)[1]
    turns = [value] if isinstance(value, dict) else value
    if column == "prompt" and isinstance(value, dict) and value.get("messages"):
        return WITH_TOOLS, _read_turns(value["messages"], column)[1]
    if isinstance(turns, list) and turns and all(isinstance(turn, dict) for turn in turns):
        kind, messages = _read_turns(turns, column)
        return (ONE_MESSAGE if column == "prompt" and kind == MESSAGES and turns is not value else kind), messages
    if column in SIDES and isinstance(value, list) and all(isinstance(text, str) for text in value) and value:
        if len(value) > 1:
            raise ValueError(f"`{column}` holds {len(value)} texts; make a row of each pair.")
        kind, text = _read_text(value[0], column)
        return (ONE_TEXT if kind == TEXT else kind), text
    raise ValueError(f"`{column}` is {value!r:.60}; give a string or a list of chat messages.")


def _read_text(value: str, column: str) -> tuple[str, str | list[dict[str, Any]]]:
    if not value.strip():
        raise ValueError(f"`{column}` is empty.")
    lines = value.replace("\r\n", "\n")
    if lines.startswith("\n\nHuman:") or (lines.lstrip().startswith("Human:") and "\n\nAssistant:" in lines):
        return TRANSCRIPT, _transcript(lines, column)
    if column == "prompt" and "\n\nHuman:" in lines and lines.rstrip().endswith("\n\nAssistant:"):
        raise ValueError(
            "`prompt` could be one message, or a transcript behind a first text. Give chat messages, with the first text as "
            "the system's."
        )
    if _MAY_BE_JSON.match(value) and (found := _read_json(value, column)) is not None:
        return found
    return TEXT, value


def _read_json(value: str, column: str) -> tuple[str, list[dict[str, Any]]] | None:
    """Return the kind and the messages of a text that holds them as JSON, also encoded twice; `None` for other texts."""
    try:
        found = json.loads(value)
    except (ValueError, RecursionError) as error:
        if not _LOOKS_LIKE_MESSAGES.match(value):
            return None
        raise ValueError(
            f"`{column}` could be text, or chat messages that are not JSON ({error}). Write messages with `json.dumps`."
        ) from error
    if isinstance(found, str):
        return _read_json(found, column)
    if isinstance(found, dict) and isinstance(found.get("messages"), list) and found.keys() <= {"messages", "tools"}:
        raise ValueError(
            f"`{column}` could be text, or a chat as JSON with the key `messages`. Give the list of messages, and tools as the "
            "column `tools`."
        )
    turns = found if isinstance(found, list) else [found]
    if not all(map(_is_turn, turns)):
        return None
    kind, messages = _read_turns(turns, column)
    return (JSON_SHAREGPT if kind == SHAREGPT else JSON_MESSAGES), messages


def _is_turn(value: Any) -> bool:
    names = value.keys() if isinstance(value, dict) else ()
    return {"from", "value"} <= set(names) or ("role" in names and ("content" in names or "tool_calls" in names))


def _transcript(value: str, column: str) -> list[dict[str, Any]]:
    """Split a transcript into messages. An empty last turn of the assistant, the place of the response, is left out."""
    parts = _TURN.split("\n\n" + value.lstrip())[1:]
    turns = [
        {"role": "user" if speaker == "Human" else "assistant", "content": text.strip()}
        for speaker, text in zip(parts[::2], parts[1::2], strict=True)
    ]
    if turns[-1] == {"role": "assistant", "content": ""}:
        turns.pop()
        if column != "prompt":
            raise ValueError(f"`{column}` is empty.")
    return turns


def _read_turns(turns: list[dict[str, Any]], column: str) -> tuple[str, list[dict[str, Any]]]:
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(f"`{column}` holds {turns!r:.60}; give a list of chat messages.")
    kinds = {MESSAGES if turn.get("role") is not None else SHAREGPT for turn in turns}
    if len(kinds) > 1:
        raise ValueError(f"`{column}` mixes messages with `role` and turns with `from`.")
    [kind] = kinds
    return kind, [
        (message if kind == MESSAGES else _sharegpt)(turn, column, place) for place, turn in enumerate(turns)
    ]


def message(turn: Mapping[str, Any], column: str, place: int) -> dict[str, Any]:
    """Return a message without its null and empty fields, its text parts joined. Raises `ValueError` if it is not one."""
    if not isinstance(turn.get("role"), str) or ("content" not in turn and not turn.get("tool_calls")):
        raise ValueError(f"`{column}` message {place} is {dict(turn)!r:.60}; give a dict with `role` and `content`.")
    role = turn["role"]
    if (name := _ROLES.get(role.lower(), role)) != role and name != "tool":
        raise ValueError(f"`{column}` message {place} has the role {role!r}; name it {name!r}.")
    kept = {name: value for name, value in turn.items() if name == "content" or value not in (None, "", [], {})}
    if isinstance(kept.get("content"), list):
        kept["content"] = "\n".join(part_text(part, f"`{column}` message {place}") for part in kept["content"])
    if kept.get("content") is None:
        kept.pop("content", None)
        if "tool_calls" not in kept:
            raise ValueError(f"`{column}` message {place} ({turn['role']}) has no text `content`.")
    elif not isinstance(kept["content"], str):
        raise ValueError(f"`{column}` message {place} has the `content` {kept['content']!r:.60}; give text.")
    return kept


def _sharegpt(turn: Mapping[str, Any], column: str, place: int) -> dict[str, Any]:
    speaker, value = turn.get("from"), turn.get("value")
    if speaker == "function_call":
        raise ValueError(f"`{column}` turn {place} is a `function_call`; give it as a message with `tool_calls`.")
    if not isinstance(speaker, str) or speaker not in _ROLES or not isinstance(value, str):
        known = ", ".join(_ROLES)
        raise ValueError(
            f"`{column}` turn {place} is {dict(turn)!r:.60}; give `value` as text and `from` as one of {known}."
        )
    if extra := sorted(name for name, held in turn.items() if name not in ("from", "value", "weight") and held):
        raise ValueError(f"`{column}` turn {place} has {', '.join(extra)}; only `from` and `value` are read.")
    return {"role": _ROLES[speaker], "content": value}


# ---------------------------------------------------------------------------------------------- prompt and responses


def _with_texts(prompt_kind: str, prompt: Any, kind: str, chosen: str, rejected: str) -> Preference:
    form = Form(prompt_kind, kind)
    if prompt_kind == ABSENT:
        return Preference(form, *_common_beginning(chosen, rejected))
    if prompt_kind == TRANSCRIPT:
        # The space behind "Assistant:"
        chosen, rejected = chosen.strip(), rejected.strip()
    return Preference(form, prompt, chosen, rejected)


def _common_beginning(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Part two texts at the last white space of their common beginning, TRL's implicit prompt."""
    if _RENDERED.match(chosen):
        raise ValueError(
            "`chosen` looks like a chat rendered by a template, and there is no `prompt`; give chat messages."
        )
    if _TURN.search(chosen):
        raise ValueError(
            "`chosen` could be text, or a transcript behind a first text. Give chat messages, with the first text as the system's."
        )
    length = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    length = min(len(chosen), len(rejected)) - 1 if length is None else length
    while length and not chosen[length - 1].isspace():
        length -= 1
    if not chosen[:length].strip():
        raise ValueError(
            "there is no `prompt`, and `chosen` and `rejected` have no common beginning; add the column `prompt`."
        )
    return chosen[:length].rstrip(), chosen[length:], rejected[length:]


def _split(
    kind: str, prompt: Any, chosen: list[dict], rejected: list[dict]
) -> tuple[list[dict], list[dict], list[dict]]:
    """Part two whole chats into their common turns and the rest of each, and check them against the prompt."""
    most = min(len(chosen), len(rejected)) - 1
    shared = next((place for place in range(most) if chosen[place] != rejected[place]), most)
    # The prompt ends where an answer is due
    while shared and chosen[shared - 1]["role"] not in ("user", "tool"):
        shared -= 1
    if not shared:
        raise ValueError(
            "`chosen` and `rejected` are whole chats without a common user turn, so they answer different prompts."
        )
    common = chosen[:shared]
    if kind == TEXT:
        if prompt.strip() not in {turn.get("content", "").strip() for turn in common if turn["role"] == "user"}:
            raise ValueError(
                f"`prompt` is {prompt!r:.60}, but no user turn that `chosen` and `rejected` share has this text."
            )
    elif kind == WITH_TOOLS:
        raise ValueError("`prompt` holds messages and tools; with whole chats give the tools as the column `tools`.")
    elif kind != ABSENT and prompt != common[: len(prompt)]:
        raise ValueError("`chosen` and `rejected` are whole chats that do not begin with the turns of `prompt`.")
    return common, chosen[shared:], rejected[shared:]


def check_response(turns: list[dict[str, Any]], column: str, allow_empty: bool = False) -> Response:
    """Check the turns of a response, and return a single one that is only text as text."""
    last = turns[-1]
    if last["role"] != "assistant":
        raise ValueError(f"`{column}` ends on a {last['role']!r} turn; its last message must be the assistant's.")
    if not allow_empty and not last.get("content", "").strip() and not last.keys() - {"role", "content"}:
        raise ValueError(f"`{column}` is empty.")
    return last["content"] if len(turns) == 1 and last.keys() == {"role", "content"} else turns
