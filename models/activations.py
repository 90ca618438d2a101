"""Estimate the distribution of a network's activations from a sample of values per tensor.

Random weights give sane activations only if each layer's scale fits its input, through residual
sums, gates, poolings and normalizations alike. So the graph is walked once with a few thousand
samples of one entry of every tensor. Element-wise operators are executed on the samples by onnx's
reference implementation, a contraction draws new samples from the normal distributions of its
filters' outputs, and every other operator passes its input on.
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
"""Samples of one entry of a tensor, [SIZE]; element-wise operators combine them one by one."""

SIZE = 4096

_ELEMENTWISE = frozenset(
    """
    Abs Add Celu Clip Div Elu Erf Exp Gelu HardSigmoid HardSwish LeakyRelu Max Mean Min Mish Mul Neg
    PRelu Pow Relu Selu Sigmoid Softplus Softsign Sqrt Sub Sum Swish Tanh
    """.split()  # noqa: SIM905 — reads better than thirty lines of strings
)


class Activations:
    """The samples of a graph's tensors, added node by node in topological order."""

    def __init__(self, rng: np.random.Generator, opset: int) -> None:
        """Take samples from `rng`, and operators from version `opset` of the standard."""
        self._rng = rng
        self._opset = opset
        self._samples: dict[str, Sample] = {}

    def moments(self, name: str) -> tuple[float, float]:
        """Return the mean and variance of a tensor; those of the standard normal if it is unknown."""
        if name not in self._samples:
            return 0.0, 1.0
        sample = self._samples[name].astype(np.float64)
        return float(sample.mean()), float(sample.var())

    def add_input(self, name: str) -> None:
        """Add an input of the graph, assumed to be standard normal."""
        self._samples[name] = self._rng.standard_normal(SIZE, np.float32)

    def add_constant(self, name: str, values: Array) -> None:
        """Add a constant tensor: samples of its entries."""
        at = self._rng.integers(0, values.size, SIZE)
        self._samples[name] = values.flat[at].astype(np.float32)

    def add_view(self, name: str, origin: str) -> None:
        """Add a tensor with the entries of the constant `origin`."""
        if origin in self._samples:
            self._samples[name] = self._samples[origin]

    def add_contraction(self, node: NodeProto, layer: Contraction, weights: Array) -> None:
        """Add the output of a layer: each filter's output is normal, with the filter's mean and variance."""
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
        """Add the output of a BatchNormalization; scale, shift, mean and variance are of one channel."""
        scale, shift, mean, variance = (values.astype(np.float32) for values in constants)
        at = self._rng.integers(0, scale.size, SIZE)
        x = (self._samples[node.input[0]] - mean[at]) / np.sqrt(variance[at] + np.float32(1e-5))
        self._samples[node.output[0]] = x * scale[at] + shift[at]

    def add(self, node: NodeProto) -> None:
        """Add the outputs of any other node, unless none of its inputs has a sample."""
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
    # Four independent samples, fewer than a window has, because neighbors are similar.
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
