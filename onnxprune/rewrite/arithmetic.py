"""Models with other arithmetic: copies in another floating-point type, and a run in float64 without ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.model.checks import DEFAULT_DOMAINS

FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})

# Attributes that name an element type. A stash_type isn't among them: it only sets the type of intermediate results.
_TYPES = frozenset({"dtype", "output_dtype", "to"})


def cast_copy(model: ModelProto, element: int) -> ModelProto:
    """Return a copy of a model that computes in one floating-point type: weights, constants, casts, inputs and outputs.

    Types of 8 bits and less stay: their values have meaning only with the scales beside them.

    Args:
        model: the model.
        element: the type, of `FLOATS`.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    _cast_graph(copy.graph, element)
    return copy


def cast_arrays(arrays: Mapping[str, NDArray[Any]], element: int) -> dict[str, NDArray[Any]]:
    """Return arrays in one floating-point type; integers, flags and texts as they are."""
    kind = helper.tensor_dtype_to_np_dtype(element)
    floats = {helper.tensor_dtype_to_np_dtype(f) for f in FLOATS}
    return {name: array.astype(kind) if array.dtype in floats else array for name, array in arrays.items()}


def run_reference(model: ModelProto, feeds: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Run a model on onnx's reference implementation, which shares no code with ONNX Runtime and has every type.

    Raises:
        ModelError: it can't run the model (OP122).
    """
    from onnx.reference import ReferenceEvaluator  # slow to import, and rarely needed

    try:
        with np.errstate(all="ignore"):
            found = ReferenceEvaluator(model).run(None, dict(feeds))
    except Exception as error:  # of many kinds
        words = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ModelError("OP122", f"onnx's reference implementation can't run the model: {words}") from error
    return dict(zip((o.name for o in model.graph.output), found, strict=True))


def _cast_graph(graph: GraphProto, element: int) -> None:
    for tensor in graph.initializer:
        _cast_tensor(tensor, element)
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        _cast_type(value.type, element)
    for node in graph.node:
        _cast_node(node, element)


def _cast_node(node: NodeProto, element: int) -> None:
    for item in node.attribute:
        if item.name in _TYPES and item.type == AttributeProto.INT and item.i in FLOATS:
            item.i = element
        for tensor in (*item.tensors, *([item.t] if item.HasField("t") else [])):
            _cast_tensor(tensor, element)
        for body in (*item.graphs, *([item.g] if item.HasField("g") else [])):
            _cast_graph(body, element)
    if node.domain not in DEFAULT_DOMAINS:
        return
    if node.op_type == "Constant" and node.attribute[0].name in ("value_float", "value_floats"):
        item = node.attribute[0]
        value = np.array(item.f if item.name == "value_float" else item.floats)
        tensor = numpy_helper.from_array(value.astype(helper.tensor_dtype_to_np_dtype(element)))
        del node.attribute[:]
        node.attribute.append(helper.make_attribute("value", tensor))
    elif node.op_type == "ConstantOfShape" and not node.attribute:  # of float32 zeros
        node.attribute.append(helper.make_attribute("value", helper.make_tensor("value", element, [1], [0])))
    elif node.op_type in ("RandomNormal", "RandomUniform") and not any(a.name == "dtype" for a in node.attribute):
        node.attribute.append(helper.make_attribute("dtype", element))


def _cast_tensor(tensor: TensorProto, element: int) -> None:
    if tensor.data_type in FLOATS and tensor.data_type != element:
        array = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(element))
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _cast_type(kind: TypeProto, element: int) -> None:
    match kind.WhichOneof("value"):
        case "tensor_type" if kind.tensor_type.elem_type in FLOATS:
            kind.tensor_type.elem_type = element
        case "sequence_type":
            _cast_type(kind.sequence_type.elem_type, element)
        case "optional_type":
            _cast_type(kind.optional_type.elem_type, element)
        case "map_type":
            _cast_type(kind.map_type.value_type, element)
