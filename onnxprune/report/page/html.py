"""A report as one HTML file: no script, no network, nothing that a model's names or data could turn into markup."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from onnxprune.report.page.drawing import plot, ruler
from onnxprune.report.page.parts import Cell, Story
from onnxprune.report.text import printable


def to_html(told: Story) -> str:
    """Return a report as an HTML page."""
    return _template().render(told=told)


@cache
def _template() -> Template:
    made = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_clean,
    )
    made.globals |= {"plot": plot, "ruler": ruler, "cell": _cell}
    text = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    return made.from_string(text)


def _cell(value: str | Cell) -> Cell:
    return Cell(value) if isinstance(value, str) else value


def _clean(value: Any) -> Any:
    """Escape control characters, and what changes the direction of text."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
