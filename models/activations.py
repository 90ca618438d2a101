"""What the activations of a network look like, from a sample of values per tensor.

Random weights give sane activations only where each layer's scale fits what reaches it, through
residual sums, gates, poolings and normalizations alike. So a graph is walked once with every tensor
standing for a few thousand draws of one of its entries: element-wise operators are executed on the
draws by onnx's reference implementation, a contraction draws anew from the normal distributions
that its filters give, and everything else passes its input on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, ValueInfoProto, helper
from onnx.reference import ReferenceEvaluator

from models.contraction import Contraction

Array = npt.NDArray[np.generic]
Sample = npt.NDArray[np.float32]
"""Draws of one entry of a tensor, [SIZE]; element-wise operators combine them draw by draw."""

SIZE = 4096

_ELEMENTWISE = frozenset(
    """
    Abs Add Celu Clip Div Elu Erf Exp Gelu HardSigmoid HardSwish LeakyRelu Max Mean Min Mish Mul Neg
    PRelu Pow Relu Selu Sigmoid Softplus Softsign Sqrt Sub Sum Swish Tanh
    """.split()  # noqa: SIM905 — reads better than thirty lines of strings
)


class Activations:
    """The samples of a graph's tensors, filled in node by node in topological order."""

    def __init__(self, rng: np.random.Generator, opset: int) -> None:
        """Draws come from `rng`; operators are those of the standard's version `opset`."""
        self._rng = rng
        self._opset = opset
        self._samples: dict[str, Sample] = {}

    def moments(self, name: str) -> tuple[float, float]:
        """The mean and variance of a tensor; of the standard normal if nothing is known of it."""
        if name not in self._samples:
            return 0.0, 1.0
        sample = self._samples[name].astype(np.float64)
        return float(sample.mean()), float(sample.var())

    def add_input(self, name: str) -> None:
        """Adds an input of the graph, taken to be standard normal."""
        self._samples[name] = self._rng.standard_normal(SIZE, np.float32)

    def add_constant(self, name: str, values: Array) -> None:
        """Adds a constant tensor: draws of its entries."""
        at = self._rng.integers(0, values.size, SIZE)
        self._samples[name] = values.flat[at].astype(np.float32)

    def add_view(self, name: str, origin: str) -> None:
        """Adds a tensor that has the entries of the constant `origin`."""
        if origin in self._samples:
            self._samples[name] = self._samples[origin]

    def add_contraction(self, node: NodeProto, layer: Contraction, weights: Array) -> None:
        """Adds the output of a layer: each filter's entries are normal about the filter's mean."""
        mean, variance = self.moments(layer.data)
        sums = weights.sum(layer.axes).ravel().astype(np.float32)
        powers = np.square(weights).sum(layer.axes).ravel().astype(np.float32)
        at = self._rng.integers(0, sums.size, SIZE)
        noise = self._rng.standard_normal(SIZE, np.float32)
        output = noise * np.sqrt(powers[at] * layer.share * variance) + sums[at] * layer.share * mean
        for bias in node.input[2:3]:
            output = output + self._samples[bias]
        self._samples[node.output[0]] = output.astype(np.float32)

    def add_batch_norm(self, node: NodeProto, constants: Sequence[Array]) -> None:
        """Adds the output of a BatchNormalization; its scale, shift, mean, variance go together."""
        scale, shift, mean, variance = (values.astype(np.float32) for values in constants)
        at = self._rng.integers(0, scale.size, SIZE)
        x = (self._samples[node.input[0]] - mean[at]) / np.sqrt(variance[at] + np.float32(1e-5))
        self._samples[node.output[0]] = x * scale[at] + shift[at]

    def add(self, node: NodeProto) -> None:
        """Adds the outputs of any other node; none where none of its inputs has a sample."""
        inputs = {name: self._samples[name] for name in node.input if name in self._samples}
        if not inputs:
            return
        if node.op_type in _ELEMENTWISE and inputs.keys() == {name for name in node.input if name}:
            output = self._executed(node, inputs)
        else:
            output = _OTHER.get(node.op_type, _first)(list(inputs.values()), self._rng)
        self._samples.update(dict.fromkeys(filter(None, node.output), output))

    def _executed(self, node: NodeProto, inputs: dict[str, Sample]) -> Sample:
        def vector(name: str) -> ValueInfoProto:
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, [SIZE])

        read = [vector(name) for name in inputs]
        graph = helper.make_graph([node], "node", read, [vector(node.output[0])])
        opset = helper.make_opsetid("", self._opset)
        evaluator = ReferenceEvaluator(helper.make_model(graph, opset_imports=[opset]))
        (output,) = evaluator.run(None, inputs)
        return np.asarray(output, np.float32)


def _first(inputs: Sequence[Sample], rng: np.random.Generator) -> Sample:
    return inputs[0]


def _last(inputs: Sequence[Sample], rng: np.random.Generator) -> Sample:
    return inputs[-1]


def _mixed(inputs: Sequence[Sample], rng: np.random.Generator) -> Sample:
    return np.asarray(inputs)[rng.integers(0, len(inputs), SIZE), np.arange(SIZE)]


def _largest(inputs: Sequence[Sample], rng: np.random.Generator) -> Sample:
    # Four independent draws: fewer than a window holds, because neighbors are alike.
    largest: Sample = np.maximum.reduce([rng.permutation(inputs[0]) for _ in range(4)])
    return largest


def _standardized(inputs: Sequence[Sample], rng: np.random.Generator) -> Sample:
    x, scale, *shift = inputs
    return sum(shift, start=(x - x.mean()) / (x.std() + np.float32(1e-5)) * scale)


_OTHER: dict[str, Callable[[Sequence[Sample], np.random.Generator], Sample]] = {
    "Concat": _mixed,
    "GroupNormalization": _standardized,
    "InstanceNormalization": _standardized,
    "LayerNormalization": _standardized,
    "MatMul": _last,  # of two activations: attention averages the values, its last operand
    "MaxPool": _largest,
}
