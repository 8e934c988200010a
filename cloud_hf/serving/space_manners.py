"""What the Spaces have in common: strings that stay text, errors in a sentence, and a look that needs nothing from outside."""

import html
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
