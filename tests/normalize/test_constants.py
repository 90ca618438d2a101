"""Nodes that give constants become initializers."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.model.file import weights
from onnxprune.normalize import normalize
from tests.normalize.models import X, normal, ops, outputs, parsed, same


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [
        ("value = float[2] {1.0, 2.0}", np.array([1, 2], np.float32)),
        ("value_float = 2.5", np.array(2.5, np.float32)),
        ("value_floats = [1.0, 2.0]", np.array([1, 2], np.float32)),
        ("value_int = 3", np.array(3, np.int64)),
        ("value_ints = [3, 4]", np.array([3, 4], np.int64)),
        ('value_string = "a"', np.array("a", object)),
        ('value_strings = ["a", "b"]', np.array(["a", "b"], object)),
    ],
)
def test_constants_become_initializers(attribute: str, expected: np.ndarray) -> None:
    kind = helper.tensor_dtype_to_string(helper.np_dtype_to_tensor_dtype(expected.dtype))
    kind = kind.removeprefix("TensorProto.").lower()
    text = f"""agraph () => ({kind}[K] y) {{ c = Constant <{attribute}> () y = Concat <axis = 0> (s, s) }}"""
    shape = [1] if not expected.shape else [-1]
    text = text.replace("y = ", "s = Reshape (c, shape) y = ")
    result = normal(parsed(text, shape=np.array(shape)))
    got = weights(result)["c"]
    assert ops(result) == ["Reshape", "Concat"]
    assert got.dtype == expected.dtype and got.shape == expected.shape and (got == expected).all()
    assert same(outputs(parsed(text, shape=np.array(shape)), {}), outputs(result, {}))


def test_sparse_constants() -> None:
    values = numpy_helper.from_array(np.array([5, 6], np.float32), "v")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([0, 3]), "i"), [4])
    proto = parsed("agraph (float[2,4] x) => (float[2,4] y) { c = Constant <value_int = 1> () y = Add(x, c) }")
    proto.graph.node[0].attribute[0].CopyFrom(helper.make_attribute("sparse_value", sparse))
    assert weights(normal(proto))["c"].tolist() == [5, 0, 0, 6]


@pytest.mark.parametrize("count", [0, 2])
def test_malformed_constants(count: int) -> None:
    proto = parsed("agraph (float[N] x) => (float[N] y) { c = Constant <value_float = 1.0> () y = Add(x, c) }")
    del proto.graph.node[0].attribute[:]
    for index in range(count):
        proto.graph.node[0].attribute.append(helper.make_attribute(f"value_{index}", 1.0))
    with pytest.raises(ModelError, match="OP123"):
        normalize(proto)
    proto.graph.node[0].attribute.append(helper.make_attribute("value_float", 1))  # an INT
    del proto.graph.node[0].attribute[:count]
    with pytest.raises(ModelError, match="OP123"):
        normalize(proto)


def test_a_constant_that_is_an_output_keeps_its_name() -> None:
    proto = parsed(
        "agraph (float[N] x) => (float[N] y, float[2] c) { c = Constant <value_floats = [1.0, 2.0]> () y = Relu(x) }"
    )
    result = normal(proto, x=X[0])
    assert ops(result) == ["Relu"] and list(weights(result)) == ["c"]


def test_constant_of_shape_is_filled() -> None:
    proto = parsed(
        """agraph (float[2,3] x) => (float[2,3] y) {
            s = Constant <value_ints = [2, 3]> ()
            i = Identity (s)
            w = ConstantOfShape <value = float[1] {1.5}> (i)
            z = ConstantOfShape (i)
            d = Mul (x, w)
            y = Add (d, z)
        }"""
    )
    result = normal(proto, x=X[:, :3])
    assert ops(result) == ["Mul", "Add"]
    got = weights(result)
    assert set(got) == {"w", "z"} and (got["w"] == 1.5).all() and got["w"].shape == (2, 3)
    assert got["z"].dtype == np.float32 and not got["z"].any()


def test_constant_of_shape_of_every_width() -> None:
    for dtype in (np.float16, np.int8, ml_dtypes.bfloat16, np.bool_):
        proto = parsed("agraph () => (float[3] y) { w = ConstantOfShape (s) y = Cast <to = 1> (w) }", s=[3])
        value = numpy_helper.from_array(np.ones(1, dtype))
        proto.graph.node[0].attribute.append(helper.make_attribute("value", value))
        got = weights(normal(proto))["w"]
        assert got.dtype == dtype and (got == 1).all() and got.shape == (3,)


def test_a_computed_shape_stays_computed() -> None:
    text = "agraph (float[N] x) => (float[N] y) { s = Shape (x) z = ConstantOfShape (s) y = Add (x, z) }"
    assert ops(normal(parsed(text), x=X[0])) == ["Shape", "ConstantOfShape", "Add"]


@pytest.mark.parametrize(
    ("shape", "code"),
    [
        ([2**20, 2**20], "OP121"),
        ([2**15, 2**14], "OP121"),  # 2 GiB each, three of them
        ([2**62, 2**62], "OP111"),
        ([-1, 3], "OP111"),
        ([0.5], "OP123"),
        ([[1]], "OP123"),
    ],
)
def test_constants_beyond_bounds(shape: list[Any], code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if shape == [2**15, 2**14]:
        monkeypatch.setattr("onnxprune.normalize.constants._MAX_CONSTANT_BYTES", 2**10)
        shape = [2**5, 2**2]
    text = """agraph (float[N] x) => (float[N] y) {
        a = ConstantOfShape (s) b = ConstantOfShape (s) c = ConstantOfShape (s) y = Sum (x, a, b, c)
    }"""
    with pytest.raises(ModelError, match=code):
        normalize(parsed(text, s=shape))


def test_identities_of_initializers_are_bypassed() -> None:
    proto = parsed(
        """agraph (float[2,4] x) => (float[2,4] y, float[4] out) <float[4] i> {
            i = Identity (b)
            j = Identity (i)
            s = Add (x, j)
            out = Identity (b)
            k = Identity (s)
            y = Relu (k)
        }""",
        b=X[1],
    )
    result = normal(proto, x=X)
    assert ops(result) == ["Add", "Identity", "Identity", "Relu"]  # the output's, and not of a constant
    assert result.graph.node[1].output == ["out"]
    assert not result.graph.value_info  # "i" is gone
