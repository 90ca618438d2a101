"""Text that is safe to print."""

from __future__ import annotations


def printable(text: str) -> str:
    """Escape what a terminal would obey instead of showing; names come from files that anybody may have made."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def shorten(text: str, length: int) -> str:
    """Take out the middle of a text that is too long; the end of a name tells more than its beginning."""
    if len(text) <= length:
        return text
    head = (length - 1) // 3
    tail = max(length - 1 - head, 0)
    return f"{text[:head]}…{text[len(text) - tail :]}"


def count(number: int, noun: str) -> str:
    """Write a number of things: "1 layer", "1,204 layers"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
