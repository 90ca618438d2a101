"""Model-local functions are inlined."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from onnxprune.errors import ModelError
from onnxprune.model.file import weights
from onnxprune.normalize import normalize
from tests.normalize.models import X, normal, ops, outputs, parsed

FUNCTIONS = """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
    agraph (float[N,4] x) => (float[N,4] y) {
        a = own.twice(x)
        y = own.scaled <factor = 3.0> (a)
    }
    <domain: "own", opset_import: ["" : 17]> twice (v) => (w) { w = Add(v, v) }
    <domain: "own", opset_import: ["" : 17, "own" : 1]> scaled <factor> (v) => (w) {
        c = Constant <value_float : float = @factor> ()
        t = own.twice(v)
        w = Mul(t, c)
    }"""


def test_functions_are_inlined() -> None:
    proto = parsed(FUNCTIONS)
    helper.set_model_props(proto, {"author": "somebody"})
    result = normal(proto, x=X)
    assert not result.functions and ops(result) == ["Add", "Add", "Mul"]
    assert np.array_equal(outputs(result, {"x": X})["y"], 12 * X)
    assert result.metadata_props == proto.metadata_props
    assert [v.name for v in result.graph.input] == ["x"]


def test_functions_around_large_weights() -> None:
    big = np.eye(64, dtype=np.float32)
    text = """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
        agraph (float[N,64] x) => (float[N,64] y) { y = own.project(x, big) }
        <domain: "own", opset_import: ["" : 17]> project (v, m) => (w) { w = MatMul(v, m) }"""
    result = normal(parsed(text, big=big), x=np.ones((2, 64), np.float32))
    assert [v.name for v in result.graph.input] == ["x"]
    assert np.array_equal(weights(result)["big"], big)


def test_functions_of_an_older_opset() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
        agraph (float[2,4] x) => (float[2,1] y) { y = own.total(x) }
        <domain: "own", opset_import: ["" : 12]> total (v) => (w) { w = ReduceSum<axes = [1]>(v) }"""
    result = normal(parsed(text))
    assert np.array_equal(outputs(result, {"x": X})["y"], X.sum(1, keepdims=True))


@pytest.mark.parametrize(
    "bodies",
    [
        {"f": "w = own.f(v)"},
        {"f": "w = own.g(v)", "g": "w = own.f(v)"},
        {f"f{i}" if i else "f": f"t = own.f{i + 1}(v) w = own.f{i + 1}(t)" for i in range(30)} | {"f30": "w = Relu(v)"},
        {f"f{i}" if i else "f": f"w = own.f{i + 1}(v)" for i in range(900)} | {"f900": "w = Relu(v)"},
    ],
    ids=["recursive", "mutually", "exponential", "deep"],
)
def test_functions_without_end(bodies: dict[str, str]) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
        agraph (float[N,4] x) => (float[N,4] y) { y = own.f(x) }"""
    for name, body in bodies.items():
        text += f'<domain: "own", opset_import: ["" : 17, "own" : 1]> {name} (v) => (w) {{ {body} }}\n'
    with pytest.raises(ModelError, match="OP120"):
        normalize(parsed(text))


def test_a_function_defined_twice() -> None:
    proto = parsed(FUNCTIONS)
    proto.functions.append(proto.functions[0])
    with pytest.raises(ModelError, match="OP120"):
        normalize(proto)
