"""Give a model without weights seeded random ones that keep its activations near one.

Architecture graphs are published with each weight replaced by a ConstantOfShape node: onnx ships
nine of them, and `models.builders` writes such graphs too. `fill` turns those nodes into
initializers. The role of each tensor follows from its first consumer after Reshape, Transpose and
the like. The scale of a layer's weights follows from a sample of its input activations
(`models.activations`): layer-sequential unit variance (Mishkin and Matas, 2016) without running
the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import (
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    helper,
    numpy_helper,
    shape_inference,
)

from models.activations import Activations
from models.contraction import Contraction, contraction

Array = npt.NDArray[np.generic]

MIN_ELEMENTS = 64
"""Smaller tensors may be real constants and are kept, unless BatchNormalization reads them."""

MIN_IR_VERSION = 8
"""`fill` raises the IR version to this: below 4, initializers have to be graph inputs too."""

MIN_CENTERED_TERMS = 16
"""Filters that sum at least this many products get a mean of zero."""

_FLOATS = {"float16", "bfloat16", "float32", "float64"}
_VIEWS = {"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
_SCALES = {
    ("BatchNormalization", 1),
    ("BatchNormalization", 4),
    ("Div", 1),
    ("GroupNormalization", 1),
    ("InstanceNormalization", 1),
    ("LayerNormalization", 1),
    ("Mul", 0),
    ("Mul", 1),
}
"""Inputs that are a scale or a variance; every other input that isn't a weight is a summand."""


def fill(model: ModelProto, seed: int = 0) -> ModelProto:
    """Return a copy of `model` with its ConstantOfShape weights replaced by seeded random initializers.

    Weights of Conv, ConvTranspose, Gemm and MatMul are normal, each filter scaled so that its
    output has a standard deviation of 0.5 .. 1.5 when the model's inputs are standard normal.
    Scales and variances are uniform in 0.5 .. 1.5, biases, means and all others normal with a
    deviation of 0.1. Tensors of integers and those of fewer than 64 elements are kept. But the
    parameters of BatchNormalization are always drawn, even if they have values, because those
    describe weights that are gone. A lower IR version is raised to 8. A model without such weights
    is returned unchanged.
    """
    filled = ModelProto()
    filled.CopyFrom(model)
    constants = dict(_constants(filled.graph))
    hollow = dict(_hollow(filled.graph, constants))
    if hollow:
        filler = _Filler(filled, constants | hollow, np.random.default_rng(seed))
        blank = {name for name, values in hollow.items() if values.size >= MIN_ELEMENTS}
        _install(filled, filler.draw(blank | set(_batch_norm_parameters(filled.graph))))
    return filled


class _Filler:
    """Walks a graph in topological order and draws each weight where it is first read."""

    def __init__(self, model: ModelProto, constants: dict[str, Array], rng: np.random.Generator) -> None:
        opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
        self._graph = model.graph
        self._rng = rng
        self._activations = Activations(rng, opset)
        self._inferred = dict(_static_shapes(model))
        self._constants = constants
        # For constants and their views: the constant itself, and the view's own shape.
        self._origin = {name: name for name in constants}
        self._shapes = {name: values.shape for name, values in constants.items()}
        self._blank: set[str] = set()

    def draw(self, names: set[str]) -> dict[str, Array]:
        """Return new values for those of the constants `names` that some node reads."""
        names = names & self._constants.keys()
        self._blank = set(names)
        for value in self._graph.input:
            if helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name in _FLOATS:
                self._activations.add_input(value.name)
        for name, values in self._constants.items():
            if values.dtype.name in _FLOATS and values.size:
                self._activations.add_constant(name, values)
        for node in self._graph.node:
            if node.op_type in _VIEWS and node.input[0] in self._origin:
                self._add_view(node)
            elif node.output[0] not in self._constants:
                self._add_layer(node)
        return {name: self._constants[name] for name in sorted(names - self._blank)}

    def _add_view(self, node: NodeProto) -> None:
        name, source = node.output[0], node.input[0]
        self._origin[name] = self._origin[source]
        self._shapes[name] = self._inferred.get(name, self._shapes[source])

    def _add_layer(self, node: NodeProto) -> None:
        """Draw the weights that the node is the first to read, then its output activations."""
        layer = contraction(node, self._shapes)
        for index, name in enumerate(node.input):
            if name in self._origin:
                origin = self._origin[name]
                if origin in self._blank:
                    self._set(origin, self._values(node, index, layer))
                self._activations.add_view(name, origin)
        if layer:
            weights = self._constants[self._origin[layer.weight]].reshape(layer.shape)
            self._activations.add_contraction(node, layer, weights)
        elif node.op_type == "BatchNormalization":
            parameters = [self._constants[self._origin[name]] for name in node.input[1:5]]
            self._activations.add_batch_norm(node, parameters)
        else:
            self._activations.add(node)

    def _set(self, name: str, values: Array) -> None:
        old = self._constants[name]
        self._constants[name] = values.reshape(old.shape).astype(old.dtype, copy=False)
        self._activations.add_constant(name, self._constants[name])
        self._blank.remove(name)

    def _values(self, node: NodeProto, index: int, layer: Contraction | None) -> Array:
        name = node.input[index]
        if layer and name == layer.weight:
            return self._filters(layer)
        if (node.op_type, index) in _SCALES:
            return self._rng.uniform(0.5, 1.5, self._shapes[name])
        return self._rng.normal(0.0, 0.1, self._shapes[name])

    def _filters(self, layer: Contraction) -> Array:
        """Return filters whose outputs have variances around one; centered if they are long enough.

        A random filter passes the mean of activations on, which soon outweighs the signal. A filter
        of mean zero doesn't: Brock et al., 2021, "Characterizing signal propagation
        to close the performance gap in unnormalized ResNets".
        """
        filters = self._rng.standard_normal(layer.shape, np.float32)
        mean, power = self._activations.moments(layer.data)
        if layer.terms < MIN_CENTERED_TERMS:
            power += mean**2
        else:
            filters -= filters.mean(layer.axes, keepdims=True)
        norm = np.square(filters).sum(layer.axes, keepdims=True)
        deviation = np.sqrt(norm * layer.share * (power or 1.0))
        filters *= (self._rng.uniform(0.5, 1.5, norm.shape) / deviation).astype(np.float32)
        return filters


