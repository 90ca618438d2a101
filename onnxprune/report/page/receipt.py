"""A report as a few lines of Markdown, for pull requests and job summaries."""

from __future__ import annotations

import shlex

from onnxprune.report.layout import Rows, Tables, flexible, heading, left, paragraph, right, table
from onnxprune.report.markdown import to_markdown
from onnxprune.report.page.parts import Grid, Story, Tone
from onnxprune.report.page.tried import BROUGHT

_MARKS: dict[Tone, str] = {"good": "✅", "warn": "⚠️", "bad": "❌", "plain": "•"}
_REASONS = 3


def to_receipt(told: Story) -> str:
    """Return a report as a short Markdown text: what came out, what was checked, and the command."""
    return to_markdown(_parts(told))


def _parts(told: Story) -> Tables:
    yield heading(told.title, f"{told.subtitle} by onnxprune {told.version}")
    if told.figures:
        rows: Rows = [(f.title, f.before, f.after, f.change, f.note) for f in told.figures]
        yield table(left("") + right("before", "after", "change") + flexible("interval"), rows)
    if told.verdicts:
        yield table(left("", "result"), [(_MARKS[v.tone], v.text) for v in told.verdicts])
    for section in told.sections:
        for part in section.parts:
            if isinstance(part, Grid) and part.caption == BROUGHT:
                titles = [title.lstrip("<>") for title in part.columns]
                yield table(left(*titles), [list(map(str, row)) for row in part.rows])
            elif isinstance(part, Grid) and section.key == "stayed" and part.columns[0] == "reason":
                reasons = [str(row[0]) for row in part.rows[:_REASONS]]
                more = f" and {len(part.rows) - _REASONS} more" if len(part.rows) > _REASONS else ""
                yield paragraph(f"What can't be removed: {', '.join(reasons)}{more}.")
            elif isinstance(part, Grid) and section.key == "environment":
                about = {str(row[0]): str(row[1]) for row in part.rows}
                known = [about[key] for key in ("processor", "execution provider", "ONNX Runtime") if key in about]
                yield paragraph(f"Measured on: {'; '.join(known)}.")
    for words in told.command:
        yield paragraph(f"`{shlex.join(words).replace('`', chr(39))}`")
