"""
Griffe extension: adapt the docstrings, written in TRL's grammar, to the Google grammar that mkdocstrings reads.

`` name (`int`, *optional*, defaults to `1`): `` becomes `name (int):`, because the signature shows the default, and
`` [`CLoudConfig`] `` becomes a link where the API pages document that name.
"""

import re
from pathlib import Path

from griffe import Extension, Object


ARGUMENT = re.compile(r"^(?P<indent> +)(?P<names>[*\w]+(?:, [*\w]+)*) \((?P<kind>.*)\):$", re.MULTILINE)
RAISED = re.compile(r"^(?P<indent> +)`(?P<error>\w+)`: ", re.MULTILINE)
SECTION = re.compile(r"^(?P<title>Raises|Returns):\n(?P<body>(?: +\S.*\n?)+)", re.MULTILINE)
CONTINUED = re.compile(r"(?<=\n)    (?![ `]|\[`)")
SUBTITLE = re.compile(r"^ *> Parameters that control .*\n", re.MULTILINE)
REFERENCE = re.compile(r"\[`~?(?P<name>[\w.]+)`\](?!\[|\()")
DOCUMENTED = re.compile(r"^::: (?P<path>[\w.]+)", re.MULTILINE)


def documented_names() -> dict[str, str]:
    """Return the path of each documented object by its last name."""
    pages = sorted((Path(__file__).parent / "api").glob("*.md"))
    paths = [match["path"] for page in pages for match in DOCUMENTED.finditer(page.read_text(encoding="utf8"))]
    return {path.rpartition(".")[2]: path for path in paths}


def adapt(text: str, documented: dict[str, str]) -> str:
    """Return a docstring in Google's grammar, with links."""

    def link(match: re.Match) -> str:
        name, _, member = match["name"].partition(".")
        path = documented.get(name)
        shown = match["name"].rpartition(".")[2] if match[0].startswith("[`~") else match["name"]
        return f"[`{shown}`][{path}]" if path and not member else f"`{shown}`"

    def argument(match: re.Match) -> str:
        kind = REFERENCE.sub(lambda reference: reference["name"], match["kind"])
        kind = re.sub(r", \*optional\*.*$", "", kind).replace("`", "")
        return f"{match['indent']}{match['names']} ({kind}):"

    # Google's grammar has one list of parameters, and indents the second line of an entry
    text = SUBTITLE.sub("", text)
    text = SECTION.sub(lambda match: f"{match['title']}:\n{CONTINUED.sub(' ' * 8, match['body'])}", text)
    text = ARGUMENT.sub(argument, text)
    text = RAISED.sub(lambda match: f"{match['indent']}{match['error']}: ", text)
    return REFERENCE.sub(link, text)


class TRLDocstrings(Extension):
    """Adapt each docstring when it is collected."""

    def __init__(self):
        self.documented = documented_names()

    def on_object(self, *, obj: Object, **kwargs):
        if obj.docstring is not None:
            obj.docstring.value = adapt(obj.docstring.value, self.documented)
