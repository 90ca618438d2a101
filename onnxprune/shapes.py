"""Concrete shapes, types and known values of a graph's tensors.

Every symbolic input dimension gets a size; then one pass goes over the nodes in order. Each node's outputs are
inferred by onnx's own rule for its operator from the inputs' types *and values*, and a small node whose inputs are
all known is evaluated on the spot by onnx's reference implementation. So shape arithmetic (Shape, Gather, Concat,
Reshape...) is already resolved when something reads it, however long its chains are, and the cost stays linear.
Declared shapes (value_info) are often stale and are not believed unless nothing else is known.

What onnx can't infer is asked of ONNX Runtime: first of the inference rules that it has for operators of its own,
then by running the model once.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    TypeProto,
    ValueInfoProto,
    defs,
)
from onnx.helper import make_tensor_type_proto, make_tensor_value_info, tensor_dtype_to_np_dtype
from onnx.numpy_helper import from_array, to_array
from onnx.shape_inference import infer_node_outputs

from onnxprune._runtime import session
from onnxprune.errors import ModelError, OnnxPruneError, UsageError

Shape = tuple[int, ...]
Dims = tuple[int | str, ...]
"""Declared dimensions: sizes and names of symbolic ones."""

_KNOWN = 4096  # values of more elements are weights or data, not shape arithmetic
_RUN_ELEMENTS = 1 << 26  # no inputs larger than this are made up for a run
_RUN_SECONDS = 30.0
_NODE_VISITS = 200_000  # bounds the search for sizes: tries x nodes
_TRIES = 48

_RANDOM = frozenset(
    {"Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform"}
    | {"RandomUniformLike"}
)
_SIZED_BY_DATA = frozenset({"Compress", "NonZero", "Unique"})
_ANONYMOUS = frozenset({"", "?", "None", "-1"})  # what exporters write for "unknown", time and again

_BATCH = (1, 2, 4, 8)
_CHANNELS = (3, 1, 4, 2)
_IMAGE = (224, 256, 32, 64, 640, 128, 416, 299, 28, 96, 160, 320, 512, 227, 384, 1024)
_VOLUME = (32, 16, 64, 112, 128, 96, 224)
_SEQUENCE = (16, 32, 64, 128, 256, 512, 1024, 2048, 16000)


@dataclass(frozen=True, slots=True)
class Shapes:
    """What is known of a graph's tensors once every input has a size.

    Attributes:
        shapes: The shape of every tensor of the main graph for which it is known.
        types: Element types (`TensorProto.DataType`).
        values: Values of up to 4096 elements: constants, and whatever is computed from constants and from the
            sizes of tensors alone.
        static: The names in `values` that depend on constants only, not on any input's size.
        inputs: The shapes of the real inputs (those that aren't initialisers).
        symbols: The size given to each symbolic dimension; a nameless one is called `input[axis]`.
    """

    shapes: dict[str, Shape]
    types: dict[str, int]
    values: dict[str, NDArray[Any]]
    static: frozenset[str]
    inputs: dict[str, Shape]
    symbols: dict[str, int]


def concretise(
    proto: ModelProto, input_shapes: Mapping[str, Sequence[int]] | None = None
) -> Shapes:
    """Give every input a size and find every tensor's shape, type and, where it is small, value.

    A size given by the user wins; a symbol has the same size everywhere. Else the leading axis gets 1, and other
    axes the first of the usual sizes at which the graph's shapes don't contradict each other. The bounded search
    varies one symbol at a time (an image's height and width together).

    Args:
        proto: A model with its nodes in order; best a normalised one. It is not changed.
        input_shapes: The shapes of some inputs.

    Returns:
        What is known. Tensors are left out whose shape nobody can tell: data-dependent ones, and those made by
        operators that neither onnx nor ONNX Runtime knows.

    Raises:
        ModelError: An input has no declared rank (OP124) or a size of zero (OP111), or the sizes don't fit the
            graph (OP125).
        UsageError: `input_shapes` doesn't fit the model's inputs (OP603).
    """
    declared, symbols = _bind(_real_inputs(proto), input_shapes or {})
    base = _Walk(proto)
    walk, conflict = _search(base, declared, symbols)
    if conflict is not None and any(isinstance(n, str) for dims in declared.values() for n in dims):
        _reject(walk, conflict, {name: walk.shapes[name] for name in declared})
    inputs = {name: walk.shapes[name] for name in declared}
    sources: tuple[Callable[[list[str]], Mapping[str, TypeProto]], ...] = (
        lambda unknown: _inferred_by_runtime(walk, unknown),
        lambda unknown: run_for_shapes(proto, inputs, unknown),
        lambda unknown: _declared(proto.graph, symbols, unknown),
    )
    for source in sources:
        unknown = walk.unknown()
        if not unknown:
            break
        walk.run(source(unknown))
    types = {
        name: kind.tensor_type.elem_type
        for name, kind in walk.types.items()
        if kind.tensor_type.elem_type
    }
    static = walk.constant.intersection(walk.values)
    return Shapes(walk.shapes, types, walk.values, frozenset(static), inputs, symbols)


def run_for_shapes(
    proto: ModelProto, inputs: Mapping[str, Shape], names: Iterable[str]
) -> dict[str, TypeProto]:
    """Run a model once in ONNX Runtime on random inputs, to see the shapes of some of its tensors.

    Args:
        proto: The model. It is not changed.
        inputs: The shapes of its inputs. Floats are drawn from a normal distribution, integers are 0 or 1.
        names: Tensors of the main graph.

    Returns:
        The types of those that came out as tensors with no axis of size zero: a detector that found nothing says
        nothing about what its outputs look like. Empty if the model can't be run within 30 seconds.
    """
    if sum(map(prod, inputs.values())) > _RUN_ELEMENTS:
        return {}
    model = ModelProto()
    model.CopyFrom(proto)
    del model.graph.value_info[:]
    present = {output.name for output in model.graph.output}
    wanted = list(dict.fromkeys(names))
    model.graph.output.extend(ValueInfoProto(name=n) for n in wanted if n not in present)
    rng = np.random.default_rng(0)
    try:
        opened = session(model, optimise=False)
        feeds = {
            entry.name: _random(entry.type.tensor_type.elem_type, inputs[entry.name], rng)
            for entry in proto.graph.input
            if entry.name in inputs
        }
        arrays = _run(opened, wanted, feeds)
    except Exception:  # ONNX Runtime's own exceptions are of many kinds, and no shape is no error
        return {}
    kinds = {output.name: output.type for output in opened.get_outputs()}
    return {
        name: make_tensor_type_proto(_element_type(kinds[name]), array.shape)
        for name, array in zip(wanted, arrays, strict=True)
        if isinstance(array, np.ndarray) and 0 not in array.shape
    }


class _Conflict(NamedTuple):
    """The first node at which shapes contradict each other."""

    index: int
    node: NodeProto
    message: str
    certain: bool
    """Whether it is sure that no implementation accepts them."""


class _Walk:
    """What is known so far of a graph's tensors, and the pass over its nodes that finds out more.

    Tensors whose shape is known in full are in `shapes`; `types` has all that have any type, with whatever part of
    their shape is known. `constant` are those that depend on no input, not even on its size.
    """

    def __init__(self, proto: ModelProto) -> None:
        self.proto = proto
        self.graph = proto.graph
        self.versions = {o.domain.replace("ai.onnx", "", 1) if o.domain == "ai.onnx" else o.domain: o.version for o in proto.opset_import}
        self.types: dict[str, TypeProto] = {}
        self.shapes: dict[str, Shape] = {}
        self.values: dict[str, NDArray[Any]] = {}
        self.data: dict[str, TensorProto] = {}
        self.constant: set[str] = set()
