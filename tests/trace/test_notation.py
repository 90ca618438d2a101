"""The notation of rules: valid and malformed specs."""

from __future__ import annotations

import pytest

from onnxprune.channels import notation
from onnxprune.channels.notation import parse


def name_axes(tokens: tuple[notation.Axis, ...], rank: int) -> list[notation.Axis]:
    return list(notation.name_axes(tokens, rank))


def test_convolution() -> None:
    spec = parse("n (g i) *s, (g o) i *k, (g o) -> n (g o) *t")
    assert spec.operands == (
        (("n",), ("g", "i"), ("*s",)),
        (("g", "o"), ("i",), ("*k",)),
        (("g", "o"),),
    )
    assert spec.outputs == ((("n",), ("g", "o"), ("*t",)),)


@pytest.mark.parametrize(
    ("text", "operands", "outputs"),
    [
        ("m k, k n -> m n", 2, 1),
        ("k, k -> ", 2, 1),
        (", -> ", 2, 1),
        ("a -> a, b", 1, 2),
    ],
)
def test_counts(text: str, operands: int, outputs: int) -> None:
    spec = parse(text)
    assert (len(spec.operands), len(spec.outputs)) == (operands, outputs)


def test_nothing_between_commas_is_a_scalar() -> None:
    assert parse("a, -> a").operands[1] == ()
    assert name_axes((), 0) == []


@pytest.mark.parametrize("text", ["a b", "(a -> a", "a) -> a", "() -> a"])
def test_malformed(text: str) -> None:
    with pytest.raises(ValueError, match=r"arrow|parentheses"):
        parse(text)


def test_starred_names_count_from_the_right() -> None:
    (tokens,) = parse("n *s -> n").operands
    assert name_axes(tokens, 1) == [("n",)]
    assert name_axes(tokens, 3) == [("n",), ("*s1",), ("*s0",)]
    (tokens,) = parse("*s n -> n").operands
    assert name_axes(tokens, 3) == [("*s1",), ("*s0",), ("n",)]


@pytest.mark.parametrize(("text", "rank"), [("a b -> a", 1), ("a b -> a", 3), ("a *s b -> a", 1), ("-> a", 1)])
def test_rank_that_does_not_fit(text: str, rank: int) -> None:
    with pytest.raises(ValueError, match="rank"):
        name_axes(parse(text).operands[0], rank)
