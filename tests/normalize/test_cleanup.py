"""Clean-up passes of `normalize`."""

from __future__ import annotations

from onnxprune.normalize import normalize
from tests.normalize.models import X, normal, outputs, parsed, same


def test_initializers_are_no_inputs_and_the_version_allows_that() -> None:
    proto = parsed("agraph (float[2,4] x, float[4] b) => (float[2,4] y) { y = Add(x, b) }", b=X[1])
    proto.ir_version = 3
    result = normal(proto, x=X)
    assert [v.name for v in result.graph.input] == ["x"] and result.ir_version == 8
    proto.ir_version = 10
    assert normal(proto).ir_version == 10


def test_sizes_of_minus_one_are_unknown() -> None:
    proto = parsed("agraph (float[N,4] x) => (float[N,4] y) { y = Relu(x) }")
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = -1
    result = normalize(proto)
    first, second = result.graph.input[0].type.tensor_type.shape.dim
    assert first.WhichOneof("value") is None and second.dim_value == 4
    assert same(outputs(proto, {"x": X}), outputs(result, {"x": X}))


def test_unread_initializers_are_dropped() -> None:
    result = normal(parsed("agraph (float[N] x) => (float[N] y) { y = Relu (x) }", unread=X), x=X[0])
    assert not result.graph.initializer
