"""Gives a model without weights seeded random ones, such that its activations stay near one.

Architecture graphs are published with each weight replaced by a ConstantOfShape node: onnx ships
nine of them, and `models.builders` writes such graphs too. `fill` turns those nodes into
initialisers. What each tensor is for follows from its first consumer behind Reshape, Transpose and
the like, and the scale of a layer's weights from a sample of the activations that reach it
(`models.activations`): layer-sequential unit variance (Mishkin and Matas, 2016) without running
the model.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from math import prod
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

Array = npt.NDArray[np.generic]

MIN_ELEMENTS = 64
"""Smaller tensors may be real constants: they stay, unless BatchNormalization reads them."""

MIN_IR_VERSION = 8
"""What `fill` raises the IR version to: below 4, initialisers have to be graph inputs too."""

CENTRED_TERMS = 16
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
"""Inputs that scale or are a variance; every other one that isn't a weight is added somewhere."""


def fill(model: ModelProto, seed: int = 0) -> ModelProto:
    """A copy of `model` with its ConstantOfShape weights replaced by seeded random initialisers.

    Weights of Conv, ConvTranspose, Gemm and MatMul are normal; every filter is then standardised so
    that the layer's output has unit variance when the model's inputs are standard normal. Scales
    and variances are uniform in 0.5 .. 1.5, biases, means and all others normal with a deviation of
    0.1. Tensors of integers stay, and those of fewer than 64 elements. BatchNormalization's are
    drawn whatever their size, and even if they were given: they describe weights that are gone. The
    IR version is raised to 8 where it is lower. A model without such weights comes back unchanged.
    """
    filled = ModelProto()
    filled.CopyFrom(model)
    constants = dict(_constants(filled.graph))
    hollow = dict(_hollow(filled.graph, constants))
    if hollow:
        filler = _Filler(filled, constants | hollow, np.random.default_rng(seed))
        _install(filled, filler.draw({*hollow, *_batch_norm_parameters(filled.graph)}))
    return filled


class _Filler:
    """Walks a graph in its topological order and draws each weight where it is first read."""

    def __init__(
        self, model: ModelProto, constants: dict[str, Array], rng: np.random.Generator
    ) -> None:
        self._graph = model.graph
        self._rng = rng
        self._activations = Activations(rng, _opset(model))
        self._inferred = dict(_static_shapes(model))
        self._constants = constants
        # Of constants and their views: the constant itself, and the view's own shape.
        self._origin = {name: name for name in constants}
        self._shapes = {name: values.shape for name, values in constants.items()}

    def draw(self, names: set[str]) -> dict[str, Array]:
        """New values of the constants `names`, as far as they are to be drawn."""
        for value in self._graph.input:
            if helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name in _FLOATS:
                self._activations.add_input(value.name)
        for name, values in self._constants.items():
            if values.dtype.name in _FLOATS and values.size:
                self._activations.add_constant(name, values)
        drawn: dict[str, Array] = {}
        for node in self._graph.node:
            if node.op_type in _VIEWS and node.input[0] in self._origin:
                self._add_view(node)
            elif node.output[0] not in self._constants:
                drawn |= self._visit(node, names - drawn.keys())
        return drawn

    def _add_view(self, node: NodeProto) -> None:
        name, source = node.output[0], node.input[0]
        self._origin[name] = self._origin[source]
        self._shapes[name] = self._inferred.get(name, self._shapes[source])

    def _visit(self, node: NodeProto, names: set[str]) -> dict[str, Array]:
        """Draws what the node reads of the constants `names`, then the activations it writes."""
        layer = contraction(node, self._shapes)
        drawn = {}
        for index, name in enumerate(node.input):
            origin = self._origin.get(name)
            if origin in names and self._is_weight(node, origin):
                self._constants[origin] = drawn[origin] = self._values(node, index, layer)
                self._activations.add_constant(origin, drawn[origin])
            if origin is not None:
                self._activations.add_view(name, origin)
        if layer:
            weights = self._constants[self._origin[layer.weight]].reshape(layer.shape)
            self._activations.add_contraction(node, layer, weights)
        elif node.op_type == "BatchNormalization":
            parameters = [self._constants[self._origin[name]] for name in node.input[1:5]]
            self._activations.add_batch_norm(node, parameters)
        else:
            self._activations.add(node)
        return drawn
    ...
def _static_shapes(model: ModelProto) -> Iterator[tuple[str, tuple[int, ...]]]:
    for value in shape_inference.infer_shapes(model).graph.value_info:
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
            yield value.name, tuple(dim.dim_value for dim in dims)


def _install(model: ModelProto, drawn: Mapping[str, Array]) -> None:
    """Puts initialisers in the place of the nodes, and drops the shapes that only they read."""
    graph = model.graph
    shapes = {node.input[0] for node in graph.node if node.output[0] in drawn}
    _retain(graph.node, lambda node: node.output[0] not in drawn)
    shapes -= set(_names_read(graph))
    _retain(graph.node, lambda node: node.output[0] not in shapes)
    _retain(graph.initializer, lambda tensor: tensor.name not in shapes)
    _retain(graph.value_info, lambda value: value.name not in drawn and value.name not in shapes)
    graph.initializer.extend(numpy_helper.from_array(v, name) for name, v in drawn.items())
    if model.ir_version < 4:
        names = {tensor.name for tensor in graph.initializer} | shapes
        _retain(graph.input, lambda value: value.name not in names)
    model.ir_version = max(model.ir_version, MIN_IR_VERSION)


def _retain(field: Any, condition: Callable[[Any], bool]) -> None:
    """Drops the elements of a repeated field that don't meet the condition."""
    kept = [element for element in field if condition(element)]
    del field[:]
    field.extend(kept)


def _names_read(graph: GraphProto) -> Iterator[str]:
    """What the nodes of a graph read, those of subgraphs included."""
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                yield from _names_read(subgraph)
