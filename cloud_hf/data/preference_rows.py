"""
Read preference rows in any common form as a prompt and two responses.

The form of each column is recognised from its values (see `column_forms.py`). Responses may be complete chats, with or without a column
`prompt`. All rows of a dataset must have the same form, and a row that can be read in two ways is rejected.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from datasets import Dataset, Features, Json, LargeList, List, Value
from tqdm import tqdm

from .bad_rows import BadRows, without
from .column_forms import ABSENT, MESSAGES, ONE_TEXT, SIDES, TEXT, TRANSCRIPT, TURN, WITH_TOOLS, read_column
from .rows import check_columns
from .tool_arguments import without_added_arguments


logger = logging.getLogger(__name__)

PAIR_COLUMNS = ("prompt", *SIDES)
POSITION = "_position"  # column with the position that a row had before bad rows were left out

# Text or, if the response is more than a single turn of plain text, a list of messages, the last of which is judged. The type is `Any`
# because most code accepts only text
Response = Any

# Columns that contain the prompt in some datasets. They are reported if there is no `prompt`, because otherwise the common beginning of
# `chosen` and `rejected` would be taken as the prompt
_LIKE_PROMPT = (
    "input", "query", "question", "instruction", "problem", "post", "context", "history", "messages", "conversation",
)  # fmt: skip

_RENDERED_PROMPT = re.compile(
    r"\s*(<\|(im_start|start_header_id|begin_of_text|user|system)\|>|(<s>\s*)?\[INST\]|(<bos>)?<start_of_turn>)"
)
_RENDERED = re.compile(r"\s*(<\||<s>|\[INST\]|<start_of_turn>|<bos>)")


class Form(NamedTuple):
    """Form of a row: the form of its prompt, the form of its responses, and whether the responses are complete chats (`whole`)."""

    prompt: str
    responses: str
    whole: bool = False

    def __str__(self):
        if self.prompt == ABSENT and not self.whole:
            return "texts without a prompt, whose common beginning is the prompt"
        if self.prompt == ABSENT:
            return f"complete chats ({self.responses}), whose common turns are the prompt"
        responses = (
            f"complete chats ({self.responses}), which repeat it" if self.whole else f"responses as {self.responses}"
        )
        return f"prompt as {self.prompt}, {responses}"


# Forms that the other modules can use without conversion
_OURS = {Form(prompt, responses) for prompt in (TEXT, MESSAGES, WITH_TOOLS) for responses in (TEXT, MESSAGES)}


class Preference(NamedTuple):
    """
    A preference row in our columns.

    `prompt` is text or a list of messages. A response is text or a list of messages, the last of which is judged.
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
    numbered: bool = False,
) -> Dataset:
    """
    Convert a preference dataset to our columns: `prompt` (text or messages), `chosen` and `rejected` (text, or messages if any response is
    more than a single turn of plain text). Other columns are kept. Rows already in a form that the other modules accept are not converted.

    Args:
        rows (`Dataset`):
            Rows in any of the forms that this module reads.
        name (`str`):
            Start of error messages and warnings, such as `"The train dataset"`.
        required (`tuple[str, ...]`, *optional*):
            Further columns that the rows must have.
        bad_rows (`str`, *optional*, defaults to `"error"`):
            `"error"` or `"drop"`; see [`BadRows`].
        check (`Callable`, *optional*):
            Called with each row in our columns; raises `ValueError` if the row cannot be used.
        numbered (`bool`, *optional*, defaults to `False`):
            Add the column `POSITION`.

    Raises:
        `ValueError`: If a column is missing, rows cannot be used, or rows have different forms. The message names every kind of problem.
    """
    check_columns(rows.column_names, (*SIDES, *required), name)
    rows = without_added_arguments(rows.with_format(None), name)
    found, plain = _Scan(name, bad_rows), True
    for index, row in tqdm(iterate_rows(rows), name, len(rows), unit=" rows", disable=None):
        with found.row(index, row):
            read = read_preference(row)
            if check is not None:
                check({**row, "prompt": read.prompt, "chosen": read.chosen, "rejected": read.rejected})
            found.add(index, read.form)
            found.note(row, read)
            plain &= isinstance(read.chosen, str) and isinstance(read.rejected, str)
    rows, form = found.settle(rows, numbered)
    found.report_notes(len(rows))
    if form is None or form in _OURS:
        return rows
    is_text = (form.prompt == TEXT and not form.whole) or (
        form.prompt == ABSENT and form.responses in (TEXT, ONE_TEXT)
    )
    text, messages = Value("string"), List(Json())
    kinds = {"prompt": text if is_text else messages, **dict.fromkeys(SIDES, text if plain else messages)}
    return _convert(rows, kinds, _read_batch, plain=plain)


