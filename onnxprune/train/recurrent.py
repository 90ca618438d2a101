"""Recurrent layers written out step by step, so that they are differentiated like everything else."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from onnxprune.model.tape import Tensor
from onnxprune.operators.differentiated import GradientNode

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
        self.bias, self.recurrent_bias = both.slice([0], [0], [width]), both.slice([0], [width], [2 * width])
        steps, batch, features = x.shape
        rows = x.reshape((steps * batch, features)).op("Gemm", w, self.bias, transB=1)
        self.from_input = rows.reshape((steps, batch, width))

    @staticmethod
    def _of(tensor: Tensor, d: int) -> Tensor:
        return tensor.slice([0], [d], [d + 1]).reshape(tensor.shape[1:])

    def gate(self, sums: Tensor, number: int, count: int = 1) -> Tensor:
        """Cut gates out of sums for all."""
        return sums.slice([sums.rank - 1], [number * self.hidden], [(number + count) * self.hidden])

    def sums(self, at: Tensor, h: Tensor) -> Tensor:
        """Return what all gates get from a step's input and the state."""
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
"""The cell, how many gates it has, and how many tensors its state is made of."""

RECURRENT = tuple(_CELLS)


def unrolled(op: GradientNode) -> list[Tensor]:
    """Append a recurrent layer, step by step; return all of its outputs.

    Raises:
        NotImplementedError: the layer has a form that isn't written out.
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
    given = [a.decode() for a in op.attr("activations") or []]
    steps = op.x().shape[1 if op.attr("layout", 0) else 0]
    if given and [a.title() for a in given] != usual:
        raise NotImplementedError(f"its activations are {', '.join(given)}")
    if op.attr("clip") is not None or op.attr("input_forget", 0) or op.has(7):
        raise NotImplementedError("it has a clip, coupled gates or peepholes")
    if op.has(4) and not (np.asarray(op.const(4)) == steps).all():
        raise NotImplementedError("its sequences have different lengths")
    if steps > _MAX_STEPS:
        raise NotImplementedError(f"its {steps} steps would have to be written out, and {_MAX_STEPS} are the most")


def _initial(op: GradientNode, i: int, d: int, shape: tuple[int, int]) -> Tensor:
    if not op.has(i):
        return op.x().like(np.zeros(shape))
    given = op.x(i).transpose([1, 0, 2]) if op.attr("layout", 0) else op.x(i)
    return given.slice([0], [d], [d + 1]).reshape(shape)


def _joined(tensors: list[Tensor], axis: int) -> Tensor:
    return tensors[0] if len(tensors) == 1 else tensors[0].tape.emit("Concat", *tensors, axis=axis)
