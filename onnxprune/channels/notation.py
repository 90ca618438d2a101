"""Notation for which axes of an operator's inputs and outputs meet.

A spec reads like the operator's definition: ``n (g i) *s, (g o) i *k, (g o) -> n (g o) *t`` is a convolution. Every
operand, and every output after the arrow, lists its axes:

- ``c``: one axis. The same letter elsewhere is the same axis: channels leave both together.
- ``(g i)``: one axis made of several, the last the fastest. All but one of their sizes are given by the rule.
- ``*s``: any number of axes, counted from the right, so that ``*a, *a -> *a`` broadcasts as NumPy does.

A letter on two operands and not on the output is contracted. The notation was inspired by einops.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

Axis = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Spec:
    """A parsed spec: the tokens of every operand and output, each a tuple of names or one starred name."""

    operands: tuple[tuple[Axis, ...], ...]
    outputs: tuple[tuple[Axis, ...], ...]


@cache
def parse(spec: str) -> Spec:
    """Parse a spec.

    Raises:
        ValueError: the spec is malformed, an error of the rule, not of a model.
    """
    left, arrow, right = spec.partition("->")
    if not arrow:
        raise ValueError(f"no arrow in {spec!r}")
    return Spec(tuple(map(_tokens, left.split(","))), tuple(map(_tokens, right.split(","))))


@cache
def name_axes(tokens: tuple[Axis, ...], rank: int) -> tuple[Axis, ...]:
    """Return the names of every axis of a tensor of this rank.

    Raises:
        ValueError: the rank doesn't fit the tokens.
    """
    stars = [i for i, t in enumerate(tokens) if t[0].startswith("*")]
    spare = rank - len(tokens) + len(stars)
    if len(stars) > 1 or spare < 0 or (not stars and spare):
        raise ValueError(f"rank {rank} doesn't fit {tokens}")
    named: list[Axis] = []
    for token in tokens:
        if token[0].startswith("*"):
            named += [(f"{token[0]}{i}",) for i in reversed(range(spare))]
        else:
            named.append(token)
    return tuple(named)


def _tokens(text: str) -> tuple[Axis, ...]:
    tokens: list[Axis] = []
    group: list[str] | None = None
    for word in text.replace("(", " ( ").replace(")", " ) ").split():
        if word == "(":
            group = []
        elif word == ")":
            if not group:
                raise ValueError(f"unbalanced parentheses in {text!r}")
            tokens.append(tuple(group))
            group = None
        elif group is None:
            tokens.append((word,))
        else:
            group.append(word)
    if group is not None:
        raise ValueError(f"unbalanced parentheses in {text!r}")
    return tuple(tokens)