def read_prompts(rows: Dataset, name: str, bad_rows: str = "error", numbered: bool = False) -> Dataset:
    """Convert the column `prompt` of a dataset without responses to text or messages, just as [`read_preferences`] does."""
    check_columns(rows.column_names, ("prompt",), name)
    rows = without_added_arguments(rows.with_format(None), name)
    found = _Scan(name, bad_rows)
    for index, row in iterate_rows(rows):
        with found.row(index, row):
            kind, _ = read_column(row["prompt"], "prompt")
            found.add(index, kind)
    rows, kind = found.settle(rows, numbered)
    if kind in (None, TEXT, MESSAGES, WITH_TOOLS):
        return rows
    return _convert(rows, {"prompt": List(Json())}, _read_prompt_batch)


class _Scan:
    """Counts the forms of rows, and collects the rows that cannot be read."""

    def __init__(self, name: str, bad_rows: str):
        self.name, self.bad = name, BadRows(name, bad_rows)
        self.forms: Counter[Any] = Counter()
        self.examples: dict[Any, int] = {}
        self.same = self.with_system = self.rendered = 0

    @contextmanager
    def row(self, index: int, row: Mapping[str, Any]) -> Iterator[None]:
        """Record the row as bad if the body of the `with` statement raises `ValueError`."""
        try:
            yield
        except ValueError as error:
            self.bad.add(index, row, str(error))

    def add(self, index: int, form: Any):
        self.forms[form] += 1
        self.examples.setdefault(form, index)

    def note(self, row: Mapping[str, Any], read: Preference):
        """Update the counts that [`_Scan.report_notes`] reports."""
        self.same += read.chosen == read.rejected
        self.with_system += bool(row.get("system"))
        self.rendered += isinstance(read.prompt, str) and bool(_RENDERED_PROMPT.match(read.prompt))

    def report_notes(self, count: int):
        """Warn about identical responses and an ignored column `system`; raise `ValueError` if most prompts are rendered chats."""
        if self.same:
            logger.warning("%s: chosen and rejected are the same in %d of %d rows.", self.name, self.same, count)
        if self.with_system:
            logger.warning(
                "%s: the column `system` is ignored, but %d rows have a value there. Make it the prompt's first message, as "
                "`cloud-hf prepare --layout system` does.",
                self.name,
                self.with_system,
            )
        if self.rendered * 2 > count:
            raise ValueError(
                f"{self.name}: {self.rendered} of {count} prompts look like chats rendered by a template, which would be rendered "
                "again. Give chat messages."
            )

    def settle(self, rows: Dataset, numbered: bool) -> tuple[Dataset, Any]:
        """
        Return the usable rows, with the column `POSITION` if `numbered`, and their form. Raises `ValueError` if they differ in form, or if
        [`BadRows.settle`] raises it.
        """
        if len(self.forms) > 1:
            found = "; ".join(
                f"{number} rows as {form} (row {self.examples[form]})" for form, number in self.forms.most_common()
            )
            raise ValueError(
                f"{self.name} mixes rows of different forms: {found}. Convert all rows to one form, or split the dataset."
            )
        left_out = self.bad.settle(len(rows))
        rows = without(rows.add_column(POSITION, list(range(len(rows)))) if numbered else rows, left_out)
        [form] = self.forms or [None]
        level = logging.INFO if form in (TEXT, Form(TEXT, TEXT)) else logging.WARNING
        logger.log(level, "%s: %d rows are read as %s.", self.name, len(rows), form)
        return rows, form


def iterate_rows(rows: Dataset) -> Iterator[tuple[int, dict[str, Any]]]:
    """
    Yield `(position, row)` pairs, reading the rows in batches for speed. A row with invalid text becomes a `_NotText`, which raises
    `ValueError` when a column is accessed.
    """
    columns = rows.with_format("arrow")
    plain = not any(map(_holds_json, rows.features.values()))
    for start in range(0, len(rows), 1000):
        stop = min(start + 1000, len(rows))
        if plain:  # not for JSON columns, whose values Arrow would return undecoded
            try:
                table: Any = columns[start:stop]
                yield from enumerate(table.to_pylist(), start)
                continue
            except UnicodeDecodeError:
                pass  # one of the rows is invalid; read them one by one to find it
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
    """Return whether a column contains values that `datasets` decodes from JSON."""
    if isinstance(feature, dict):
        return any(map(_holds_json, feature.values()))
    return isinstance(feature, Json) or (isinstance(feature, List | LargeList) and _holds_json(feature.feature))


