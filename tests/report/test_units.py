"""Numbers as people read them."""

from __future__ import annotations

import pytest

from onnxprune.report.layout import change, count, dims, milliseconds, percent, share, shorten, si
from onnxprune.report.text import printable


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00 k"),
        (9994, "9.99 k"),
        (9996, "10.0 k"),
        (99_960, "100 k"),
        (999_499, "999 k"),
        (999_600, "1.00 M"),
        (25_557_032, "25.6 M"),
        (4_089_184_256, "4.09 G"),
    ],
)
def test_si(number: int, text: str) -> None:
    assert si(number) == text


def test_si_with_unit() -> None:
    assert si(102_228_128, "B") == "102 MB"
    assert si(12, "B") == "12 B"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0.0 %"), (1e-9, "<0.1 %"), (0.4449, "44.5 %"), (0.99999, ">99.9 %"), (1, "100.0 %")],
)
def test_percent(value: float, text: str) -> None:
    assert percent(value) == text


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [(200, 150, "-25.0 %"), (100, 120, "+20.0 %"), (7, 7, "0.0 %"), (0, 0, "-"), (0, 3, "new")],
)
def test_change(before: int, after: int, text: str) -> None:
    assert change(before, after) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.000 ms"),
        (0.0001234, "0.123 ms"),
        (0.00123, "1.23 ms"),
        (0.0123, "12.3 ms"),
        (0.0999, "99.9 ms"),
        (1.5, "1500 ms"),
    ],
)
def test_milliseconds(seconds: float, text: str) -> None:
    assert milliseconds(seconds) == text


def test_share_of_nothing() -> None:
    assert share(0, 0) == 0
    assert share(1, 4) == 0.25


def test_dims() -> None:
    assert dims((1, 3, "height", None)) == "1x3xheightx?"
    assert dims(()) == "scalar"


def test_printable() -> None:
    assert printable("a\x1b[31mb\x07\u202ec\n") == "a\\x1b[31mb\\x07\\u202ec\n"
    assert printable("größe/层:0") == "größe/层:0"


@pytest.mark.parametrize("length", range(1, 12))
def test_shorten(length: int) -> None:
    text = shorten("abcdefghij", length)
    assert len(text) <= max(length, 1)
    assert length >= 10 or "…" in text


def test_count() -> None:
    assert count(1, "layer") == "1 layer"
    assert count(1204, "layer") == "1,204 layers"
