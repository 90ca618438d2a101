"""Aligning axes, against slow implementations that are obviously right."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

import numpy as np
import pytest
from hypothesis import assume, given, strategies as st
from onnx import NodeProto

from onnxprune.channels.align import align
from onnxprune.channels.ledger import Channels, fresh_value
from onnxprune.channels.values import Ids, Value
from onnxprune.operators.traced import TraceNode, Walk

SIZES = {"a": 2, "b": 3, "c": 4, "d": 5}


def apply(spec: str, operands: Sequence[Value], out: Sequence[int], channels: Channels, **given: int) -> list[Value]:
    """Align operands at a node."""
    walk = Walk({})
    walk.channels = channels
    site = TraceNode(walk, 0, NodeProto(op_type="Op", name="op"))
    return list(align(site, spec, operands, {0: tuple(out)}, given=given).values())


def aligned(
    spec: str,
    shapes: Sequence[Sequence[int]],
    out: Sequence[int],
    constants: Sequence[bool] | None = None,
    **given: int,
) -> tuple[list[Value], Value, Channels]:
    """Align operands that have ids of their own on every axis."""
    channels = Channels()
    flags = constants or [True] * len(shapes)
    operands = [replace(fresh_value(tuple(s), channels), constant=c) for s, c in zip(shapes, flags, strict=True)]
    (output,) = apply(spec, operands, out, channels, **given)
    return operands, output, channels


def ids_on(value: Value, axis: int) -> Ids:
    factor = value.on(axis)
    assert factor is not None
    assert factor.axes == (axis,)
    return factor.ids


def pinned(channels: Channels) -> set[int]:
    roots = channels.solve()
    return {int(r) for ids, _ in channels.pins for r in roots[ids]}


@st.composite
def equations(draw: st.DrawFn) -> tuple[list[str], str]:
    """Draw an einsum of two operands."""
    word = st.lists(st.sampled_from("abcd"), min_size=1, max_size=3, unique=True).map("".join)
    left, right = draw(word), draw(word)
    letters = sorted(set(left + right))
    out = draw(st.permutations(letters))[: draw(st.integers(0, len(letters)))]
    return [left, right], "".join(out)


@given(equations(), st.integers(0, 2**16))
def test_einsum(equation: tuple[list[str], str], seed: int) -> None:
    """Each position of each letter is one unit, and removing units equals zeroing them."""
    terms, out = equation
    spec = f"{' '.join(terms[0])}, {' '.join(terms[1])} -> {' '.join(out)}"
    operands, output, channels = aligned(spec, [[SIZES[x] for x in t] for t in terms], [SIZES[x] for x in out])
    roots = channels.solve()

    # One unit for each letter and position, wherever it occurs, and never one for two.
    seen: dict[tuple[str, int], set[int]] = {}
    for term, value in [*zip(terms, operands, strict=True), (out, output)]:
        for axis, letter in enumerate(term):
            for place, root in enumerate(roots[ids_on(value, axis)]):
                seen.setdefault((letter, place), set()).add(int(root))
    assert all(len(units) == 1 for units in seen.values())
    assert len({next(iter(units)) for units in seen.values()}) == len(seen)

    # A letter of one operand alone that the output lacks is summed over without a partner, and must stay.
    alone = {x for x in "abcd" if (x in terms[0]) != (x in terms[1]) and x not in out}
    stuck = pinned(channels)
    assert stuck == {next(iter(units)) for (letter, _), units in seen.items() if letter in alone}

    # Removing equals zeroing, then dropping the removed positions of the output.
    free = sorted(set(range(channels.count)) & set(roots.tolist()) - stuck)
    assume(free)
    rng = np.random.default_rng(seed)
    gone = [unit for unit in free if rng.random() < 0.4]
    keep = [[~np.isin(roots[ids_on(v, a)], gone) for a in range(len(t))] for t, v in zip(terms, operands, strict=True)]
    assume(all(mask.any() for masks in keep for mask in masks))
    arrays = [rng.standard_normal([SIZES[x] for x in t]) for t in terms]
    zeroed = [a * reduce(np.logical_and.outer, m) for a, m in zip(arrays, keep, strict=True)]
    smaller = [a[np.ix_(*m)] for a, m in zip(arrays, keep, strict=True)]
    equation_text = f"{','.join(terms)}->{out}"
    expected = np.einsum(equation_text, *zeroed)
    masks = [~np.isin(roots[ids_on(output, a)], gone) for a in range(len(out))]
    expected = expected[np.ix_(*masks)] if masks else expected
    np.testing.assert_allclose(np.einsum(equation_text, *smaller), expected, atol=1e-12)


def partition(roots: Ids, arrays: Sequence[Ids]) -> set[frozenset[tuple[int, int]]]:
    """Return which positions of which arrays are coupled."""
    units: dict[int, set[tuple[int, int]]] = {}
    for index, ids in enumerate(arrays):
        for place, root in enumerate(roots[ids]):
            units.setdefault(int(root), set()).add((index, place))
    return {frozenset(u) for u in units.values()}


@pytest.mark.parametrize(("g", "i", "o"), list(itertools.product((1, 2, 3), (2, 3), (2, 4))))
def test_grouped_convolution(g: int, i: int, o: int) -> None:
    """Every group drops the same positions: of inputs (x's channels, the weight's second axis) and of outputs."""
    operands, output, channels = aligned(
        "n (g i) *s, (g o) i *k, (g o) -> n (g o) *t", [(1, g * i, 5), (g * o, i, 1), (g * o,)], (1, g * o, 5), g=g
    )
    x, w, bias = operands
    arrays = [ids_on(x, 1), ids_on(w, 1), ids_on(w, 0), ids_on(bias, 0), ids_on(output, 1)]
    expected = {frozenset({(0, a * i + b) for a in range(g)} | {(1, b)}) for b in range(i)} | {
        frozenset((array, a * o + b) for a in range(g) for array in (2, 3, 4)) for b in range(o)
    }
    assert partition(channels.solve(), arrays) == expected


def test_depthwise_convolution() -> None:
    """Where a group is a channel, it leaves as a whole."""
    operands, output, channels = aligned(
        "n (g i) *s, (g o) i *k, (g o) -> n (g o) *t", [(1, 3, 5), (6, 1, 1), (6,)], (1, 6, 5), g=3
    )
    arrays = [ids_on(operands[0], 1), ids_on(operands[1], 0), ids_on(operands[2], 0), ids_on(output, 1)]
    expected = {frozenset({(0, a)} | {(array, 2 * a + b) for array in (1, 2, 3) for b in range(2)}) for a in range(3)}
    assert partition(channels.solve(), arrays) == expected


@given(st.data())
def test_broadcasting(data: st.DataObject) -> None:
    """Axes meet from the right; axes of size one are free."""
    full = data.draw(st.lists(st.integers(2, 4), min_size=1, max_size=3))
    shapes = []
    for _ in range(2):
        start = data.draw(st.integers(0, len(full) - 1))
        shapes.append([data.draw(st.sampled_from([1, n])) for n in full[start:]])
    out = np.broadcast_shapes(*shapes)
    operands, output, channels = aligned("*a, *a -> *a", shapes, out)
    roots = channels.solve()
    stuck = pinned(channels)
    for axis, n in enumerate(out):
        if n == 1:
            assert output.on(axis) is None or ids_on(output, axis).size == 1
            continue
        met = [v for v in operands if len(v.shape) >= len(out) - axis and v.shape[axis - len(out)] == n]
        rows = [roots[ids_on(v, axis - len(out) + len(v.shape))].tolist() for v in met]
        assert all(row == rows[0] for row in rows)
        assert roots[ids_on(output, axis)].tolist() == rows[0]
        assert len(set(rows[0])) == n
        assert not stuck & set(rows[0])


def test_positions_hold_what_they_meet() -> None:
    """An axis without ids on one operand pins the other's."""
    channels = Channels()
    weight = fresh_value((3, 4), channels)
    data = Value((2, 3), origin="graph input 'x'")
    (output,) = apply("m k, k n -> m n", [data, weight], (2, 4), channels)
    assert output.on(0) is None
    assert (ids_on(output, 1) == ids_on(weight, 1)).all()
    ((ids, pin),) = channels.pins
    assert (ids == ids_on(weight, 0)).all()
    assert pin.code == "OP201"
    assert "graph input" in pin.reason


def test_two_activations_are_an_approximation() -> None:
    """A sum over products of two activations: zeroing a producer's weights doesn't zero a Sigmoid."""
    exact = aligned("m k, k n -> m n", [(2, 3), (3, 4)], (2, 4), [False, True])[2]
    assert not exact.approximations
    ((ids, note),) = aligned("m k, k n -> m n", [(2, 3), (3, 4)], (2, 4), [False, False])[2].approximations
    assert len(ids) == 3
    assert note.node == "op"
