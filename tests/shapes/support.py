"""Models for tests of shapes, and what ONNX Runtime really computes, to hold them against."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnxprune.model.bodies import close_bodies
from onnxprune.model.file import skeleton
from onnxprune.shapes import Shapes, concretize

SHARED = Path(__file__).parents[2] / "../shared/models"
LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"

Arrays = Mapping[str, NDArray[Any]]
Size = int | str | None


def model(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Sequence[Size] | None],
    outputs: Iterable[str],
    constants: Arrays | None = None,
    *,
    integer: Iterable[str] = (),
    opset: int = 17,
) -> ModelProto:
    kinds = {name: TensorProto.INT64 if name in integer else TensorProto.FLOAT for name in inputs}
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(n, kinds[n], shape) for n, shape in inputs.items()],
        [ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    domains = sorted({node.domain for node in nodes} - {""})
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


node = helper.make_node


def i64(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def really(proto: ModelProto, inputs: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Run a model with every tensor of its main graph as an output."""
    full = ModelProto()
    full.CopyFrom(close_bodies(proto))
    del full.graph.value_info[:], full.graph.output[:]
    names = [name for n in full.graph.node for name in n.output if name]
    full.graph.output.extend(ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(full.SerializeToString(), options)
    rng = np.random.default_rng(1)
    feeds = {}
    for entry in proto.graph.input:
        if entry.name in inputs:
            dtype = helper.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type)
            feeds[entry.name] = rng.integers(0, 2, inputs[entry.name]).astype(dtype)
    return dict(zip(names, session.run(names, feeds), strict=True))


def wrong(found: Shapes, truth: Mapping[str, Any]) -> list[str]:
    """List the tensors of which something is said that isn't so."""
    bad = []
    for name, array in truth.items():
        if not isinstance(array, np.ndarray):
            continue
        right = found.shapes.get(name, array.shape) == array.shape
        element = helper.np_dtype_to_tensor_dtype(array.dtype)
        right &= found.types.get(name, element) == element
        if right and name in found.values:
            value = found.values[name]
            right = value.dtype == array.dtype and value.shape == array.shape
            tolerance = (1e-5, 1e-6) if np.issubdtype(array.dtype, np.inexact) else (0, 0)  # whole numbers are exact
            right = right and np.allclose(value, array, *tolerance, equal_nan=True)
        if not right:
            bad.append(name)
    return bad


def check(proto: ModelProto, shapes: Mapping[str, Sequence[int]] | None = None) -> Shapes:
    """Concretize, and compare everything with what ONNX Runtime computes."""
    before = skeleton(proto).SerializeToString(deterministic=True)
    found = concretize(proto, shapes)
    assert skeleton(proto).SerializeToString(deterministic=True) == before
    truth = really(proto, found.inputs)
    assert not wrong(found, truth)
    assert found.static <= set(found.values) <= set(found.shapes) <= set(found.types)
    if truth:  # negative control: the comparison sees one wrong size and one wrong value
        name = next(n for n in truth if n in found.shapes)
        found.shapes[name], right = (*found.shapes[name], 3), found.shapes[name]
        assert wrong(found, truth) == [name]
        found.shapes[name] = right
    for name in sorted(set(found.values).intersection(truth)):
        if found.values[name].dtype == np.int64 and found.values[name].size:
            found.values[name], kept = found.values[name] + 1, found.values[name]
            assert wrong(found, truth) == [name]
            found.values[name] = kept
            break
    return found


def flatten_by_shape(x: str = "x", y: str = "y") -> list[NodeProto]:
    """Write `x.view(x.size(0), -1)` as the TorchScript exporter does."""
    return [
        node("Shape", [x], ["shape"]),
        node("Gather", ["shape", "zero"], ["n"], axis=0),
        node("Unsqueeze", ["n", "axes"], ["n1"]),
        node("Concat", ["n1", "minus"], ["target"], axis=0),
        node("Reshape", [x, "target"], [y]),
    ]


FLATTEN = {"zero": np.array(0), "axes": i64(0), "minus": i64(-1)}
