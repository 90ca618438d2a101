"""Names that nothing else has."""

from __future__ import annotations


def unique(name: str, taken: set[str]) -> str:
    """Give a name, numbered if it is taken, and take it."""
    number, candidate = 1, name
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    taken.add(candidate)
    return candidate
