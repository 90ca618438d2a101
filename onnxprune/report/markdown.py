"""Tables, headings and paragraphs as Markdown, for pull requests and job summaries.

Tables are those of GitHub Flavored Markdown (https://github.github.com/gfm/#tables-extension-). Names of a model can't
become markup.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from rich.console import RenderableType
from rich.constrain import Constrain
from rich.padding import Padding
from rich.text import Text

from onnxprune.report.layout import Heading, Name, Sheet
from onnxprune.report.text import printable

_MARKUP = re.compile(r"[\\`*\[\]<>|~&]|(?<![^\W_])_|_(?![^\W_])")
_BLOCK = re.compile(r"^(\d*)([#+=.)-])")  # what can make a list or a heading at the start of a line
_CODE = re.compile(r"(`[^`\n]+`)")


def to_markdown(parts: Iterable[RenderableType]) -> str:
    """Return the parts of a report as Markdown.

    Examples:
        >>> from onnxprune.report.layout import heading, right, table
        >>> print(to_markdown([heading("cost"), table(right("before", "after"), [("3", "2")])]), end="")
        ### cost
        <BLANKLINE>
        | before | after |
        | ---: | ---: |
        | 3 | 2 |
    """
    blocks = [text for part in parts if (text := _block(part))]
    return "\n\n".join(blocks) + "\n"


def _block(part: RenderableType) -> str:
    """Return a part as a block, empty if there is nothing to show."""
    match part:
        case Padding() | Constrain():
            return _block(part.renderable)
        case Heading():
            return f"### {_inline(part.text)}" + (f"\n\n{_paragraph(part.note)}" if part.note else "")
        case Sheet():
            return _table(part)
        case Text():
            return _paragraph(part.plain)
    raise TypeError(f"a report has a part that is no table, heading or text: {type(part).__name__}")


def _table(sheet: Sheet) -> str:
    if not sheet.rows:
        return ""
    lines = [
        [_inline(str(column.header)) for column in sheet.columns],
        ["---:" if column.justify == "right" else "---" for column in sheet.columns],
        *([_cell(cell) for cell in row] for row in sheet.rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(cell: Text | Name) -> str:
    return _inline(f"{cell.tag}{cell.text}" if isinstance(cell, Name) else cell.plain)


def _paragraph(text: str) -> str:
    return _BLOCK.sub(r"\1\\\2", _inline(text))


def _inline(text: str) -> str:
    """Escape what would be markup; commands in backquotes stay code."""
    words = " ".join(printable(text).split())
    pieces = _CODE.split(words)
    return "".join(
        piece.replace("|", r"\|") if number % 2 else _MARKUP.sub(lambda found: "\\" + found[0], piece)
        for number, piece in enumerate(pieces)
    )
