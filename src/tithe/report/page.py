"""Write an HTML page that is one file: no scripts, no fonts, nothing fetched, and all text from data escaped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from tithe.data.outfile import atomic

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1c1c1c }
h1 { font-size: 1.6rem; margin-bottom: .2rem } h2 { font-size: 1.2rem; margin-top: 2.2rem }
table { border-collapse: collapse; margin: .8rem 0; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid #ddd; vertical-align: top }
th { font-weight: 600 } .note { color: #555 } svg { max-width: 100%; height: auto }
.better { color: #1b6e45; font-weight: 600 } .worse { color: #a63d12; font-weight: 600 }
.scroll { overflow-x: auto } details { margin: .8rem 0 } pre { overflow-x: auto; background: #f5f5f5; padding: .8rem }
</style></head><body>
<h1>{{ title }}</h1>
{% for part in parts %}{% if part.title %}<h2>{{ part.title }}</h2>{% endif %}
{% for line in part.lines %}<p{% if part.kind %} class="{{ part.kind }}"{% endif %}>{{ line | words }}</p>
{% endfor %}{% if part.verdicts %}<ul>
{% for kind, line in part.verdicts %}<li class="{{ kind }}">{{ line | words }}</li>
{% endfor %}</ul>{% endif %}{% for drawing in part.drawings %}<div class="scroll">{{ drawing | safe }}</div>
{% endfor %}{% if part.rows %}<div class="scroll"><table><tr>{% for cell in part.rows[0] %}<th>{{ cell }}</th>
{% endfor %}</tr>{% for row in part.rows[1:] %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>{% endif %}{% if part.text %}<pre>{{ part.text }}</pre>{% endif %}
{% endfor %}</body></html>
"""


@dataclass(frozen=True)
class Section:
    """A section of a page.

    Args:
        title: heading; an empty text for none.
        lines: paragraphs.
        kind: CSS class of the paragraphs: `note`, or empty.
        verdicts: list items, each a CSS class and a sentence.
        drawings: SVG elements; not escaped, so only our own.
        rows: rows of a table; the first one is its head.
        text: preformatted text.
    """

    title: str = ""
    lines: Sequence[str] = ()
    kind: str = ""
    verdicts: Sequence[tuple[str, str]] = ()
    drawings: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = field(default=())
    text: str = ""


def words(line: str) -> Markup:
    """Return a sentence as HTML: escaped, with text between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(line))))  # `str`: a Markup would escape our tags


def write_page(path: Path, title: str, parts: Sequence[Section], *, overwrite: bool = True) -> None:
    """Write the page; by default it replaces an existing one."""
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters["words"] = words
    text = environment.from_string(PAGE).render(title=title, parts=parts)
    with atomic(path, overwrite=overwrite) as stream:
        stream.write(text.encode("utf-8", "replace"))
