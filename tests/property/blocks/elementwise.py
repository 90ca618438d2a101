"""Elementwise operators, with weights and with each other."""

from __future__ import annotations

from tests.property.builder import Builder, block


@block()
def affine(b: Builder, x: str) -> str:
    shape = b.shape(x)
    c, rest = shape[1], shape[2:]
    ones = [1] * len(rest)
    shapes = [(c, *ones), (1, c, *ones), (1,), (), (1, 1, *ones)]
    if not b.resizable:
        shapes += [(c, *rest), (1, *rest), tuple(rest)] if rest else []
    op = b.pick("Add", "Sub", "Mul", "Div", "Max", "Min")
    w = b.net.between(0.5, 2.0, *b.pick(*shapes))
    operands = [x, w] if op == "Div" or b.flag() else [w, x]
    return b.net.op(op, *operands)


@block()
def power(b: Builder, x: str) -> str:
    return b.net.op("Pow", b.net.clip(x, -2.0, 2.0), b.net.const(2.0))


@block()
def where(b: Builder, x: str) -> str:
    """Chooses between a tensor and a weight, by a threshold for each channel."""
    condition = b.net.op("Greater", x, b.per_channel(x))
    return b.net.op("Where", condition, x, b.per_channel(x) if b.flag() else b.net.const(0.5))


@block()
def logic(b: Builder, x: str) -> str:
    over = b.net.op("Greater", x, b.per_channel(x))
    under = b.net.op("Less", x, b.net.const(1.0))
    return b.net.op("Cast", b.net.op(b.pick("And", "Or", "Xor"), over, b.net.op("Not", under)), to=1)


@block()
def combine(b: Builder, x: str) -> str | None:
    """An elementwise operator on two tensors."""
    y = b.other(x, same=range(len(b.shape(x))))
    if y is None:
        return None
    b.used.add(y)
    op = b.pick("Add", "Sub", "Mul", "Max", "Min", "Mean", "Sum")
    if op == "Mul":
        y = b.net.op("Tanh", y)
    return b.net.op(op, x, y)


@block(on="image")
def gate(b: Builder, x: str) -> str | None:
    """Multiplied by another tensor's means."""
    y = b.other(x, same=[1])
    if y is None:
        return None
    b.used.add(y)
    return b.net.op("Mul", x, b.net.op("Sigmoid", b.net.op("GlobalAveragePool", y)))


@block()
def ratio(b: Builder, x: str) -> str:
    """Divided by another path's values, which aren't zero where a channel is."""
    return b.net.op("Div", x, b.net.op("Add", b.net.op("Abs", x), b.net.const(1.0)))
