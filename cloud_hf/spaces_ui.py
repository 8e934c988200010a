"""Components shared by all Spaces: theme, escaping, error messages, HTML tables, and tables that users paste or upload."""

import csv
import html
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.themes import Default


# System fonts, because Gradio's default fonts are loaded from Google
_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
_MONOSPACE_FONTS = ["ui-monospace", "SFMono-Regular", "Consolas", "monospace"]
# The default color of Gradio's footer is too pale to read, and a wide table must not widen a narrow page
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
# Gradio expands two kinds of template fields in HTML, and untrusted text must not open either kind
_TEMPLATE_SIGNS = str.maketrans({sign: f"&#{ord(sign)};" for sign in "{}$`\\@"})
_LONGEST_MESSAGE = 600
_LONGEST_CELL = 2000
# The default refuses cells longer than 131,072 characters; uploads are limited as a whole
csv.field_size_limit(2**31 - 1)


# ------------------------------------------------------------------------------------------------------------ launch


def analytics_wanted() -> bool:
    """Return whether the user has turned on Gradio's analytics, which are off by default."""
    return os.environ.get("GRADIO_ANALYTICS_ENABLED") == "True"


def launch_options() -> dict[str, Any]:
    """Return the `launch` options of every Space: system fonts, readable colors, no sharing, and uploads of up to 20 MB."""
    theme = Default(primary_hue="blue", font=_FONTS, font_mono=_MONOSPACE_FONTS).set(
        body_text_color_subdued="*neutral_600",
        color_accent="*primary_600",
        # White text on these colors meets WCAG AA, also on hover and in dark mode
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_hover_dark="*primary_700",
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


# -------------------------------------------------------------------------------------------------------- components


def upload_box() -> gr.File:
    """Create the upload box for a table file, which [`read_text`] reads."""
    kinds = [".csv", ".tsv", ".txt", ".json", ".jsonl"]
    return gr.File(label="Or a file, which replaces the text", file_types=kinds, height=150)


def compute_on(triggers: Sequence, compute: Callable, inputs: list, outputs: list, **options):
    """
    Compute outputs when an event is triggered. The first of `outputs` must be the column that contains the results. It is hidden before the
    computation, so that old results do not appear next to a new error.
    """
    hide: Any = {"queue": False, "api_visibility": "private"}
    hidden = gr.on(triggers, lambda: gr.Column(visible=False), None, outputs[0], **hide)
    hidden.then(compute, inputs, outputs, api_visibility="private", **options)


# ------------------------------------------------------------------------------------------------------------ errors


@contextmanager
def user_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Show a `ValueError`, an error of one of `kinds` or an out-of-memory error on the page, as one sentence."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            message = "Out of memory. Score fewer or shorter rows, or lower max_new_tokens."
            raise user_error(message) from error
        if isinstance(error, (ValueError, *kinds)):
            raise user_error(str(error)) from error
        raise


def user_error(message: str, duration: float | None = None) -> gr.Error:
    """Return an error that the page shows as plain text for `duration` seconds, or by default until the user closes it."""
    if len(message) > _LONGEST_MESSAGE:
        message = f"{message[:_LONGEST_MESSAGE]} …"
    # Gradio renders messages as HTML
    return gr.Error(html.escape(message, quote=False), duration=duration, print_exception=False)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether the error means that the GPU or the machine ran out of memory."""
    # Compared by name, so that the page need not import torch, which is slow. On the CPU, torch raises a plain RuntimeError.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))
    )


# -------------------------------------------------------------------------------------------------------------- HTML


def as_text(value: Any) -> str:
    """Return HTML that shows a value literally. HTML has no null character; it becomes U+FFFD."""
    return html.escape(str(value).replace("\0", "\ufffd")).translate(_TEMPLATE_SIGNS)


def make_table(caption: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return an HTML table for `gr.HTML`. Cells are plain text; long cells are truncated, with a note."""
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


# ---------------------------------------------------------------------------------------------------- pasted tables


def read_text(path: str | Path) -> str:
    """Read an uploaded text file. Raises `ValueError` if it is not UTF-8."""
    path = Path(path)
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path.name} is not UTF-8 text. Save the table as CSV (UTF-8), JSON lines or JSON."
        ) from error


