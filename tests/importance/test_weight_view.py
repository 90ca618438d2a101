"""What a criterion reads: element types, extreme values, memory, and weights behind other nodes."""

from __future__ import annotations

import tracemalloc
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnxprune.errors import ModelError
from onnxprune.importance import score, views, weight_view
from tests.importance.network import Arrays, build, weights


def gemm(*before: onnx.NodeProto) -> list[onnx.NodeProto]:
    """x (2, 6) - Gemm w - Relu - Gemm v, with nodes that make w and v from other initializers."""
    return [
        *before,
        helper.make_node("Gemm", ["x", "w"], ["h"], "first"),
        helper.make_node("Relu", ["h"], ["r"], "relu"),
        helper.make_node("MatMul", ["r", "v"], ["y"], "second"),
    ]


def pair(seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    return {n: rng.normal(size=s).astype(np.float32) for n, s in (("w", (6, 8)), ("v", (8, 5)))}


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", ["l1", "l2", "fpgm", "lamp", "bn-scale"])
def test_other_float_types_score_alike(name: str, dtype: Any) -> None:
    typed = {n: a.astype(dtype) for n, a in weights().items()}
    rounded = {n: a.astype(np.float32) for n, a in typed.items()}
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    for a, b in zip(score(build(typed, dtype=kind), name), score(build(rounded), name), strict=True):
        assert a.dtype == np.float64
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_units_at_several_positions_have_wide_rows() -> None:
    arrays = weights()
    view = list(views(build(arrays)))[1]
    slots = {(r.tensor, r.axis): r for r in view.rows}
    fc = slots["fc.w", 1]
    np.testing.assert_array_equal(fc.positions, np.arange(160).reshape(10, 16))
    np.testing.assert_array_equal(fc.rows[3], arrays["fc.w"][:, 48:64].T.ravel())
    np.testing.assert_array_equal(slots["conv2.w", 0].rows, arrays["conv2.w"].reshape(10, -1))
    assert {r.tensor: r.role for r in view.rows} == {"conv2.w": "weight", "conv2.b": "vector", "fc.w": "weight"}


def test_roles_of_a_normalized_layer() -> None:
    view = next(views(build(weights())))
    assert {(r.tensor, r.axis): r.role for r in view.rows} == {
        ("conv1.w", 0): "weight",
        ("bn1.scale", 0): "scale",
        ("bn1.bias", 0): "vector",
        ("bn1.mean", 0): "vector",
        ("bn1.var", 0): "vector",
        ("conv2.w", 1): "weight",
    }


def test_small_blocks_give_the_same_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = score(build(weights()), "l2")
    monkeypatch.setattr(weight_view, "_BLOCK", 250)  # two rows of conv2 at a time, one of fc
    for a, b in zip(score(build(weights()), "l2"), whole, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("name", ["l1", "l2", "lamp", "fpgm"])
def test_weights_behind_other_nodes_keep_their_role(name: str) -> None:
    arrays = pair()
    stored = {
        "w0": arrays["w"].T.reshape(8, 2, 3).copy(),
        "shape": np.array([8, 6]),
        "v0": (arrays["v"] / 4).astype(np.float64),
        "four": np.array(4, dtype=np.float32),
    }
    makers = [
        helper.make_node("Reshape", ["w0", "shape"], ["w1"], "reshape"),
        helper.make_node("Transpose", ["w1"], ["w"], "transpose", perm=[1, 0]),
        helper.make_node("Cast", ["v0"], ["v1"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Identity", ["v1"], ["v2"], "identity"),
        helper.make_node("Mul", ["v2", "four"], ["v"], "mul"),
    ]
    (behind,) = score(build(stored, gemm(*makers), x=(2, 6)), name)
    (plain,) = score(build(arrays, gemm(), x=(2, 6)), name)
    np.testing.assert_allclose(behind, plain, rtol=1e-5)


def test_quantized_weights_are_scored_as_integers() -> None:
    rng = np.random.default_rng(0)
    stored: Arrays = {
        "w0": rng.integers(-127, 128, (6, 8), dtype=np.int8),
        "v0": rng.integers(-127, 128, (8, 5), dtype=np.int8),
        "scale": np.array(0.01, dtype=np.float32),
        "zero": np.array(0, dtype=np.int8),
    }
    makers = [helper.make_node("DequantizeLinear", [f"{n}0", "scale", "zero"], [n], f"dq_{n}") for n in "wv"]
    (quantized,) = score(build(stored, gemm(*makers), x=(2, 6)), "l2")
    plain = {n: stored[f"{n}0"].astype(np.float32) for n in "wv"}
    (expected,) = score(build(plain, gemm(), x=(2, 6)), "l2")
    np.testing.assert_allclose(quantized, expected, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["l1", "l2", "lamp", "fpgm"])
def test_a_weight_that_is_not_finite_is_named(name: str, bad: float) -> None:
    arrays = weights()
    arrays["conv2.w"][1, 2, 0, 0] = bad
    with pytest.raises(ModelError) as caught:
        score(build(arrays), name)
    assert caught.value.code == "OP126"
    assert caught.value.where == 'initializer "conv2.w"'
    score(build(arrays), "bn-scale")  # which doesn't read it


@pytest.mark.parametrize(("tensor", "bad"), [("bn1.scale", np.nan), ("bn1.var", -1.0), ("bn1.var", np.inf)])
def test_a_normalization_that_is_not_finite_is_named(tensor: str, bad: float) -> None:
    arrays = weights()
    arrays[tensor][5] = bad
    with pytest.raises(ModelError) as caught:
        score(build(arrays), "l2")
    assert (caught.value.code, caught.value.where) == ("OP126", f'initializer "{tensor}"')


@pytest.mark.parametrize("size", [1e-30, 1e30])
@pytest.mark.parametrize("name", ["l1", "l2", "lamp", "fpgm"])
def test_squares_neither_overflow_nor_vanish(name: str, size: float) -> None:
    arrays = weights()
    arrays["conv2.w"] *= np.float32(size)
    for a, b in zip(score(build(arrays), name), score(build(weights()), name), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize("name", ["l1", "l2", "lamp", "fpgm", "bn-scale"])
def test_weights_of_zeros_score_zero(name: str) -> None:
    arrays = {n: a if n == "bn1.var" else a * 0 for n, a in weights().items()}
    for scores in score(build(arrays), name):
        assert np.isnan(scores).all() if name == "bn-scale" and len(scores) == 10 else (scores == 0).all()


def test_large_weights_are_not_copied() -> None:
    """Sums need one read of a weight and no more; rows along the first axis are no further copy."""
    size = 4096 * 2048
    rng = np.random.default_rng(0)
    arrays: dict[str, NDArray[Any]] = {
        "w": rng.random((2048, 4096), dtype=np.float32),
        "v": rng.random((4096, 8), dtype=np.float32),
    }
    graph = build(arrays, gemm(), x=(2, 2048))
    del arrays
    tracemalloc.start()
    try:
        score(graph, "l2")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.5 * 4 * size
