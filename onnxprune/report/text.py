"""Text that is safe to print."""

from __future__ import annotations


def printable(text: str) -> str:
    """Escape control characters. Names come from files that anyone may have made, and a terminal obeys them."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
