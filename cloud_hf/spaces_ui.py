"""What the Spaces have in common: strings that stay text, errors in a sentence, and a look that needs nothing from outside. Tables that a person pastes or uploads: CSV, JSON lines or JSON, told apart by how they begin."""

import csv
import html
import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
import torch


_LONGEST_MESSAGE = 600
# Gradio fills templates of two kinds: what opens a field there must not come from a text
_TEMPLATE_SIGNS = str.maketrans({sign: f"&#{ord(sign)};" for sign in "{}$`\\@"})
_LONGEST_CELL = 2000
# Gradio's footer is too pale to read, and wide tables must not widen a narrow page
_CSS = """
footer a, footer button, footer .divider { color: var(--body-text-color) !important; }
.plain-table { overflow: auto; max-height: 45em; }
.plain-table tr { border: none !important; }
.plain-table table { border-collapse: collapse; width: 100%; margin-bottom: 1em; }
.plain-table caption { text-align: left; font-weight: 600; padding: 0.3em 0; }
.plain-table th, .plain-table td {
    border: none; border-bottom: 1px solid var(--border-color-primary); padding: 0.35em 0.6em; text-align: left;
    vertical-align: top; overflow-wrap: anywhere; white-space: pre-wrap; unicode-bidi: isolate;
}
.plain-table td.long { min-width: 14em; }
.plain-table th, .plain-table td.short { white-space: nowrap; }
"""


def analytics_wanted() -> bool:
    """Whether somebody asked for Gradio's analytics; without being asked they stay off."""
    return os.environ.get("GRADIO_ANALYTICS_ENABLED") == "True"


def launch_options() -> dict[str, Any]:
    """What every Space is launched with: system fonts, colours that can be read, nothing shared, uploads up to 20 MB."""
    theme = gr.themes.Default(
        primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    ).set(
        body_text_color_subdued="*neutral_600",
        # White on these can be read (WCAG AA), under the mouse and while colours change too
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_800",
        button_transition="none",
    )
    return {
        "theme": theme,
        "css": _CSS,
        "share": False,
        "ssr_mode": False,
        "run_history": False,
        "max_file_size": "20mb",
    }


