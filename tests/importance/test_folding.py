"""BatchNormalization folded into whatever makes its input, and only where that is exact."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxprune.importance import score
from tests.importance.network import EPSILON, Arrays, build, nodes, weights


def network(product: list[onnx.NodeProto], consumer: onnx.NodeProto, *, bn: bool) -> list[onnx.NodeProto]:
    norm = helper.make_node("BatchNormalization", ["h", "scale", "bias", "mean", "var"], ["n"], "bn", epsilon=EPSILON)
    if not bn:
        norm = helper.make_node("Identity", ["h"], ["n"], "bn")
    return [*product, norm, consumer]


def statistics(channels: int) -> Arrays:
    rng = np.random.default_rng(7)
    names = ("scale", "bias", "mean")
    arrays: Arrays = {n: rng.normal(size=channels).astype(np.float32) for n in names}
    return arrays | {"var": rng.uniform(0.1, 3, channels).astype(np.float32)}


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


CONSUMER = helper.make_node("Conv", ["n", "v"], ["y"], "consumer")
MATMUL = helper.make_node("MatMul", ["n", "v"], ["y"], "consumer")
TRANSPOSED = helper.make_node("Transpose", ["w0"], ["w"], "transpose", perm=[1, 0])
DEEP = [
    helper.make_node("Transpose", ["w0"], ["w1"], "transpose1", perm=[1, 2, 3, 0]),
    helper.make_node("Cast", ["w1"], ["w2"], "cast", to=TensorProto.FLOAT),
    helper.make_node("Transpose", ["w2"], ["w"], "transpose2", perm=[1, 0, 3, 2]),
]
# The nodes before the normalization; the weight's name, shape and output channel axis; consumer, its weight; input.
CASES = {
    "conv1d": ([helper.make_node("Conv", ["x", "w"], ["h"])], "w", (8, 3, 5), 0, CONSUMER, (4, 8, 1), (1, 3, 9)),
    "conv group": (
        [helper.make_node("Conv", ["x", "w"], ["h"], group=4)], "w", (16, 2, 1), 0, CONSUMER, (4, 16, 1), (1, 8, 9),
    ),
    "conv transpose": (
        [helper.make_node("ConvTranspose", ["x", "w"], ["h"])], "w", (3, 8, 5), 1, CONSUMER, (4, 8, 1), (1, 3, 9),
    ),
    "gemm": ([helper.make_node("Gemm", ["x", "w"], ["h"])], "w", (6, 8), 1, MATMUL, (8, 5), (2, 6)),
    "gemm transB": ([helper.make_node("Gemm", ["x", "w"], ["h"], transB=1)], "w", (8, 6), 0, MATMUL, (8, 5), (2, 6)),
    "matmul": ([helper.make_node("MatMul", ["x", "w"], ["h"])], "w", (6, 8), 1, MATMUL, (8, 5), (2, 6)),
    "matmul of a transpose": (
        [TRANSPOSED, helper.make_node("MatMul", ["x", "w"], ["h"])], "w0", (8, 6), 0, MATMUL, (8, 5), (2, 6),
    ),
    # w1 is (b, c, d, a) of w0, w is (c, b, a, d): its channels, the first axis, are axis 2 of w0.
    "conv of two transposes": (
        [*DEEP, helper.make_node("Conv", ["x", "w"], ["h"])], "w0", (2, 3, 8, 4), 2,
        CONSUMER, (4, 8, 1, 1), (1, 3, 9, 9),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_equals_folding_by_hand(case: str) -> None:
    product, name, shape, axis, consumer, other, x = CASES[case]
    stats = statistics(shape[axis])
    arrays = {name: normal(*shape), "v": normal(*other)}
    by_hand = {n: a.copy() for n, a in arrays.items()}
    for channel in range(shape[axis]):
        line = (slice(None),) * axis + (channel,)
        by_hand[name][line] *= stats["scale"][channel] / np.sqrt(stats["var"][channel] + EPSILON)
    (actual,) = score(build(arrays | stats, network(product, consumer, bn=True), x=x))
    (expected,) = score(build(by_hand, network(product, consumer, bn=False), x=x))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    (unfolded,) = score(build(arrays, network(product, consumer, bn=False), x=x))
    assert not np.allclose(actual, unfolded, rtol=1e-2)


def test_grouped_transposed_convolution() -> None:
    """Output channel 4 g + o belongs to the weight's row group g and column o; by hand, element by element."""
    stats = statistics(8)
    arrays = {"w": normal(6, 4, 3), "v": normal(5, 8, 1)}
    by_hand = {n: a.copy() for n, a in arrays.items()}
    for i in range(6):
        for o in range(4):
            channel = 4 * (i // 3) + o
            by_hand["w"][i, o] *= stats["scale"][channel] / np.sqrt(stats["var"][channel] + EPSILON)
    product = [helper.make_node("ConvTranspose", ["x", "w"], ["h"], "product", group=2)]
    actual = score(build(arrays | stats, network(product, CONSUMER, bn=True), x=(1, 6, 9)))
    expected = score(build(by_hand, network(product, CONSUMER, bn=False), x=(1, 6, 9)))
    assert actual
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_nothing_is_folded_where_the_product_is_read_twice() -> None:
    arrays = weights()
    sides = [*nodes(), helper.make_node("GlobalAveragePool", ["h"], ["g"], "pool")]
    sides += [helper.make_node("ReduceSum", ["g"], ["side"], "sum", keepdims=0)]
    twice = score(build(arrays, sides, also=["side"]))
    plain = score(build(arrays, nodes(bn=False)))
    for a, b in zip(twice, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert not np.allclose(twice[0], score(build(arrays))[0], rtol=1e-2)


def test_nothing_is_folded_in_training_mode_or_into_a_shared_weight() -> None:
    arrays = weights()
    plain = score(build(arrays, nodes(bn=False)))
    training = nodes()
    training[1].attribute.append(helper.make_attribute("training_mode", 1))
    training[1].output.extend(["running_mean", "running_var"])
    for a, b in zip(score(build(arrays, training)), plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    # Two convolutions share their weights, each with a normalization of its own.
    product = [helper.make_node("Conv", ["x", "conv1.w"], ["h2"], "twin", pads=[1] * 4)]
    norm = ["h2", "bn1.scale", "bn1.bias", "bn1.mean", "bn1.var"]
    product += [helper.make_node("BatchNormalization", norm, ["n2"], "bn2")]
    product += [helper.make_node("Add", ["n", "n2"], ["sum"], "add")]
    shared = nodes()
    shared[2].input[0] = "sum"
    for a, b in zip(score(build(arrays, [*shared[:2], *product, *shared[2:]])), plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
