"""Networks in other bases against the networks as they were, and matrices as text."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxprune.basis.directions import choose_bases, directions
from onnxprune.basis.reflections import as_text, from_text
from onnxprune.basis.rotate import Bases, rotate, used_bases
from onnxprune.errors import PlanError
from onnxprune.model.tensors import multiplied
from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.streams import find_streams
from tests.toolbox import Net, analyze

Array = NDArray[np.float64]


def network(seed: int) -> ModelProto:
    """Return a random network with streams of channels: of maps or tokens, with and without activations in between."""
    net, choose = Net(17, seed), np.random.default_rng(seed)
    width, maps = int(choose.integers(3, 9)), bool(choose.integers(2))
    if maps:
        x = net.conv(net.input((2, 3, 6, 6)), width, 3, bias=bool(choose.integers(2)))
    else:
        x = net.linear(net.input((2, 5, 3)), width)

    def layer(x: str, out: int) -> str:
        if not maps:
            y = net.linear(x, out)
            return net.op("Add", y, net.weight(out)) if choose.integers(2) else y
        return net.conv(x, out, int(choose.choice([1, 3])), bias=bool(choose.integers(2)))

    for _ in range(int(choose.integers(1, 4))):
        branch = layer(net.op("Relu", layer(x, int(choose.integers(2, 7)))), width)
        x = net.op(str(choose.choice(["Add", "Sub"])), x, branch)
        if choose.integers(3) == 0:
            x = net.op("Relu", layer(x, width))
            x = layer(x, width)
        if maps and choose.integers(3) == 0:
            x = net.op("AveragePool", x, kernel_shape=[2, 2], pads=[0, 0, 1, 1])
        elif choose.integers(3) == 0:
            x = net.op("Mul", x, net.const(0.5))
    if maps:
        x = net.op("GlobalAveragePool", x) if choose.integers(2) else x
    net.output(net.op("Tanh", layer(x, 4)))
    return net.model()


def run(model: ModelProto, seed: int) -> list[Array]:
    """Run a model in onnx's reference implementation on random inputs."""
    rng = np.random.default_rng(seed)
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    x = rng.standard_normal(shape).astype(np.float32)
    return ReferenceEvaluator(model).run(None, {model.graph.input[0].name: x})


def random_bases(graph: ChannelGraph, seed: int) -> Bases:
    """Return a random basis for every stream."""
    rng, bases = np.random.default_rng(seed), dict[str, dict[int, str]]()
    for stream in find_streams(graph)[0].values():
        tensor, axis = stream.key
        bases.setdefault(tensor, {})[axis] = as_text(rng.standard_normal((stream.size, stream.size)))
    return bases


@given(st.integers(0, 10**6))
@settings(max_examples=12, deadline=None)
def test_random_networks_compute_the_same_in_random_bases(seed: int) -> None:
    model = network(seed)
    graph = analyze(model)
    bases = random_bases(graph, seed)
    assert bases
    found = rotate(graph, bases)
    for mine, its in zip(run(found.proto, seed), run(model, seed), strict=True):
        np.testing.assert_allclose(mine, its, atol=2e-5)
    before = {t.name: numpy_helper.to_array(t) for t in graph.proto.graph.initializer}
    for tensor in found.proto.graph.initializer:
        same = np.array_equal(numpy_helper.to_array(tensor), before[tensor.name])
        assert same != (tensor.name in found.weights)


def test_one_side_alone_is_another_network() -> None:
    """The negative control: producers in the new basis, readers in the old one; or a matrix that isn't orthogonal."""
    model = network(3)
    graph = analyze(model)
    (stream, *_) = find_streams(graph)[0].values()
    expected = run(model, 0)[0]
    rng = np.random.default_rng(0)
    skewed = np.eye(stream.size) + 0.3 * rng.standard_normal((stream.size, stream.size))
    orthogonal = from_text(as_text(skewed))
    read = [slot for slot in stream.slots if slot in graph.summed]
    for matrix, slots in ((orthogonal, read), (skewed, list(stream.slots))):
        wrong = ModelProto()
        wrong.CopyFrom(model)
        for tensor in wrong.graph.initializer:
            for axis in (axis for name, axis in slots if name == tensor.name):
                array = numpy_helper.to_array(tensor).astype(np.float64)
                new = multiplied(array, axis, stream.slots[tensor.name, axis], matrix[None]).astype(np.float32)
                tensor.CopyFrom(numpy_helper.from_array(new, tensor.name))
        assert np.abs(run(wrong, 0)[0] - expected).max() > 1e-2


