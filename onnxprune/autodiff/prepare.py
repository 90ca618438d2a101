"""Convert models to a form that can be differentiated; weights keep their names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx.inliner
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, defs, helper, numpy_helper, version_converter
from onnx.shape_inference import infer_shapes

from onnxprune.errors import TrainingError
from onnxprune.errors.words import one_line
from onnxprune.model.bodies import is_open, results
from onnxprune.model.file import skeleton
from onnxprune.model.graph import GraphIndex, behind, extract, opset_of, with_nodes
from onnxprune.model.session import run, session
from onnxprune.model.tape import Tensor
from onnxprune.operators.card import card_of
from onnxprune.operators.node import Node
from onnxprune.shapes import concretize

OPSET = 18
"""The oldest opset in which all operators that gradient rules emit have their current form."""


def prepared(proto: ModelProto) -> ModelProto:
    """Return a model in single precision, opset 18 or newer, and operators with gradient rules where possible.

    Raises:
        TrainingError: onnx can't convert it (OP903).
    """
    return expanded(upgraded(single_precision(proto)))


def without_known_branches(
    proto: ModelProto, input_shapes: Mapping[str, Sequence[int]], given: Mapping[str, NDArray[Any]]
) -> tuple[ModelProto, frozenset[str]]:
    """Return a model in which each opened If whose condition is known is the body that runs.

    Nodes of the other body go, unless an output needs them.

    Args:
        proto: the model.
        input_shapes: the shapes of its inputs: conditions may follow from constants and sizes.
        given: values of inputs that never change, such as a sampling rate.

    Returns:
        The model, and the given inputs that decided.
    """
    conditions = [n.input[0] for n in proto.graph.node if is_open(n) and n.op_type == "If"]
    if not conditions:
        return proto, frozenset()
    known, decided = dict(concretize(proto, input_shapes, empty=True).values), set[str]()
    for condition in conditions:
        part = extract(proto, [condition])
        inputs = {entry.name for entry in part.graph.input}
        if condition not in known and inputs <= given.keys():
            known |= run(session(part, optimize=False), {name: given[name] for name in inputs})
            decided |= inputs
    nodes = list[NodeProto]()
    for node in proto.graph.node:
        if not is_open(node) or node.op_type != "If" or node.input[0] not in known:
            nodes.append(node)
            continue
        chosen = results(node)["then_branch" if known[node.input[0]].all() else "else_branch"]
        copies = zip(chosen, node.output, strict=True)
        nodes += [helper.make_node("Identity", [x], [y], name=f"{node.name}:{y}") for x, y in copies if y]
    return with_nodes(proto, behind((value.name for value in proto.graph.output), nodes)), frozenset(decided)


def upgraded(proto: ModelProto) -> ModelProto:
    """Convert a model to opset 18, if its own is older.

    Raises:
        TrainingError: onnx can't convert it (OP903).
    """
    if opset_of(proto) >= OPSET:
        return proto
    try:
        converted = _without_weights(proto, lambda light: version_converter.convert_version(_by_position(light), OPSET))
    except Exception as error:  # the converter's C++ throws errors of many types
        cause = f"opset {opset_of(proto)} can't be converted to {OPSET}: {one_line(error, 200)}"
        raise TrainingError("OP903", cause, hint="export the model with opset 18 or newer") from error
    if opset_of(proto) < 11:
        _count_as_before_opset_11(converted)
    return converted


def _by_position(model: ModelProto) -> ModelProto:
    """Write normalizations with moments for every position, which opset 9 no longer has, as arithmetic."""
    if opset_of(model) not in (7, 8):  # older ones don't broadcast
        return model
    nodes = [made for node in model.graph.node for made in _as_arithmetic(node)]
    return with_nodes(model, nodes)


def _as_arithmetic(node: NodeProto) -> Iterator[NodeProto]:
    """Yield (x - mean) * (scale / sqrt(variance + epsilon)) + bias for a normalization by position, else the node."""
    if node.op_type != "BatchNormalization" or Node(node).attr("spatial", 1):
        yield node
        return
    x, scale, bias, mean, variance = node.input
    y = node.output[0]
    epsilon = helper.make_tensor(f"{y}.epsilon", TensorProto.FLOAT, [1], [Node(node).attr("epsilon", 1e-5)])
    steps: list[tuple[str, list[str], dict[str, Any]]] = [
        ("Constant", [], {"value": epsilon}),
        ("Add", [variance, f"{y}.0"], {}),
        ("Sqrt", [f"{y}.1"], {}),
        ("Div", [scale, f"{y}.2"], {}),
        ("Sub", [x, mean], {}),
        ("Mul", [f"{y}.4", f"{y}.3"], {}),
        ("Add", [f"{y}.5", bias], {}),
    ]
    for i, (op_type, inputs, attributes) in enumerate(steps):
        output = y if i == len(steps) - 1 else f"{y}.{i}"
        yield helper.make_node(op_type, inputs, [output], name=f"{output}_written", **attributes)


def _count_as_before_opset_11(model: ModelProto) -> None:
    """Make Resize compute positions as it did before opset 11, which onnx's converter doesn't do."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Resize":
            scales = weights.get(node.input[2])
            smaller = scales is not None and bool((numpy_helper.to_array(scales) < 1).any())
            for name, value in {
                "coordinate_transformation_mode": "asymmetric",
                "nearest_mode": "ceil" if smaller else "floor",
            }.items():
                node.attribute.append(helper.make_attribute(name, value))


