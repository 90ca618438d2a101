"""Recurrent layers: one weight holds all gates, and a hidden unit leaves every gate at once."""

from __future__ import annotations

from onnxprune.operators.edit import RewriteNode
from onnxprune.operators.registry import rewrites, rule
from onnxprune.operators.traced import TraceNode

_GATES = {"DynamicQuantizeLSTM": 4, "GRU": 3, "LSTM": 4, "RNN": 1}


@rule("GRU", "LSTM", "RNN")
def recurrent(op: TraceNode) -> None:
    """Input meets W, the hidden state meets R; both directions drop the same hidden units."""
    _recur(op, "d (q h) i, d (q h) h", reading=2)


@rule("com.microsoft:DynamicQuantizeLSTM")
def quantized_lstm(op: TraceNode) -> None:
    """As LSTM, the weights transposed and in 8 bits, each with scales for a direction, or for each of its columns."""
    _recur(op, "d i (q h), d h (q h)", reading=1, scales=(8, 9, 10, 11))


def _recur(op: TraceNode, weights: str, reading: int, scales: tuple[int, ...] = ()) -> None:
    """Apply the spec of a recurrent layer.

    Args:
        op: the node.
        weights: the specs of W and R; q gates, h hidden units.
        reading: the axis of R that the previous state meets.
        scales: the inputs with scales and zero points of W and R.
    """
    operands = [op.x(i) if op.has(i) else None for i in range(len(op.node.input))]
    for i in (1, 2, 3, 7, *scales):  # the axis of directions stays
        value = operands[i] if i < len(operands) else None
        if value is not None:
            operands[i] = op.pin_axes(value, [0], "OP204", "both directions are needed")
    gates = _GATES[op.node.op_type]
    state, steps = ("b d h", "b s d h") if op.attr("layout", 0) else ("d b h", "s d b h")
    x = "b s i" if op.attr("layout", 0) else "s b i"
    quantized = ", ".join("d (q h)" if op.has(i) and len(op.shape(i)) == 2 else "d" for i in scales)
    op.align(
        f"{x}, {weights}, d (e h), b, {state}, {state}, d (p h), {quantized} -> {steps}, {state}, {state}",
        operands,
        q=gates,
        e=2 * gates,
        p=3,
    )
    previous = op.x(2).on(reading)
    if previous is not None:  # R reads the previous state, though its channels are the output's as well
        op.channels.summed.append(previous.ids)


@rewrites("GRU", "LSTM", "RNN")
def hidden_size(edit: RewriteNode) -> None:
    """The hidden size that remains."""
    edit.set_attr("hidden_size", edit.new_shape(2)[2])


@rewrites("com.microsoft:DynamicQuantizeLSTM")
def quantized_hidden_size(edit: RewriteNode) -> None:
    """The hidden size that remains."""
    edit.set_attr("hidden_size", edit.new_shape(2)[1])