def test_whatever_a_text_says_the_matrix_is_orthogonal() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 2, 7, 40):
        text = as_text(rng.standard_normal((size, size)))
        matrix = from_text(text)
        np.testing.assert_allclose(matrix.T @ matrix, np.eye(size), atol=1e-13)
    given = np.linalg.qr(rng.standard_normal((9, 9)))[0]
    cosines = given.T @ from_text(as_text(given))
    np.testing.assert_allclose(np.abs(cosines), np.eye(9), atol=2e-3)


@pytest.mark.parametrize(
    "text", ["?", "A", *(base64.b64encode(n).decode() for n in (b"1", b"1234", b"12345", b"\0\x7e" * 3, b"\0\x7c" * 3))]
)
def test_a_text_that_holds_no_matrix_is_refused(text: str) -> None:
    """No base64, odd bytes, a number of numbers that no matrix has, NaN and infinity."""
    with pytest.raises(ValueError, match=r"base64|padding|data characters|reflections"):
        from_text(text)


def test_a_basis_of_another_size_or_group_is_refused() -> None:
    net = Net()
    x = net.conv(net.input((1, 3, 8, 8)), 4, name="make")
    y = net.op("Relu", net.conv(x, 5, name="act"))
    net.output(net.op("Relu", net.conv(y, 2)))
    graph = analyze(net.model())
    with pytest.raises(PlanError, match="a basis of 3 channels for a group of 4"):
        rotate(graph, {"make_w": {0: as_text(np.eye(3))}})
    with pytest.raises(PlanError, match="isn't exact: Relu"):
        rotate(graph, {"act_w": {0: as_text(np.eye(5))}})
    with pytest.raises(PlanError, match="doesn't have"):
        rotate(graph, {"other": {0: as_text(np.eye(5))}})
    with pytest.raises(PlanError, match="holds no basis"):
        rotate(graph, {"make_w": {0: "AH4AfgB+AH4AfgB+"}})


def test_the_first_directions_leave_the_least_error() -> None:
    """Against the best rank by definition: the singular values of what the reader makes of white channels."""
    rng = np.random.default_rng(1)
    n, outputs = 6, 4
    half = rng.standard_normal((n, n))
    covariance, weight = half @ half.T, rng.standard_normal((outputs, n)) @ np.diag([3, 2, 1, 1, 0.1, 0.01])
    chosen = directions(covariance, weight.T @ weight)
    best = np.linalg.svd(weight @ np.linalg.cholesky(covariance), compute_uv=False) ** 2

    def error(space: Array) -> float:
        left = weight - weight @ space @ np.linalg.pinv(weight @ space) @ weight
        return float(np.trace(left @ covariance @ left.T))

    for kept in range(1, n):
        assert error(chosen[:, :kept]) == pytest.approx(best[kept:].sum(), rel=2e-2, abs=1e-2 * best.sum())
    assert error(chosen[:, 1:2]) > 1.2 * error(chosen[:, :1])


def test_data_tell_which_directions_matter() -> None:
    """Channels that are the same up to one combination need one of them."""
    net = Net()
    rng = np.random.default_rng(0)
    x = net.input((1, 3, 8, 8))
    low = rng.standard_normal((6, 1)) @ rng.standard_normal((1, 3))
    x = net.op("Conv", x, net.const(low[:, :, None, None].astype(np.float32), name="make"))
    net.output(net.op("Relu", net.conv(x, 4, name="read")))
    graph = analyze(net.model())

    def batches() -> list[dict[str, NDArray[np.float32]]]:
        return [{"input0": np.random.default_rng(1).standard_normal((1, 3, 8, 8)).astype(np.float32)}]

    bases = choose_bases(graph, batches)
    made = next(t for t in rotate(graph, bases).proto.graph.initializer if t.name == "make")
    rows = np.abs(numpy_helper.to_array(made).reshape(6, -1)).sum(axis=1)
    assert rows[0] > 1
    assert rows[1:].max() < 0.02 * rows[0]
    assert used_bases(graph, bases, {"make": {0: (5,)}}) == bases
    assert not used_bases(graph, bases, {"read_w": {0: (1,)}})
