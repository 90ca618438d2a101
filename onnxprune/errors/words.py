"""Words that errors share: the nearest of the known names, and what another library said."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(word: str, known: Iterable[str], quote: str = "") -> str | None:
    """Return a hint with the known word nearest to another; None if none is near.

    Examples:
        >>> did_you_mean("latncy", ["latency", "size"])
        'did you mean latency?'
    """
    near = get_close_matches(word, list(known), n=1)
    return f"did you mean {quote}{near[0]}{quote}?" if near else None


def one_line(error: BaseException, most: int | None = None) -> str:
    """Return an error's text in one line, at most some characters of it."""
    return " ".join(str(error).split())[:most]
