"""Reports as Markdown, read back by a Markdown parser that shares nothing with the writer."""

from __future__ import annotations

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.constrain import Constrain
from rich.padding import Padding
from rich.text import Text

from onnxprune.report.layout import Name, Sheet, flexible, heading, left, paragraph, right, table
from onnxprune.report.markdown import to_markdown
from onnxprune.report.text import printable
from tests.report.test_widths import reports

HOSTILE = [
    "<script>alert(1)</script>",
    "a|b||c",
    "**bold** _it_ __x__ a_b_c",
    "[a](javascript:x) ![i](u)",
    "`code` and ` one",
    "``two``",
    "line\nbreak\x1b[2J",
    "&lt; &amp;",
    "\\| \\",
    "~~gone~~",
    "# title",
    "- item",
    "1. item",
    "+ item",
    "> quote",
    "===",
    "https://x.test",
]


def parsed(text: str) -> list[Token]:
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)


def plain(inline: Token) -> str:
    """Return the text of a paragraph or cell; only text and code are expected in it."""
    kinds = {child.type for child in inline.children or ()}
    assert kinds <= {"text", "code_inline", "text_special"}, (kinds, inline.content)
    return "".join(child.content for child in inline.children or ())


def tables(tokens: list[Token]) -> list[list[list[str]]]:
    found: list[list[list[str]]] = []
    for token, inside in zip(tokens, [*tokens[1:], *tokens[:1]], strict=True):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type in ("th_open", "td_open"):
            found[-1][-1].append(plain(inside))
    return found


def words(text: str) -> str:
    return " ".join(printable(text).split()).replace("`", "")


def sheet_of(part: object) -> Sheet | None:
    while isinstance(part, Padding | Constrain):
        part = part.renderable
    return part if isinstance(part, Sheet) else None


@pytest.mark.parametrize("report", reports())
def test_every_cell_of_a_report_is_there(report: str) -> None:
    parts = list(reports()[report]())
    sheets = [sheet for part in parts if (sheet := sheet_of(part)) is not None and sheet.rows]
    found = tables(parsed(to_markdown(parts)))
    assert len(found) == len(sheets)
    for sheet, (titles, *rows) in zip(sheets, found, strict=True):
        assert titles == [words(str(column.header)) for column in sheet.columns]
        cells = [[c.tag + c.text if isinstance(c, Name) else c.plain for c in row] for row in sheet.rows]
        assert rows == [[words(cell) for cell in row] for row in cells]


@pytest.mark.parametrize("text", HOSTILE)
def test_names_are_no_markup(text: str) -> None:
    parts = [heading(text, text), table(left(text) + flexible(""), [(text, Name(text))]), paragraph(text), Text(text)]
    tokens = parsed(to_markdown(parts))
    kinds = {token.type.removesuffix("_open").removesuffix("_close") for token in tokens}
    assert kinds == {"heading", "inline", "paragraph", "table", "thead", "tbody", "tr", "th", "td"}
    inlines = [line for token in tokens if token.type == "inline" and (line := plain(token))]
    assert [line.replace("`", "") for line in inlines] == [words(text)] * 7


def test_the_parser_sees_markup_where_there_is_some() -> None:
    """The control: the same texts, not escaped."""
    assert any(t.type == "heading_open" for t in parsed("# title"))
    with pytest.raises(AssertionError):
        plain(next(t for t in parsed("**bold**") if t.type == "inline"))


def test_figures_are_aligned() -> None:
    text = to_markdown([table(left("a") + right("b"), [("x", "1")])])
    (cells,) = ([t.attrs.get("style") for t in parsed(text) if t.type == kind] for kind in ("td_open",))
    assert cells == [None, "text-align:right"]


def test_what_is_empty_leaves_no_trace() -> None:
    assert to_markdown([Text(""), table(left("a"), []), paragraph("text")]) == "text\n"


def test_another_kind_of_part_is_a_bug() -> None:
    with pytest.raises(TypeError, match="str"):
        to_markdown(["text"])
