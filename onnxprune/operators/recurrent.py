"""Recurrent layers: one weight holds all gates, and a hidden unit leaves every gate at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

import numpy as np

from onnxprune.channels.values import Shape
from onnxprune.model.tape import Tensor
from onnxprune.operators.card import INTEGERS, describe, rewrites, traces, written_out
from onnxprune.operators.differentiated import GradientNode
from onnxprune.operators.node import Node
from onnxprune.operators.rewritten import RewriteNode
from onnxprune.operators.traced import TraceNode

_GATES = {"DynamicQuantizeLSTM": 4, "GRU": 3, "LSTM": 4, "RNN": 1}


def _macs(node: Node, x: list[Shape], y: Shape) -> int:
    """Count the products of the input with W and of the state with R, at every step."""
    steps, batch, _ = x[0]
    return steps * batch * (prod(x[1]) + prod(x[2]))


describe(
    "GRU LSTM RNN",
    factors=(0, 1),
    weights=(1, 2, 3),
    macs=_macs,
    reasons={"linear": "the products with its weights go through gates at every step"},
)


@traces("GRU LSTM RNN")
def recurrent(op: TraceNode) -> None:
    """Input meets W, the hidden state meets R; both directions drop the same hidden units."""
    _recur(op, "d (q h) i, d (q h) h", reading=2)


@rewrites("GRU LSTM RNN com.microsoft:DynamicQuantizeLSTM")
def hidden_size(edit: RewriteNode) -> None:
    """The hidden size that remains."""
    edit.set_attr("hidden_size", edit.new_shape(2)[1 if edit.node.op_type == "DynamicQuantizeLSTM" else 2])


describe("com.microsoft:DynamicQuantizeLSTM", factors=(0, 1), macs=_macs, rounds=True, reasons=INTEGERS)
describe("com.microsoft:DynamicQuantizeLSTM", zero_points=((1, 9, 0), (2, 11, 0)))


@traces("com.microsoft:DynamicQuantizeLSTM")
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
    if previous is not None:  # R reads the previous state, whose channels are also the output's
        op.channels.summed.append(previous.ids)


describe("GRU RNN", states=((5, 1),))
describe("LSTM com.microsoft:DynamicQuantizeLSTM", states=((5, 1), (6, 2)))

_MAX_STEPS = 512
_ACTIVATIONS: Mapping[str, list[str]] = {
    "GRU": ["Sigmoid", "Tanh"],
    "LSTM": ["Sigmoid", "Tanh", "Tanh"],
    "RNN": ["Tanh"],
}

State = tuple[Tensor, ...]
Cell = Callable[["_Direction", Tensor, State], State]


class _Direction:
    """One direction of a layer: its weights, and its input's share of the gates for all steps."""

    def __init__(self, op: GradientNode, x: Tensor, d: int, gates: int) -> None:
        self.op = op
        self.hidden = op.x(2).shape[2]
        width = gates * self.hidden
        w, r = (self._of(op.x(i), d) for i in (1, 2))
        self.recurrent = r.transpose([1, 0])
        both = self._of(op.x(3), d) if op.has(3) else op.x(1).like(np.zeros(2 * width))
        bias, self.recurrent_bias = both.slice([0], [0], [width]), both.slice([0], [width], [2 * width])
        steps, batch, features = x.shape
        rows = x.reshape((steps * batch, features)).op("Gemm", w, bias, transB=1)
        self.from_input = rows.reshape((steps, batch, width))

    @staticmethod
    def _of(tensor: Tensor, d: int) -> Tensor:
        return tensor.slice([0], [d], [d + 1]).reshape(tensor.shape[1:])

    def gate(self, sums: Tensor, number: int, count: int = 1) -> Tensor:
        """Return some gates' part of the sums for all gates."""
        return sums.slice([sums.rank - 1], [number * self.hidden], [(number + count) * self.hidden])

    def sums(self, at: Tensor, h: Tensor) -> Tensor:
        """Return the sums of all gates, from a step's input and the state."""
        return at + (h @ self.recurrent + self.recurrent_bias)


def _rnn(layer: _Direction, at: Tensor, state: State) -> State:
    return (layer.sums(at, state[0]).op("Tanh"),)


