"""Numbers as people read them: SI units, three significant digits, a space before the unit."""

from __future__ import annotations

from collections.abc import Sequence

_PREFIXES = ("", "k", "M", "G", "T", "P")


def si(number: int, unit: str = "") -> str:
    """Write a count with an SI prefix: 25557032 is "25.6 M", with unit "B" it is "25.6 MB"."""
    scaled, prefix = float(number), 0
    while abs(scaled) >= 999.5 and prefix < len(_PREFIXES) - 1:
        scaled, prefix = scaled / 1000, prefix + 1
    digits = 0 if prefix == 0 or abs(scaled) >= 99.95 else 1 if abs(scaled) >= 9.995 else 2
    return f"{scaled:.{digits}f} {_PREFIXES[prefix]}{unit}".rstrip()


def percent(share: float) -> str:
    """Write a share: 0.4449 is "44.5 %"; what isn't quite all or nothing isn't shown as such."""
    value = share * 100
    if 0 < value < 0.05:
        return "<0.1 %"
    if 99.95 <= value < 100:
        return ">99.9 %"
    return f"{value:.1f} %"


def change(before: int, after: int) -> str:
    """Write what became of a quantity: 200 to 150 is "-25.0 %"."""
    if before == 0:
        return "-" if after == 0 else "new"
    share = after / before - 1
    return f"{'+' if share > 0 else '-' if share < 0 else ''}{percent(abs(share))}"


def share(part: int, whole: int) -> float:
    """Return a part of a whole as a number from 0 to 1; nothing of nothing is 0."""
    return part / whole if whole else 0.0


def dims(shape: Sequence[int | str | None]) -> str:
    """Write a shape: (1, 3, 224, 224) is "1x3x224x224", an unknown size "?", an empty shape "scalar"."""
    return "x".join("?" if n is None else str(n) for n in shape) or "scalar"