def read_table(text: str, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, list]:
    """
    Read a table into columns with one value per row. Text that starts with `[` or `{` is read as JSON, other text as CSV,
    whose values are all strings.

    Args:
        text (`str`):
            CSV with a header (delimited by commas, semicolons or tabs), JSON lines with one object per row, a JSON list of such
            objects, or one JSON object with a list per column.
        required, optional (`Sequence[str]`):
            Columns that all rows must have, and columns that must be in all rows or in none. Plural names are also accepted;
            other columns are ignored.

    Raises:
        `ValueError`: If the table is malformed; the message names the row or line.
    """
    text = text.removeprefix("\ufeff").strip("\r\n")
    if not text.strip():
        raise ValueError("There are no rows. Paste some, or choose a file.")
    rows = _read_json(text) if text.lstrip()[0] in "[{" else _read_csv(text)
    plurals = {f"{name}s": name for name in (*required, *optional)}
    for plural, name in plurals.items():
        if both := [index for index, row in enumerate(rows) if plural in row and name in row]:
            raise ValueError(f"Row {both[0]}: both `{name}` and `{plural}` are given; keep one of them.")
    rows = [{plurals.get(name, name): value for name, value in row.items()} for row in rows]
    columns = {}
    for name in (*required, *optional):
        lacking = [index for index, row in enumerate(rows) if name not in row]
        if len(lacking) == len(rows) and name in optional:
            continue
        if len(lacking) == len(rows):
            found = ", ".join(f"`{column}`" for column in rows[0])
            raise ValueError(
                f"There is no column `{name}`, only {found:.200}. Name the columns in the first line of CSV, or as the keys "
                "of JSON objects."
            )
        if lacking:
            raise ValueError(f"Row {lacking[0]}: `{name}` is missing, but other rows have it.")
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
                    f"{len(header)} columns. Quote text that contains the delimiter."
                )
            rows.append(dict(zip(header, fields, strict=True)))
    except csv.Error as error:
        raise ValueError(f"Line {reader.line_num} is not CSV: {error}. Is a quote left open?") from error
    named = [name for name in header if name]  # spreadsheets export empty columns without names
    if len(set(named)) < len(named):
        raise ValueError("The first line names a column twice.")
    if not rows:
        raise ValueError(
            "There are no rows below the first line, which names the columns (such as `chosen,rejected`)."
        )
    return rows


def _read_json(text: str) -> list[dict[str, Any]]:
    try:
        rows = _decode(text)
    except json.JSONDecodeError as error:
        if text.lstrip()[0] == "[":
            raise ValueError(f"This is not JSON: {error}.") from error
        rows = _read_json_lines(text)
    if isinstance(rows, dict):
        is_columns = rows and all(isinstance(column, list) for column in rows.values())
        rows = _rows_of(rows) if is_columns else [rows]
    if not rows:
        raise ValueError("There are no rows: the list is empty.")
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"Row {index} is {row!r:.60}; give an object with the columns as keys.")
    return rows


def _read_json_lines(text: str) -> list:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows.append(_decode(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"Line {number} is not JSON: {error.msg} at character {error.colno}.") from error
    return rows


def _decode(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("This JSON is nested too deeply.") from error


def _rows_of(columns: dict[str, list]) -> list[dict[str, Any]]:
    counts = {name: len(column) for name, column in columns.items()}
    if len(set(counts.values())) > 1:
        lengths = ", ".join(f"{count} of `{name}`" for name, count in counts.items())
        raise ValueError(f"The columns differ in length ({lengths:.200}): give the same number of values for each.")
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


# Names in version 0.1
in_our_words, sentence = user_errors, user_error
