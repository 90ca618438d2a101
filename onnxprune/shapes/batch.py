"""Make a batch size of 1 that an exporter fixed symbolic, where the model then computes the same for each sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto
from onnx.helper import make_node
from onnx.numpy_helper import from_array, to_array

from onnxprune.errors import OnnxPruneError
from onnxprune.model.graph import RECURRENT, attribute
from onnxprune.model.session import run, session
from onnxprune.model.wire import copy_model
from onnxprune.shapes.generated import runnable_inputs
from onnxprune.shapes.inputs import declared_inputs
from onnxprune.shapes.result import Shapes, concretize

BATCH = "onnxprune.batch"
"""The name of the symbolic batch size."""

_TOLERANCE = {"float16": 1e-2, "bfloat16": 1e-1}  # relative to the largest value; 1e-4 for other types


def free_batch(proto: ModelProto) -> ModelProto | None:
    """Return a copy of a model that takes any number of samples at once, or None if there is none that is right.

    All inputs with axes must have a first axis of size 1. It becomes symbolic, as does that of the outputs, and
    constants that Reshape takes leave its size open; constants that are joined to samples or start a recurrence are
    repeated. This is a guess, which is then checked by running: two samples together must give what each gives alone.
    Nodes and initializers keep their names.

    Args:
        proto: a normalized model.
    """
    inputs = declared_inputs(proto.graph)
    if not any(inputs.values()) or any(dims is None or dims[:1] not in ((), (1,)) for dims in inputs.values()):
        return None
    try:
        shapes = concretize(proto)
        freed = _opened(proto, shapes)
        return freed if freed is not None and _same(proto, freed, shapes) else None
    except OnnxPruneError:
        return None


def fix_batch(proto: ModelProto) -> None:
    """Declare the batch size of a model made by `free_batch` as 1 again, in place; others aren't changed.

    Nodes that were inserted leave. A Reshape goes on to copy its first size or to compute it.
    """
    for value in (*proto.graph.input, *proto.graph.output):
        for dim in value.type.tensor_type.shape.dim[:1]:
            if dim.dim_param == BATCH:
                dim.dim_value = 1
    made = [node for node in proto.graph.node if node.name.startswith(BATCH)]
    plain = {node.output[0]: node.input[0] for node in made if node.op_type == "Expand"}
    for node in made:
        proto.graph.node.remove(node)
    for node in proto.graph.node if made else ():
        node.input[:] = [plain.get(name, name) for name in node.input]
    for tensor in [t for t in proto.graph.initializer if t.name.startswith(BATCH)]:
        proto.graph.initializer.remove(tensor)


def _opened(proto: ModelProto, shapes: Shapes) -> ModelProto | None:
    """Return a copy with a symbolic batch; None if a constant is needed with two values."""
    freed = copy_model(proto, "value_info", "node")
    for value in (*freed.graph.input, *freed.graph.output):
        for dim in value.type.tensor_type.shape.dim[:1]:
            if dim.dim_value == 1:
                dim.dim_param = BATCH
    constants = {tensor.name: tensor for tensor in freed.graph.initializer}
    wanted: dict[str, NDArray[Any]] = {}
    for source in proto.graph.node:
        node = NodeProto()
        node.CopyFrom(source)
        if node.op_type == "Reshape" and node.input[1] in constants and node.input[0] not in shapes.static:
            before, after = shapes.shapes.get(node.input[0]), shapes.shapes.get(node.output[0])
            sizes = to_array(constants[node.input[1]])
            if before and after and sizes.size and sizes.all():
                kept = [a for a in node.attribute if a.name != "allowzero"]
                del node.attribute[:]
                node.attribute.extend(kept)
                sizes = _open_sizes(sizes, before, after, exact=not shapes.symbols)
            if not np.array_equal(wanted.setdefault(node.input[1], sizes), sizes):
                return None
        elif node.op_type == "Concat":
            for i, name in enumerate(node.input):
                if name in constants and constants[name].dims[:1] == [1] and attribute(node, "axis", 0) != 0:
                    node.input[i] = _repeated(freed, proto, constants[name], axis=0)
        elif node.op_type in RECURRENT:  # initial states [directions, batch, size]
            for i in range(5, min(7, len(node.input))):
                if node.input[i] in constants:
                    node.input[i] = _repeated(freed, proto, constants[node.input[i]], axis=1)
        freed.graph.node.append(node)
    for name, sizes in wanted.items():
        constants[name].CopyFrom(from_array(sizes, name))
    return freed


def _repeated(freed: ModelProto, proto: ModelProto, constant: TensorProto, *, axis: int) -> str:
    """Insert an Expand that repeats a constant for each sample along an axis, and return its output."""
    graph, made = freed.graph, {node.name for node in freed.graph.node}

    def insert(op_type: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        if (full := f"{BATCH}.{name}") not in made:
            graph.node.append(make_node(op_type, inputs, [full], name=full, **attributes))
        return full

    def number(name: str, values: Sequence[int]) -> str:
        if (full := f"{BATCH}.{name}") not in {tensor.name for tensor in graph.initializer}:
            graph.initializer.append(from_array(np.array(values, np.int64), full))
        return full

    entry = next(value.name for value in proto.graph.input if value.type.tensor_type.shape.dim)
    shape = insert("Shape", [entry], "shape")
    count = insert("Gather", [shape, number("first", [0])], "count")
    sizes = [number("one", [1])] * len(constant.dims)
    sizes[axis] = count
    target = insert("Concat", sizes, f"{axis} of {len(sizes)}", axis=0)
    return insert("Expand", [constant.name, target], f"{constant.name} along {axis}")


def _open_sizes(
    sizes: NDArray[np.int64], before: tuple[int, ...], after: tuple[int, ...], *, exact: bool
) -> NDArray[np.int64]:
    """Return the sizes that a Reshape takes with the first one left open: that of the input, or what is left over.

    Args:
        sizes: the sizes for one sample.
        before: the shape of what is reshaped, for one sample.
        after: its new shape.
        exact: whether the shapes don't depend on other symbolic sizes.
    """
    found = sizes.copy()
    if found[0] > 0 and before[0] == after[0]:
        found[0] = 0
    elif found[0] > 0 and (exact or -1 not in found):
        found[found == -1] = np.array(after)[found == -1]
        found[0] = -1
    return found


def _same(proto: ModelProto, freed: ModelProto, shapes: Shapes) -> bool:
    """Whether two samples together give what each gives alone."""
    singles = [runnable_inputs(proto, shapes.inputs, seed) for seed in (0, 1)]
    alone = session(proto)
    apart = [run(alone, feeds) for feeds in singles]
    del alone
    stacked = {n: np.concatenate([s[n] for s in singles]) if a.ndim else a for n, a in singles[0].items()}
    together = run(session(freed), stacked)
    return all(_agree(value, [one[name] for one in apart]) for name, value in together.items())


def _agree(together: Any, apart: list[Any]) -> bool:
    if not all(isinstance(value, np.ndarray) and value.ndim and len(value) == 1 for value in apart):
        return False
    expected = np.concatenate(apart) if apart[0].shape == apart[1].shape else np.zeros(0)
    if together.shape != expected.shape or not together.size:
        return False
    if together.dtype.kind in "biuOSU":
        return bool((together == expected).all())
    allowed = _TOLERANCE.get(together.dtype.name, 1e-4) * float(np.abs(expected).max())
    return bool((np.abs(together - expected) <= allowed).all())
