"""Short tables for notebooks. Everything is escaped: names come from files that anyone may have made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

COSTS = {"params": "parameters", "macs": "MACs", "size": "weights, bytes", "memory": "activations, peak bytes"}


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]], note: str = "") -> str:
    """Return an HTML table; the first column is text, the others are figures.

    Examples:
        >>> table("cost", ["", "MACs"], [["a < b", "7"]]).count("&lt;")
        1
    """

    def line(cells: Sequence[str], tag: str) -> str:
        sides = ["left", *["right"] * (len(cells) - 1)]
        pairs = zip(sides, cells, strict=True)
        return "".join(f'<{tag} style="text-align:{side}">{escape(cell)}</{tag}>' for side, cell in pairs)

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    caption = f'<caption style="caption-side:top;text-align:left">{escape(title)}</caption>'
    below = f"<p>{escape(note)}</p>" if note else ""
    return f"<table>{caption}<thead><tr>{line(head, 'th')}</tr></thead><tbody>{body}</tbody></table>{below}"


def change(before: float, after: float) -> str:
    """Return a relative change in percent."""
    return f"{100 * (after / before - 1):+.1f}%" if before else "-"


def costs(title: str, before: Mapping[str, int], after: Mapping[str, int], note: str = "") -> str:
    """Return a table of costs before and after."""
    known = [name for name in COSTS if name in before and name in after]
    rows = ([COSTS[n], f"{before[n]:,}", f"{after[n]:,}", change(before[n], after[n])] for n in known)
    return table(title, ["", "before", "after", "change"], rows, note)
