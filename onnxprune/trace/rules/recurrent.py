"""Recurrent layers: one weight holds all gates, and a hidden unit leaves every gate at once."""

from __future__ import annotations

from onnxprune.edit import Edit
from onnxprune.trace.op import Op
from onnxprune.trace.registry import rewrites, rule

_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


@rule("GRU", "LSTM", "RNN")
def recurrent(op: Op) -> None:
    """Input meets W, the hidden state meets R; both directions drop the same hidden units."""
    operands = [op.x(i) if op.has(i) else None for i in range(len(op.node.input))]
    for i in (1, 2, 3, 7):  # the axis of directions stays
        value = operands[i] if i < len(operands) else None
        if value is not None:
            operands[i] = op.pin_axes(value, [0], "OP204", "both directions are needed")
    gates = _GATES[op.node.op_type]
    state, steps = ("b d h", "b s d h") if op.attr("layout", 0) else ("d b h", "s d b h")
    x = "b s i" if op.attr("layout", 0) else "s b i"
    op.align(
        f"{x}, d (q h) i, d (q h) h, d (e h), b, {state}, {state}, d (p h) -> {steps}, {state}, {state}",
        operands,
        q=gates,
        e=2 * gates,
        p=3,
    )
    previous = op.x(2).on(2)
    if previous is not None:  # R reads the previous state, though its channels are the output's as well
        op.channels.summed.append(previous.ids)


@rewrites("GRU", "LSTM", "RNN")
def hidden_size(edit: Edit) -> None:
    """The hidden size that remains."""
    edit.set_attr("hidden_size", edit.new_shape(2)[2])
