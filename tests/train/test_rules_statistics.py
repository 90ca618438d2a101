"""Gradients of reductions, normalizations, pooling and quantization."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.train.differences import Case, check

RNG = np.random.default_rng(11)
X = RNG.standard_normal((2, 6, 5, 4))
POSITIVE = RNG.uniform(0.5, 2, (2, 6, 5, 4))
SCALE, SHIFT = RNG.uniform(0.5, 1.5, 6), RNG.standard_normal(6)


def axes(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


REDUCTIONS = ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]


@pytest.mark.parametrize("given", [(1,), (0, -1), ()], ids=str)
@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions(name: str, given: tuple[int, ...]) -> None:
    x = POSITIVE if name in ("LogSum", "Prod") else X
    for keep in (0, 1):
        inputs = [x[:, :3, :2, :2], *([axes(*given)] if given else [])]
        check(Case(f"Reduce{name}", inputs, {"keepdims": keep}))


def test_a_reduction_over_no_axes() -> None:
    check(Case("ReduceSum", [X, axes()], {"noop_with_empty_axes": 1}, linear=True))


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("name", ["Softmax", "LogSoftmax", "LpNormalization"])
def test_over_an_axis(name: str, axis: int) -> None:
    check(Case(name, [X], {"axis": axis}, runtime=name == "LpNormalization"))
    if name == "LpNormalization":
        check(Case(name, [X], {"axis": axis, "p": 1}, runtime=True))


def test_top_k() -> None:
    check(Case("TopK", [X, axes(2)], {"axis": 1}, of=[0], outputs=2, judged=1))


NORMS: dict[str, Case] = {
    "BatchNormalization": Case("BatchNormalization", [X, SCALE, SHIFT, SHIFT, SCALE], {"epsilon": 0.01}, of=[0, 1, 2]),
    "LayerNormalization": Case("LayerNormalization", [X, RNG.uniform(0.5, 1.5, 4), X[0, 0, 0]]),
    "LayerNormalization, axis": Case("LayerNormalization", [X, POSITIVE[0, 0], X[0, 0]], {"axis": 2, "epsilon": 0.1}),
    "LayerNormalization, no shift": Case("LayerNormalization", [X, POSITIVE[0, 0, 0]]),
    "InstanceNormalization": Case("InstanceNormalization", [X, SCALE, SHIFT]),
    "GroupNormalization, opset 18": Case("GroupNormalization", [X, SCALE[:3], SHIFT[:3]], {"num_groups": 3}),
    "GroupNormalization": Case("GroupNormalization", [X, SCALE, SHIFT], {"num_groups": 3}, opset=21, runtime=True),
    "RMSNormalization": Case("RMSNormalization", [X, POSITIVE[0, 0, 0]], opset=23),
    "SimplifiedLayerNormalization": Case(
        "SimplifiedLayerNormalization", [X, POSITIVE[0, 0, 0]], {"axis": -1, "epsilon": 0.1}, runtime=True
    ),
    "MeanVarianceNormalization": Case("MeanVarianceNormalization", [X], runtime=True),
    "LRN": Case("LRN", [X], {"size": 3, "alpha": 0.7, "beta": 0.6, "bias": 1.5}, runtime=True),
}


@pytest.mark.parametrize("name", NORMS)
def test_norms(name: str) -> None:
    check(NORMS[name])


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (2, 3, 5, 4)], ids=str)
def test_moments_of_the_batch(shape: tuple[int, ...]) -> None:
    x = RNG.standard_normal(shape)
    inputs = [x, SCALE[:3], SHIFT[:3], SHIFT[3:], SCALE[3:]]
    check(
        Case(
            "BatchNormalization",
            inputs,
            {"training_mode": 1, "momentum": 0.0},
            of=[0, 1, 2],
            outputs=3,
            judged=1,
            runtime=True,
        )
    )


def pooling(seed: int, name: str) -> Case:
    rng = np.random.default_rng(seed)
    rank = int(rng.choice([1, 2, 2, 3]))
    kernel, strides = rng.integers(1, 4, rank), rng.integers(1, 4, rank)
    dilations = rng.integers(1, 3, rank) if rng.random() < 0.3 else np.ones(rank, int)
    reach = dilations * (kernel - 1) + 1
    size = reach + rng.integers(0, 5, rank)
    attributes: dict[str, Any] = {"kernel_shape": kernel.tolist(), "strides": strides.tolist()}
    if dilations.max() > 1:
        attributes["dilations"] = dilations.tolist()
    automatic = rng.choice(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"])
    if automatic == "NOTSET":
        attributes["pads"] = rng.integers(0, np.tile(kernel, 2)).tolist()
        attributes["ceil_mode"] = int((strides <= kernel).all())  # else shape inference and ONNX Runtime disagree
    elif automatic == "VALID" or (dilations.max() == 1 and (strides <= kernel).all()):  # ONNX Runtime's limit
        attributes["auto_pad"] = str(automatic)
    if name == "AveragePool":
        attributes["count_include_pad"] = int(rng.integers(2))
    if name == "LpPool":
        attributes["p"] = int(rng.choice([1, 2, 3]))
        attributes.pop("ceil_mode", None)
    x = rng.permutation(2 * 3 * int(np.prod(size))).reshape(2, 3, *size) * 0.1  # no two are equal
    linear = name == "AveragePool"
    return Case(name, [x], attributes, linear=linear, runtime=not linear, opset=19)


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("name", ["MaxPool", "AveragePool", "LpPool"])
def test_pooling(name: str, seed: int) -> None:
    check(pooling(seed, name), seed)


@pytest.mark.parametrize("name", ["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"])
def test_global_pooling(name: str) -> None:
    x = np.random.default_rng(0).permutation(2 * 3 * 20).reshape(2, 3, 5, 4) * 0.1 - 5
    check(Case(name, [x], runtime=True))
