"""What a page must be for everybody to read it: rules that a parsed page is checked by."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from xml.etree.ElementTree import Element

import html5lib

_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
_LOADS = (
    "src",
    "href",
    "data",
    "poster",
    "srcset",
    "action",
    "formaction",
    "background",
    "{http://www.w3.org/1999/xlink}href",
)


def parsed(text: str) -> Element:
    """Return a page's tree; what isn't valid HTML is an error."""
    found: Element = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(text)
    return found


def words(element: Element) -> str:
    return " ".join("".join(element.itertext()).split())


def faults(page: Element) -> Iterator[str]:
    """Yield what is wrong with a page."""
    if not page.get("lang"):
        yield "the language isn't said"
    if not words(next(page.iter("title"), Element("title"))):
        yield "there is no title"
    levels = [_HEADINGS.index(e.tag) + 1 for e in page.iter() if e.tag in _HEADINGS]
    if levels.count(1) != 1 or levels[:1] != [1]:
        yield "there must be one h1, and it comes first"
    if any(b > a + 1 for a, b in itertools.pairwise(levels)):
        yield "a level of headings is left out"
    if any(not words(e) for e in page.iter() if e.tag in (*_HEADINGS, "caption", "a")):
        yield "a heading, caption or link is empty"
    for table in page.iter("table"):
        if table.find("caption") is None:
            yield "a table has no caption"
        if any(not th.get("scope") for th in table.iter("th")):
            yield "a th has no scope"
        if any(not words(th) for th in table.iter("th")):
            yield "a th is empty"
        widths = {len(row) for row in table.iter("tr")}
        if len(widths) > 1:
            yield f"rows of a table differ in length: {widths}"
    yield from (f"an image has no text: {img.get('src')}" for img in page.iter("img") if not img.get("alt"))
    for svg in (e for e in page.iter() if e.tag.endswith("svg")):
        if svg.get("aria-hidden") != "true" and not (svg.get("role") == "img" and svg.get("aria-label")):
            yield "a picture is neither hidden nor described"
    ids = [e.get("id") for e in page.iter() if e.get("id")]
    if len(set(ids)) != len(ids):
        yield "an id is given twice"
    for link in page.iter("a"):
        if (link.get("href") or "").removeprefix("#") not in ids:
            yield f"a link leads nowhere: {link.get('href')}"
    for element in page.iter():
        for name in ("aria-labelledby", "aria-describedby"):
            if element.get(name, ids[0] if ids else "") not in ids and element.get(name):
                yield f"{name} names nothing"


def loads(page: Element) -> Iterator[str]:
    """Yield what could run or load something: scripts, handlers, addresses, and styles that fetch."""
    for element in page.iter():
        if element.tag.rpartition("}")[2] in (
            "script",
            "iframe",
            "object",
            "embed",
            "link",
            "base",
            "form",
            "foreignObject",
        ):
            yield f"<{element.tag}>"
        for name, value in element.attrib.items():
            inside = value.startswith("#") or re.fullmatch(r"data:image/png;base64,[A-Za-z0-9+/=]+", value)
            if name.lower().startswith("on") or (name.lower() in _LOADS and not inside):
                yield f"{name}={value}"
            if name == "style" and "url(" in value:
                yield value
        if element.tag == "style" and re.search(r"url\(|@import", element.text or ""):
            yield "a style that loads"
        if element.tag == "meta" and (element.get("http-equiv") or "").lower() == "refresh":
            yield "a refresh"


def palettes(page: Element) -> dict[str, dict[str, tuple[int, int, int]]]:
    """Return the colors by name, of the light and the dark page."""
    style = "".join(e.text or "" for e in page.iter("style"))
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    read = [{n: tuple(bytes.fromhex(v)) for n, v in re.findall(r"--(\w+): #([0-9a-f]{6})", block)} for block in blocks]
    names = ("light", "dark", "print")
    return {name: colors for name, colors in zip(names, read, strict=True)}  # type: ignore[misc]


def contrast(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    """Return the contrast of two colors, of WCAG 2.2 (relative luminance; success criterion 1.4.3)."""

    def luminance(color: tuple[int, int, int]) -> float:
        linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