def _lstm(layer: _Direction, at: Tensor, state: State) -> State:
    h, c = state
    sums = layer.sums(at, h)
    into, out, forget = (layer.gate(sums, i).op("Sigmoid") for i in range(3))
    c = forget * c + into * layer.gate(sums, 3).op("Tanh")
    return out * c.op("Tanh"), c


def _gru(layer: _Direction, at: Tensor, state: State) -> State:
    (h,) = state
    if layer.op.attr("linear_before_reset", 0):
        own = h @ layer.recurrent + layer.recurrent_bias
        update, reset = ((layer.gate(at, i) + layer.gate(own, i)).op("Sigmoid") for i in range(2))
        new = (layer.gate(at, 2) + reset * layer.gate(own, 2)).op("Tanh")
    else:
        sums = layer.gate(at, 0, 2) + h @ layer.gate(layer.recurrent, 0, 2) + layer.gate(layer.recurrent_bias, 0, 2)
        update, reset = (layer.gate(sums, i).op("Sigmoid") for i in range(2))
        own = (reset * h) @ layer.gate(layer.recurrent, 2) + layer.gate(layer.recurrent_bias, 2)
        new = (layer.gate(at, 2) + own).op("Tanh")
    return ((1 - update) * new + update * h,)


_CELLS: Mapping[str, tuple[Cell, int, int]] = {"GRU": (_gru, 3, 1), "LSTM": (_lstm, 4, 2), "RNN": (_rnn, 1, 1)}
"""The cell, its number of gates, and the number of tensors in its state."""


@written_out("GRU", "LSTM", "RNN")
def unrolled(op: GradientNode) -> list[Tensor]:
    """Append a recurrent layer, step by step, and return all of its outputs.

    Raises:
        NotImplementedError: the layer has a form that isn't supported.
    """
    cell, gates, states = _CELLS[op.node.op_type]
    _check(op)
    batch_first = op.attr("layout", 0)
    x = op.x().transpose([1, 0, 2]) if batch_first else op.x()
    steps, batch, _ = x.shape
    directions = op.x(1).shape[0]
    sequences: list[Tensor] = []
    finals: list[State] = []
    for d in range(directions):
        layer = _Direction(op, x, d, gates)
        state = tuple(_initial(op, 5 + i, d, (batch, layer.hidden)) for i in range(states))
        backwards = d == 1 or op.attr("direction", "forward") == "reverse"
        seen: list[Tensor] = []
        for step in reversed(range(steps)) if backwards else range(steps):
            at = layer.from_input.slice([0], [step], [step + 1]).reshape((batch, gates * layer.hidden))
            state = cell(layer, at, state)
            seen.append(state[0].reshape((1, 1, batch, layer.hidden)))
        sequences.append(_joined(seen[::-1] if backwards else seen, 0))
        finals.append(state)
    y = _joined(sequences, 1)
    last = [_joined([final[i].reshape((1, *final[i].shape)) for final in finals], 0) for i in range(states)]
    if batch_first:
        return [y.transpose([2, 0, 1, 3]), *(t.transpose([1, 0, 2]) for t in last)]
    return [y, *last]


def _check(op: GradientNode) -> None:
    usual = _ACTIVATIONS[op.node.op_type] * op.x(1).shape[0]
    given = op.attr("activations", [])
    steps = op.x().shape[1 if op.attr("layout", 0) else 0]
    if given and [a.title() for a in given] != usual:
        raise NotImplementedError(f"its activations are {', '.join(given)}")
    if op.attr("clip") is not None or op.attr("input_forget", 0) or op.has(7):
        raise NotImplementedError("it has a clip, coupled gates or peepholes")
    if op.has(4) and not (np.asarray(op.const(4)) == steps).all():
        raise NotImplementedError("its sequences have different lengths")
    if steps > _MAX_STEPS:
        raise NotImplementedError(f"its {steps} steps would have to be written out, and {_MAX_STEPS} is the limit")


def _initial(op: GradientNode, i: int, d: int, shape: tuple[int, int]) -> Tensor:
    if not op.has(i):
        return op.x().like(np.zeros(shape))
    given = op.x(i).transpose([1, 0, 2]) if op.attr("layout", 0) else op.x(i)
    return given.slice([0], [d], [d + 1]).reshape(shape)


def _joined(tensors: list[Tensor], axis: int) -> Tensor:
    return tensors[0] if len(tensors) == 1 else tensors[0].tape.emit("Concat", *tensors, axis=axis)
