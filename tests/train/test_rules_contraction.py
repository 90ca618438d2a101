"""Gradients of matrix products and convolutions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxprune.errors import TrainingError
from tests.train.differences import Case, check, found_gradients


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape)


MATRICES = [
    ((3, 4), (4, 5)),
    ((2, 3, 4), (4, 5)),
    ((2, 3, 4), (2, 4, 5)),
    ((2, 1, 3, 4), (5, 4, 2)),
    ((3, 4), (2, 4, 5)),
    ((4,), (4, 5)),
    ((3, 4), (4,)),
    ((4,), (2, 4, 5)),
    ((2, 3, 4), (4,)),
    ((4,), (4,)),
    ((1, 3, 4), (2, 4, 5)),
]


@pytest.mark.parametrize("shapes", MATRICES, ids=str)
def test_matmul(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    rng = np.random.default_rng(0)
    check(Case("MatMul", [normal(rng, *s) for s in shapes], linear=True))


@pytest.mark.parametrize("a", [0, 1])
@pytest.mark.parametrize("b", [0, 1])
@pytest.mark.parametrize("c", [None, (5,), (3, 1), (1,), (3, 5), ()])
def test_gemm(a: int, b: int, c: tuple[int, ...] | None) -> None:
    rng = np.random.default_rng(a + 2 * b)
    inputs = [normal(rng, 4, 3) if a else normal(rng, 3, 4), normal(rng, 5, 4) if b else normal(rng, 4, 5)]
    attributes = {"transA": a, "transB": b, "alpha": 0.7, "beta": 1.3 if b else 1.0}
    check(Case("Gemm", [*inputs, *([] if c is None else [normal(rng, *c)])], attributes, linear=True))


EQUATIONS = {
    "ij,jk->ik": ((2, 3), (3, 4)),
    "bhqd,bhkd->bhqk": ((2, 2, 3, 4), (2, 2, 5, 4)),
    "...ij,...jk->...ik": ((2, 3, 2), (2, 2, 4)),
    "ij->j": ((3, 4),),
    "ij,j": ((3, 4), (4,)),
    "i,j,k->kij": ((2,), (3,), (4,)),
    "abc->cab": ((2, 3, 4),),
    "ij,kl->il": ((2, 3), (2, 4)),
}


@pytest.mark.parametrize("equation", EQUATIONS)
def test_einsum(equation: str) -> None:
    rng = np.random.default_rng(0)
    check(Case("Einsum", [normal(rng, *s) for s in EQUATIONS[equation]], {"equation": equation}, linear=True))


def convolution(seed: int, *, transposed: bool) -> Case:
    """Draw a convolution: any rank, kernel, stride, dilation, padding, groups, and bias or none."""
    rng = np.random.default_rng(seed)
    rank = int(rng.choice([1, 2, 2, 2, 3]))
    kernel = rng.integers(1, 4, rank)
    strides, dilations = rng.integers(1, 4, rank), rng.integers(1, 3, rank)
    group = int(rng.choice([1, 1, 2, 3]))
    depthwise = rng.random() < 0.25
    inputs, outputs = (1, 1) if depthwise else rng.integers(1, 4, 2)
    reach = dilations * (kernel - 1) + 1
    size = reach + rng.integers(0, 6, rank)
    attributes: dict[str, Any] = {
        "kernel_shape": kernel.tolist(),
        "strides": strides.tolist(),
        "dilations": dilations.tolist(),
        "group": group,
    }
    automatic = rng.choice(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"])
    if automatic == "NOTSET":
        attributes["pads"] = rng.integers(0, np.tile(reach, 2)).tolist()
    elif transposed or automatic == "VALID" or (dilations == 1).all():
        attributes["auto_pad"] = str(automatic)
    if transposed and automatic == "NOTSET":
        attributes["output_padding"] = rng.integers(0, strides).tolist()
        attributes["pads"] = rng.integers(0, np.maximum(np.tile(reach, 2) // 2, 1)).tolist()
        size = size + 2
    n = int(rng.integers(1, 4))
    shape = (group * inputs, outputs, *kernel) if transposed else (group * outputs, inputs, *kernel)
    x, w = normal(rng, n, group * inputs, *size), normal(rng, *shape)
    bias = [normal(rng, group * outputs)] if rng.random() < 0.5 else []
    return Case("ConvTranspose" if transposed else "Conv", [x, w, *bias], attributes, linear=True)


@pytest.mark.parametrize("seed", range(40))
def test_conv(seed: int) -> None:
    check(convolution(seed, transposed=False), seed)


@pytest.mark.parametrize("seed", range(30))
def test_conv_transpose(seed: int) -> None:
    check(convolution(seed, transposed=True), seed)


def test_output_shape() -> None:
    rng = np.random.default_rng(0)
    for automatic in ("NOTSET", "SAME_UPPER", "SAME_LOWER"):
        attributes = {"output_shape": [8, 9], "strides": [2, 2], "auto_pad": automatic}
        check(Case("ConvTranspose", [normal(rng, 2, 3, 4, 4), normal(rng, 3, 2, 3, 3)], attributes, linear=True))


@pytest.mark.parametrize("size", [(2, 8, 4, 4), (3, 4, 1, 1), (2, 6, 7, 7), (2, 4, 16, 17)])
def test_usual_convolutions(size: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    _, c, *_ = size
    for kernel, stride, group in [(3, 1, 1), (3, 2, 1), (1, 1, 1), (1, 2, 1), (3, 1, c), (3, 2, c), (5, 1, 2)]:
        w = normal(rng, c if group == c else 2 * group, c // group, kernel, kernel)
        attributes = {"pads": [kernel // 2] * 4, "strides": [stride] * 2, "group": group}
        check(Case("Conv", [normal(rng, *size), w], attributes, linear=True))


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "identity", "swiglu"])
@pytest.mark.parametrize(("k", "normalize", "bias"), [(1, 0, True), (2, 1, True), (3, 0, False)])
def test_mixture_of_experts(activation: str, k: int, normalize: int, bias: bool) -> None:
    """All gradients: of the input, of the router's scores (the choice stays), and of the weights of both layers."""
    rng = np.random.default_rng(4)
    experts, width, inner = 4, 5, 6
    rows = 2 * inner if activation == "swiglu" else inner
    scores = np.stack([rng.permutation(experts) for _ in range(3)]) + rng.uniform(0, 0.2, (3, experts))
    first, second = normal(rng, experts, rows, width), normal(rng, experts, width, inner)
    biases = [normal(rng, experts, rows), normal(rng, experts, width)] if bias else [None, None]
    inputs = [normal(rng, 1, 3, width), scores.astype(np.float32), first, biases[0], second, biases[1]]
    paired = {"swiglu_fusion": 1, "swiglu_limit": 2.0, "activation_alpha": 1.7, "activation_beta": 0.5}
    attributes = {"k": k, "activation_type": activation, "normalize_routing_weights": normalize}
    check(Case("com.microsoft:MoE", inputs, attributes | (paired if rows > inner else {}), runtime=True))


@pytest.mark.parametrize("attributes", [{"use_sparse_mixer": 1, "k": 2}, {"activation_type": "swiglu"}], ids=str)
def test_mixtures_that_are_not_written_out(attributes: dict[str, object]) -> None:
    rng = np.random.default_rng(4)
    case = Case(
        "com.microsoft:MoE", [normal(rng, *s) for s in ((3, 5), (3, 4), (4, 6, 5), (4, 6), (4, 5, 6))], attributes
    )
    with pytest.raises(TrainingError, match="OP902"):
        found_gradients(case, lambda i, shape: np.ones(shape))