def _constants(graph: GraphProto) -> Iterator[tuple[str, Array]]:
    for tensor in graph.initializer:
        yield tensor.name, numpy_helper.to_array(tensor)
    for node in graph.node:
        if node.op_type == "Constant":
            value = helper.get_attribute_value(node.attribute[0])
            if isinstance(value, TensorProto):
                value = numpy_helper.to_array(value)
            yield node.output[0], np.asarray(value)


def _hollow(graph: GraphProto, constants: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
    """Yield the floats that ConstantOfShape makes, as arrays that take no memory."""
    for node in graph.node:
        if node.op_type == "ConstantOfShape" and node.input[0] in constants:
            values = [numpy_helper.to_array(attribute.t) for attribute in node.attribute]
            value = values[0] if values else np.zeros(1, np.float32)
            if value.dtype.name in _FLOATS:
                shape = tuple(constants[node.input[0]].tolist())
                yield node.output[0], np.broadcast_to(value.reshape(()), shape)


def _batch_norm_parameters(graph: GraphProto) -> Iterator[str]:
    for node in graph.node:
        if node.op_type == "BatchNormalization":
            yield from node.input[1:5]


def _static_shapes(model: ModelProto) -> Iterator[tuple[str, tuple[int, ...]]]:
    for value in shape_inference.infer_shapes(model).graph.value_info:
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim):
            yield value.name, tuple(d.dim_value for d in tensor.shape.dim)


def _install(model: ModelProto, drawn: Mapping[str, Array]) -> None:
    """Write the drawn constants as initializers, and drop shapes that nothing reads any more."""
    graph = model.graph
    shapes = {node.input[0] for node in graph.node if node.output[0] in drawn}
    _retain(graph.node, lambda node: node.output[0] not in drawn)
    gone = drawn.keys() | shapes.difference(_names_read(graph))
    _retain(graph.node, lambda node: node.output[0] not in gone)
    _retain(graph.initializer, lambda tensor: tensor.name not in gone)
    _retain(graph.value_info, lambda value: value.name not in gone)
    graph.initializer.extend(numpy_helper.from_array(v, name) for name, v in drawn.items())
    if model.ir_version < 4:
        names = {tensor.name for tensor in graph.initializer} | gone
        _retain(graph.input, lambda value: value.name not in names)
    model.ir_version = max(model.ir_version, MIN_IR_VERSION)


def _retain(field: Any, condition: Callable[[Any], bool]) -> None:
    """Drop the elements of a repeated field that don't meet the condition."""
    kept = [element for element in field if condition(element)]
    del field[:]
    field.extend(kept)


def _names_read(graph: GraphProto) -> Iterator[str]:
    """Yield the names that the nodes of a graph read, including those of subgraphs."""
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                yield from _names_read(subgraph)
