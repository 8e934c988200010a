"""
Text that becomes part of the page, and stays text.

`escape` is `as_text` of `cloud_hf.spaces_ui`, which the page cannot wait for: the package takes seconds to import.
"""

import html


# Gradio fills templates of two kinds: what opens a field there must not come from a text
_TEMPLATE_SIGNS = str.maketrans({sign: f"&#{ord(sign)};" for sign in "{}$`\\@"})


def escape(text: str) -> str:
    """HTML that shows `text` as it is, whatever it spells."""
    return html.escape(text.replace("\0", "\ufffd"), quote=True).translate(_TEMPLATE_SIGNS)


def paragraph(text: str, kind: str = "text") -> str:
    """A block with a text of a user or a model, line breaks and all, that can be scrolled with the keyboard."""
    return f'<div class="{kind}" tabindex="0" dir="auto">{escape(text)}</div>'


def note(text: str) -> str:
    """A line of our own words."""
    return f'<p class="note">{escape(text)}</p>'


def failure(text: str) -> str:
    """What went wrong, where `status` stood."""
    return f'<p class="status bad">{escape(text)}</p>'


def status(text: str) -> str:
    """What is going on, which screen readers read out."""
    return f'<p class="status" role="status">{escape(text)}</p>'