@contextmanager
def in_our_words(*kinds: type[Exception]) -> Iterator[None]:
    """Turn a `ValueError`, a lack of memory, or an error of `kinds` into a sentence on the page."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise sentence(
            "The memory does not suffice. Score fewer rows or shorter ones, or ask for fewer tokens."
        ) from error
    except (ValueError, *kinds) as error:
        raise sentence(str(error)) from error


def sentence(message: str) -> gr.Error:
    """An error for the page and for clients; Gradio shows messages as HTML."""
    if len(message) > _LONGEST_MESSAGE:
        message = f"{message[:_LONGEST_MESSAGE]} …"
    return gr.Error(html.escape(message, quote=False), duration=None, print_exception=False)


def as_text(value: Any) -> str:
    """A value as HTML that shows it as it is, whatever it spells; for the null character, which HTML lacks, stands U+FFFD."""
    return html.escape(str(value).replace("\0", "\ufffd")).translate(_TEMPLATE_SIGNS)


def make_table(caption: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """An HTML table of plain text, for `gr.HTML`. Long values are cut, and say so."""
    head = "".join(f'<th scope="col">{as_text(name)}</th>' for name in header)
    body = "".join(f"<tr>{''.join(map(_make_cell, row))}</tr>" for row in rows)
    return (
        f'<div class="plain-table" tabindex="0" role="region" aria-label="{as_text(caption)}"><table>'
        f"<caption>{as_text(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _make_cell(value: Any) -> str:
    text = str(value)
    if len(text) > _LONGEST_CELL:
        text = f"{text[:_LONGEST_CELL]} … ({len(text)} characters in all)"
    width = "short" if len(text) <= 12 else "long" if len(text) > 60 else ""
    return f'<td class="{width}">{as_text(text)}</td>'


def read_text(path: str | Path) -> str:
    """
    The text of an uploaded file.

    Raises:
        `ValueError`: If it is no text in UTF-8.
    """
    path = Path(path)
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path.name} is no text in UTF-8. Save the table as CSV (UTF-8), JSON lines or JSON."
        ) from error


def read_table(text: str, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, list]:
    """
    The columns of a table.

    Args:
        text (`str`):
            CSV whose first line names the columns (split at commas, semicolons or tabs), JSON lines with an object per row,
            a JSON list of such objects, or one JSON object with a list per column.
        required (`Sequence[str]`):
            Columns that must be there. The plural of a name is understood; other columns are passed over.
        optional (`Sequence[str]`, *optional*):
            Columns that are there for all rows or for none.

    Returns:
        `dict[str, list]`: One value per row for each column that is there. Values from CSV are text.

    Raises:
        `ValueError`: Saying in which row or line what is wrong.

    Examples:

    ```python
    >>> read_table("chosen,rejected\\n1.0,0.5\\n2.0,3.0", ["chosen", "rejected"])
    {'chosen': ['1.0', '2.0'], 'rejected': ['0.5', '3.0']}
    ```
    """
    text = text.removeprefix("\ufeff").strip("\r\n")
    if not text.strip():
        raise ValueError("There are no rows. Paste some, or choose a file.")
    rows = _read_json(text) if text.lstrip()[0] in "[{" else _read_csv(text)
    plurals = {f"{name}s": name for name in (*required, *optional)}
    return _gather(
        [{plurals.get(name, name): value for name, value in row.items()} for row in rows], required, optional
    )


def _gather(rows: list[dict[str, Any]], required: Sequence[str], optional: Sequence[str]) -> dict[str, list]:
    columns = {}
    for name in (*required, *optional):
        lacking = [index for index, row in enumerate(rows) if name not in row]
        if len(lacking) == len(rows) and name in optional:
            continue
        if len(lacking) == len(rows):
            there = ", ".join(f"`{column}`" for column in rows[0])
            raise ValueError(
                f"There is no column `{name}`, only {there:.200}. The first line of CSV names the columns, as do the keys "
                "of JSON."
            )
        if lacking:
            raise ValueError(f"Row {lacking[0]}: `{name}` is missing, which other rows have.")
        columns[name] = [row[name] for row in rows]
    return columns


def _read_csv(text: str) -> list[dict[str, str]]:
    delimiter = max(",;\t", key=text.split("\n", 1)[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[dict[str, str]] = []
    try:
        header = [name.strip() for name in next(reader)]
        for fields in reader:
            if not fields:
                continue
            if len(fields) != len(header):
                raise ValueError(
                    f"Row {len(rows)} (line {reader.line_num}): {len(fields)} fields, but the first line names "
                    f"{len(header)} columns. Text that holds the delimiter must stand in quotes."
                )
            rows.append(dict(zip(header, fields, strict=True)))
    except csv.Error as error:
        raise ValueError(f"Line {reader.line_num} is not CSV: {error}. Is a quote not closed?") from error
    if len(set(header)) < len(header):
        raise ValueError("The first line names a column twice.")
    if not rows:
        raise ValueError("There are no rows below the first line, which names the columns (`chosen,rejected`, say).")
    return rows


def _read_json(text: str) -> list[dict[str, Any]]:
    try:
        value = _decode(text)
    except json.JSONDecodeError as error:
        if text.lstrip()[0] == "[":
            raise ValueError(f"This is not JSON: {error}.") from error
        return _read_json_lines(text)
    if isinstance(value, dict) and value and all(isinstance(column, list) for column in value.values()):
        return _turn(value)
    rows = [value] if isinstance(value, dict) else value
    _check_objects(rows)
    return rows


def _read_json_lines(text: str) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows.append(_decode(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"Line {number} is not JSON: {error.msg} at character {error.colno}.") from error
    _check_objects(rows)
    return rows


def _decode(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("This JSON is nested too deeply.") from error


def _check_objects(rows: list):
    if not rows:
        raise ValueError("There are no rows: the list is empty.")
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"Row {index} is {row!r:.60}; give an object with the columns as keys.")


def _turn(columns: dict[str, list]) -> list[dict[str, Any]]:
    """Rows of a table that was given by columns."""
    counts = {name: len(column) for name, column in columns.items()}
    if len(set(counts.values())) > 1:
        lengths = ", ".join(f"{count} of `{name}`" for name, count in counts.items())
        raise ValueError(f"The columns differ in length ({lengths:.200}): give as many values of each.")
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    _check_objects(rows)
    return rows