def expanded(proto: ModelProto) -> ModelProto:
    """Replace operators without a gradient rule by their definition in simpler operators, if ONNX has one."""
    types = {n.op_type for n in proto.graph.node if n.domain in ("", "ai.onnx")}
    lacking = [t for t in sorted(types) if not card_of("", t).differentiable and _has_definition(t, opset_of(proto))]
    if not lacking:
        return proto

    def expand(light: ModelProto) -> ModelProto:
        typed = infer_shapes(light)  # definitions may depend on types, of initializers as well
        for tensor in typed.graph.initializer:
            typed.graph.value_info.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        wanted = [("", t) for t in lacking]
        return onnx.inliner.inline_selected_functions(typed, wanted, inline_schema_functions=True)

    return _without_weights(proto, expand)


def differentiable(operator: str) -> bool:
    """Whether gradients pass an operator: by a rule, or once it is converted or written in simpler operators."""
    domain, _, op_type = operator.rpartition(":")
    if card_of(domain, op_type).differentiable:
        return True
    schema = defs.get_schema(op_type) if not domain and defs.has(op_type) else None
    return schema is not None and (schema.deprecated or _has_definition(op_type, schema.since_version))


def _has_definition(op_type: str, opset: int) -> bool:
    if not defs.has(op_type, opset, ""):
        return False
    schema = defs.get_schema(op_type, opset, "")
    return any(getattr(schema, kind) for kind in ("has_function", "has_context_dependent_function"))


def _without_weights(proto: ModelProto, transform: Callable[[ModelProto], ModelProto]) -> ModelProto:
    """Transform a model while its large weights are detached."""
    result = transform(skeleton(proto))
    known = {t.name for t in result.graph.initializer}
    heavy = [t for t in proto.graph.initializer if t.name not in known]
    names = {t.name for t in heavy}
    inputs = [value for value in result.graph.input if value.name not in names]
    del result.graph.input[:]
    result.graph.input.extend(inputs)
    result.graph.initializer.extend(heavy)
    result.ir_version = max(proto.ir_version, 8)
    return result


_OF_TYPE = ("dtype", "output_datatype", "output_dtype", "to")  # attributes that name an element type


def replaced_types(proto: ModelProto) -> tuple[int, ...]:
    """Return the types of real numbers that training replaces by float32: half precision, and double if weights are."""
    double = TensorProto.DOUBLE
    wide = any(t.data_type == double and len(t.dims) > 1 for t in proto.graph.initializer)
    return (TensorProto.FLOAT16, TensorProto.BFLOAT16, *([double] if wide else []))


def single_precision(proto: ModelProto, types: Sequence[int] | None = None) -> ModelProto:
    """Return a model in which all tensors of some types of real numbers are float32.

    Training runs in float32 throughout: master weights keep steps that rounding would lose (Micikevicius et al.,
    "Mixed precision training", ICLR 2018), and gradients don't underflow, so that no loss is scaled.

    Args:
        proto: the model. It isn't changed, and returned as it is if it has no such tensors.
        types: the types; those of `replaced_types` by default.
    """
    types = replaced_types(proto) if types is None else types
    if not any(_replaced(proto.graph, types, look=True)):
        return proto
    copy = ModelProto()
    copy.CopyFrom(proto)
    for _ in _replaced(copy.graph, types):
        pass
    return copy


def _replaced(graph: GraphProto, types: Sequence[int], *, look: bool = False) -> Iterator[bool]:
    """Make what is of some types float32, in bodies as well; yield True for each place, and only that to look."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type in types:
            yield True
            if not look:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
    attributes = [a for node in graph.node for a in node.attribute]
    for tensor in (*graph.initializer, *(a.t for a in attributes if a.HasField("t"))):
        if tensor.data_type in types:
            yield True
            if not look:
                wide = numpy_helper.to_array(tensor).astype(np.float32)
                tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
    for attribute in attributes:
        if attribute.name in _OF_TYPE and attribute.i in types:
            yield True
            if not look:
                attribute.i = TensorProto.FLOAT
        if attribute.HasField("g"):
            yield from _replaced(attribute.g, types, look=look)


NORMALIZING = ("Identity", "LogSoftmax", "Softmax")


def scores_before(proto: ModelProto, output: str, through: Sequence[str] = NORMALIZING) -> str:
    """Return the tensor that an output is the Softmax of, or the output itself if it is no Softmax."""
    return GraphIndex(proto.graph).source(output, through)


def as_classes(scores: Tensor, labels: Sequence[int] | None, axis: int | None = None) -> Tensor:
    """Reshape scores to [n, classes, ...].

    Args:
        scores: [n, ...], classes on the only axis larger than one, or on the axis that the labels lack.
        labels: the shape of the labels, if there are any.
        axis: the axis of classes, if it is known.

    Raises:
        TrainingError: the axis of classes is ambiguous (OP904).
    """
    n, *rest = scores.shape
    wide = [size for size in rest if size > 1]
    if len(wide) <= 1:
        return scores.reshape((n, scores.size // n))
    positions = None if labels is None else [size for size in labels[1:] if size > 1]
    first = 1 if positions is None and axis is None else axis
    for a in range(1, scores.rank) if first is None else [first % scores.rank]:
        others = [size for b, size in enumerate(scores.shape) if b not in (0, a) and size > 1]
        if first is not None or others == positions:
            return scores.transpose([0, a, *(b for b in range(1, scores.rank) if b != a)])
    cause = f"scores of shape {list(scores.shape)} don't go with labels of shape {list(labels or ())}"
    raise TrainingError("OP904", cause, where=f'"{scores.name}"')
