"""Models in onnx's notation, and what passes of `normalize` must keep."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, helper, numpy_helper, parser

from onnxprune.model.bodies import close_bodies
from onnxprune.model.file import load
from onnxprune.model.session import run, session
from onnxprune.normalize import normalize

HEADER = '<ir_version: 8, opset_import: ["" : 17]>'

LOOP = """agraph (int64 n, bool c, float[4] x) => (float[4] y) {
    i = Identity (b)
    d = Mul (x, b)
    e = Loop (n, c, d) <
        body = t (int64 step, bool go, float[4] v) => (bool on, float[4] w) {
            on = Identity (go) u = Add (v, i) w = Mul (u, b)
        }
    >
    y = Add (e, i)
}"""


def parsed(text: str, **arrays: Any) -> ModelProto:
    """Load a model from onnx's notation, with these initializers."""
    proto: ModelProto = parser.parse_model(text if text.lstrip().startswith("<") else HEADER + text)
    for name, array in arrays.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return load(proto).proto


def outputs(proto: ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, Any]:
    return run(session(proto, optimize=False, threads=1), feeds)


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    """Tell whether two results are the same bit for bit."""
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype
        and left[name].shape == right[name].shape
        and left[name].tobytes() == right[name].tobytes()
        for name in left
    )


def copied(proto: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(proto)
    return copy


def by_name(proto: ModelProto) -> ModelProto:
    """Copy a model with its initializers in order of name."""
    copy = copied(proto)
    tensors = sorted(proto.graph.initializer, key=lambda t: t.name)
    copy.graph.ClearField("initializer")
    copy.graph.initializer.extend(tensors)
    return copy


def normal(proto: ModelProto, **feeds: Any) -> ModelProto:
    """Normalize, checking what holds of every model: pure, idempotent, valid, same outputs."""
    before = proto.SerializeToString(deterministic=True)
    result = normalize(proto)
    assert proto.SerializeToString(deterministic=True) == before
    assert normalize(proto) == result, "deterministic"
    assert normalize(result) == result, "idempotent"
    assert normalize(used_up := copied(proto), consume=True) is used_up
    assert by_name(used_up) == by_name(result), "in place as well"
    closed = close_bodies(result)  # the result, unless there are bodies
    onnx.checker.check_model(closed, full_check=True)
    assert load(closed).proto == closed
    if feeds:
        arrays = {name: np.asarray(feed) for name, feed in feeds.items()}
        assert same(outputs(proto, arrays), outputs(result, arrays))
    return result


def ops(proto: ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


X = np.arange(8, dtype=np.float32).reshape(2, 4)


def feeds_for(proto: ModelProto) -> dict[str, np.ndarray]:
    """Random inputs; sizes that are open are 2, but what silero's recurrence asks for."""
    sizes = {"batch": 1, "sequence": 512}
    rng = np.random.default_rng(0)
    feeds = {}
    for value in proto.graph.input:
        tensor = value.type.tensor_type
        shape = [dim.dim_value or sizes.get(dim.dim_param, 2) for dim in tensor.shape.dim]
        if value.name in ("input", "state") and any(v.name == "sr" for v in proto.graph.input):
            shape = [1, 512] if value.name == "input" else [2, 1, 128]
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        array = rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(0, 200, shape)
        feeds[value.name] = np.asarray(16000 if value.name == "sr" else array, dtype)
    return feeds
