"""Sections of a report, and the template that all reports share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jinja2 import Environment, StrictUndefined

from ..tables import Table


@dataclass(frozen=True)
class Section:
    """
    A section of a report: a heading of some level (or none), paragraphs, tables, notes as a list, and pictures by file name with
    their descriptions.
    """

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
# Markdown, not HTML: nothing is escaped. Cells of tables replace the characters that would break them.
_ENVIRONMENT = Environment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, autoescape=False)


def render(sections: Sequence[Section]) -> str:
    """Return sections as Markdown that ends in one line break."""
    return _ENVIRONMENT.from_string(_TEMPLATE).render(sections=sections).rstrip() + "\n"