def _convert(rows: Dataset, kinds: dict[str, Any], convert: Callable, **options: Any) -> Dataset:
    """Replace the columns in `kinds` with converted columns of these types."""
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
    Read one row. Raises a `ValueError` that names the field if the row cannot be read, or can be read in two ways.

    Examples:

    ```python
    >>> read_preference({"chosen": "\\n\\nHuman: Hi\\n\\nAssistant: Hello", "rejected": "\\n\\nHuman: Hi\\n\\nAssistant: What?"})[1:]
    ([{'role': 'user', 'content': 'Hi'}], 'Hello', 'What?')
    ```
    """
    if row.get("chat_template_kwargs"):
        raise ValueError(
            "`chat_template_kwargs` are set per row, but a reward model uses the same ones for all chats. Remove the column."
        )
    (kind, chosen), (other, rejected) = (read_column(row[side], side) for side in SIDES)
    if kind != other:
        raise ValueError(f"`chosen` was read as {kind} but `rejected` as {other}; give both in the same form.")
    # Complete chats need no prompt, so an empty prompt counts as missing
    has_prompt = "prompt" in row and (row["prompt"] not in (None, "", []) or _is_response(chosen))
    prompt_kind, prompt = read_column(row["prompt"], "prompt") if has_prompt else (ABSENT, [])
    if isinstance(chosen, str) or isinstance(rejected, str):
        if prompt_kind == ABSENT and (other_name := next((name for name in _LIKE_PROMPT if row.get(name)), None)):
            raise ValueError(
                f"there is no `prompt`; rename `{other_name}` to `prompt` if it is the prompt, or remove it."
            )
        return _with_texts(prompt_kind, prompt, kind, str(chosen), str(rejected))
    if _is_response(chosen) != _is_response(rejected):
        raise ValueError(
            "one of `chosen` and `rejected` is a complete chat and the other only a response; give both in the same form."
        )
    if _is_response(chosen):
        if prompt_kind == ABSENT:
            raise ValueError(
                "`chosen` and `rejected` contain only responses, and there is no `prompt`; add the column `prompt`."
            )
        form = Form(prompt_kind, kind)
    else:
        form, prompt, chosen, rejected = Form(prompt_kind, kind, True), *_split(prompt_kind, prompt, chosen, rejected)
    return Preference(form, prompt, check_response(chosen, "chosen"), check_response(rejected, "rejected"))


def _is_response(value: str | list[dict[str, Any]]) -> bool:
    """Return whether a column contains only a response, not a complete chat."""
    return isinstance(value, str) or value[0]["role"] in ("assistant", "tool")


def _with_texts(prompt_kind: str, prompt: Any, kind: str, chosen: str, rejected: str) -> Preference:
    form = Form(prompt_kind, kind)
    if prompt_kind == ABSENT:
        return Preference(form, *_common_beginning(chosen, rejected))
    if prompt_kind == TRANSCRIPT:
        # Remove the space after "Assistant:"
        chosen, rejected = chosen.strip(), rejected.strip()
    return Preference(form, prompt, chosen, rejected)


def _common_beginning(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Split two texts at the last white space of their common beginning, which TRL calls the implicit prompt."""
    if _RENDERED.match(chosen):
        raise ValueError(
            "`chosen` looks like a chat rendered by a template, and there is no `prompt`; give chat messages."
        )
    if TURN.search(chosen):
        raise ValueError(
            "`chosen` is ambiguous: it could be plain text, or a preamble followed by a transcript. Give chat messages, with "
            "the preamble as the system message."
        )
    most = min(len(chosen), len(rejected)) - 1  # leave a response even if one text is the beginning of the other
    length = next((place for place in range(most) if chosen[place] != rejected[place]), most)
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
    """Split two complete chats into their common turns and the remaining turns of each, and check the common turns against the prompt."""
    most = min(len(chosen), len(rejected)) - 1
    shared = next((place for place in range(most) if chosen[place] != rejected[place]), most)
    # The prompt must end with a turn that asks for a response
    while shared and chosen[shared - 1]["role"] not in ("user", "tool"):
        shared -= 1
    if not shared:
        raise ValueError(
            "`chosen` and `rejected` are complete chats without a common user turn, so they answer different prompts."
        )
    common = chosen[:shared]
    if kind == TEXT:
        if prompt.strip() not in {turn.get("content", "").strip() for turn in common if turn["role"] == "user"}:
            raise ValueError(
                f"`prompt` is {prompt!r:.60}, but `chosen` and `rejected` have no common user turn with this text."
            )
    elif kind == WITH_TOOLS:
        raise ValueError(
            "`prompt` contains messages and tools; with complete chats, put the tools in the column `tools`."
        )
    elif kind != ABSENT and prompt != common[: len(prompt)]:
        raise ValueError("`chosen` and `rejected` are complete chats that do not begin with the turns of `prompt`.")
    return common, chosen[shared:], rejected[shared:]


def check_response(turns: list[dict[str, Any]], column: str, allow_empty: bool = False) -> Response:
    """Check the turns of a response. Return its text if it is a single turn of plain text, otherwise the turns."""
    last = turns[-1]
    if last["role"] != "assistant":
        raise ValueError(f"`{column}` ends with a {last['role']!r} turn; its last message must be the assistant's.")
    if not allow_empty and not last.get("content", "").strip() and not last.keys() - {"role", "content"}:
        raise ValueError(f"`{column}` is empty.")
    return last["content"] if len(turns) == 1 and last.keys() == {"role", "content"} else turns
