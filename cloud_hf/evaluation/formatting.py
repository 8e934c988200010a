"""Format reports in Markdown: numbers with their uncertainty, tables, sections, and file names."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import Environment, StrictUndefined

from .stats import Estimate


@dataclass(frozen=True)
class Form:
    """Format of a number in a table: multiplied by `scale`, with `digits` after the decimal point, followed by `mark`."""

    scale: float = 1.0
    digits: int = 3
    mark: str = ""
    sign: str = ""  # "+" also shows the sign of positive numbers
    # Scientific notation for numbers that would round to 0, so that rounding errors remain visible
    exponent: bool = False

    def number(self, value: float) -> str:
        """Format a number without the mark."""
        return f"{self.scale * value:{self.sign}.{self.digits}f}"

    def interval(self, ends: tuple[float, float]) -> str:
        """Format the bounds of an interval, without the mark."""
        return f"{self.number(ends[0])} to {self.number(ends[1])}"


NUMBER = Form()
PERCENT = Form(100.0, 1, "%")
WHOLE_PERCENT = Form(100.0, 0, "%")
POINTS = Form(100.0, 1, " points", "+")
NONE = "–"


def show(
    value: float | None,
    form: Form = PERCENT,
    *,
    error: float | None = None,
    ci95: tuple[float, float] | None = None,
    n: int | None = None,
) -> str:
    """
    Format a number with its standard error, interval and number of rows; an unknown number (`None` or NaN) is a dash.

    Examples:

    ```python
    >>> show(0.5, ci95=(0.25, 0.75), n=12)
    '50.0% (25.0 to 75.0), n = 12'
    ```
    """
    if value is None or math.isnan(value):
        return NONE
    is_tiny = form.exponent and 0 < abs(value) < 10**-form.digits
    number = "{:.1e}".format if is_tiny else form.number
    text = number(value) + form.mark
    if error is not None and not math.isnan(error):
        text += f" ± {number(error)}"
    if ci95 is not None:
        text += f" ({number(ci95[0])} to {number(ci95[1])})"
    return text if n is None else f"{text}, n = {n}"


def show_estimate(estimate: Estimate | None, form: Form = PERCENT, with_n: bool = True) -> str:
    """Format an estimate with its interval and, unless `with_n` is false, its number of rows. `None` becomes a dash."""
    if estimate is None:
        return NONE
    return show(estimate.value, form, ci95=estimate.ci95, n=estimate.n if with_n else None)


@dataclass(frozen=True)
class Table:
    """A report table: column headings, the cells of each row, and the text above (`title`) and below (`note`) the table."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    title: str = ""
    note: str = ""

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]], note: str = "") -> "Table":
        """Build a table from rows that map column headings to cells."""
        rows = list(rows)
        return cls([*rows[0]] if rows else [], [[*row.values()] for row in rows], note=note)

    def lines(self) -> list[str]:
        """Return only the lines of the table, in Markdown."""
        head = [_line(self.columns), "|---|" + "---:|" * (len(self.columns) - 1)] if self.columns else []
        return [*head, *map(_line, self.rows)]

    def markdown(self) -> str:
        """Return the table with its title and note, in Markdown."""
        return "\n\n".join(filter(None, [self.title, "\n".join(self.lines()), self.note]))


def _line(cells: Iterable[Any]) -> str:
    """Return a line of a Markdown table. Pipes and line breaks in cells are replaced, so they cannot break the line."""
    return f"| {' | '.join(str(cell).replace('|', '/').replace(chr(10), ' ') for cell in cells)} |"


@dataclass(frozen=True)
class Section:
    """A section of a report, without a heading if `title` is empty; `pictures` maps file names to descriptions."""

    title: str = ""
    text: str = ""
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
    pictures: Mapping[str, str] = field(default_factory=dict)
    level: int = 2


_TEMPLATE = """\
{% for section in sections %}
{% if section.title %}
{{ '#' * section.level }} {{ section.title }}

{% endif %}
{% if section.text %}
{{ section.text }}

{% endif %}
{% for table in section.tables %}
{{ table.markdown() }}

{% endfor %}
{% for note in section.notes %}
- {{ note }}
{{ '\n' if loop.last }}
{%- endfor %}
{% for file, description in section.pictures.items() %}
![{{ description }}]({{ file }})

{% endfor %}
{% endfor %}
"""
# The output is Markdown, so HTML is not escaped. `_line` replaces the characters that would break a table.
_ENVIRONMENT = Environment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, autoescape=False)


def render(sections: Sequence[Section]) -> str:
    """Return sections as Markdown that ends with one line break."""
    return _ENVIRONMENT.from_string(_TEMPLATE).render(sections=sections).rstrip() + "\n"


def contents(sections: Sequence[Section]) -> str:
    """Return a Markdown list of links to the sections of level 2."""
    titles = [section.title for section in sections if section.title and section.level == 2]
    anchors = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
    return "\n".join(f"- [{title}](#{anchor})" for title, anchor in zip(titles, anchors, strict=True))


def file_name(kind: str, short_name: str, suffix: str) -> str:
    """Return a file name for a model or a set. Slashes, which short names may contain, are replaced."""
    return f"{kind}_{short_name}.{suffix}".replace("/", "-")


def picture_name(kind: str, name: str) -> str:
    """Return the file name of a picture, in which all characters that would break Markdown links are replaced."""
    return re.sub(r"[^\w.-]+", "-", f"{kind}_{name}.png")
