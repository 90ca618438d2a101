"""Networks with norms in front of their residual branches, in other bases: the same, whatever the exporter."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxprune.basis.directions import choose_bases
from onnxprune.basis.reflections import as_text
from onnxprune.basis.rotate import Bases, folded, rotate
from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.streams import find_streams
from tests.toolbox import Net, analyze

TOKENS, WIDTH = 5, 6

Norm = Callable[[Net, str], str]
Array = NDArray[np.float32]


def vector(net: Net, x: str) -> str:
    """Return the name of a scale of a tensor's channels, neither one nor near zero."""
    return net.between(0.5, 2.0, net.shape(x)[-1])


def shift(net: Net, x: str) -> str:
    """Return the name of a shift."""
    return net.weight(net.shape(x)[-1])


def layer_norm(net: Net, x: str) -> str:
    """LayerNormalization as one operator."""
    return net.op("LayerNormalization", x, vector(net, x), shift(net, x), epsilon=1e-3)


def without_shift(net: Net, x: str) -> str:
    """LayerNormalization without its shift."""
    return net.op("LayerNormalization", x, vector(net, x), axis=2)


def as_arithmetic(net: Net, x: str) -> str:
    """LayerNormalization as exporters before opset 17 write it."""
    centered = net.op("Sub", x, net.reduce("ReduceMean", x, [-1]))
    variance = net.reduce("ReduceMean", net.op("Pow", centered, net.const(2.0)), [-1])
    root = net.op("Sqrt", net.op("Add", variance, net.const(1e-3)))
    return net.op("Add", net.op("Mul", net.op("Div", centered, root), vector(net, x)), shift(net, x))


def root_mean_square(net: Net, x: str) -> str:
    """RMSNorm as language models write it."""
    mean = net.reduce("ReduceMean", net.op("Mul", x, x), [-1])
    inverse = net.op("Reciprocal", net.op("Sqrt", net.op("Add", mean, net.const(1e-3))))
    return net.op("Mul", vector(net, x), net.op("Mul", x, inverse))


def one_operator(net: Net, x: str) -> str:
    """RMSNormalization as one operator."""
    return net.op("RMSNormalization", x, vector(net, x), epsilon=1e-3)


def unit_length(net: Net, x: str) -> str:
    """Vectors of length one, times a scale."""
    return net.op("Mul", net.op("Div", x, net.reduce("ReduceL2", x, [-1])), vector(net, x))


NORMS: dict[str, tuple[int, Norm]] = {
    "unit length": (17, unit_length),
    "layer norm": (17, layer_norm),
    "layer norm, ReduceMean with axes as input": (18, layer_norm),
    "layer norm, opset 23": (23, layer_norm),
    "without shift": (17, without_shift),
    "as arithmetic": (13, as_arithmetic),
    "root mean square": (17, root_mean_square),
    "RMSNormalization": (23, one_operator),
}


def linear(net: Net, x: str, out: int, form: int) -> str:
    """Return a layer: MatMul, with a bias behind it, or Einsum."""
    if form == 2:
        return net.op("Einsum", x, net.weight(net.shape(x)[-1], out), equation="bnk,ko->bno")
    y = net.linear(x, out)
    return net.op("Add", net.weight(out), y) if form else y


def transformer(norm: str, seed: int) -> ModelProto:
    """Return a random network of residual branches, each behind a norm and perhaps with a scale of its own."""
    opset, make = NORMS[norm]
    net, choose = Net(opset, seed), np.random.default_rng(seed)
    x = linear(net, net.input((2, TOKENS, 3)), WIDTH, int(choose.integers(3)))
    x = net.op("Add", x, net.weight(1, TOKENS, WIDTH))
    for i in range(int(choose.integers(1, 4))):
        if i == 1 and choose.integers(2):  # another stream, as behind the patches that a Swin merges
            x = linear(net, make(net, x), WIDTH + 2, int(choose.integers(3)))
        branch = make(net, x)
        if choose.integers(3):
            branch = net.op("Tanh", linear(net, branch, 7, int(choose.integers(3))))
        branch = linear(
            net, branch, net.shape(x)[-1], int(choose.integers(3))
        )  # perhaps reads and writes the same stream
        if choose.integers(2):
            branch = net.op("Mul", branch, vector(net, x))
        if choose.integers(2):
            branch = net.op("MatMul", net.weight(TOKENS, TOKENS), branch)  # mixes tokens
        x = net.op("Add", x, branch)
    x = make(net, x)
    if choose.integers(2):
        x = net.op("Gather", x, net.const(np.array(0)), axis=1)
        x = net.op(
            "Gemm", x, net.weight(4, net.shape(x)[-1]), *([net.weight(4)] if choose.integers(2) else []), transB=1
        )
    else:
        x = linear(net, x, 4, int(choose.integers(3)))
    net.output(net.op("Tanh", x))
    return net.model()


def run(model: ModelProto, seed: int = 0) -> Array:
    """Run a model in onnx's reference implementation."""
    shape = [size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return np.asarray(ReferenceEvaluator(model).run(None, {model.graph.input[0].name: x})[0])


def random_bases(graph: ChannelGraph, seed: int = 0) -> Bases:
    """Return a random basis of every stream."""
    rng, bases = np.random.default_rng(seed), dict[str, dict[int, str]]()
    for stream in find_streams(graph)[0].values():
        tensor, axis = stream.key
        bases.setdefault(tensor, {})[axis] = as_text(rng.standard_normal((stream.size, stream.size)))
    return bases


@pytest.mark.parametrize("norm", NORMS)
@given(st.integers(0, 10**6))
@settings(max_examples=8, deadline=None)
def test_networks_with_norms_compute_the_same_in_random_bases(norm: str, seed: int) -> None:
    model = transformer(norm, seed)
    graph = analyze(model)
    found = rotate(graph, random_bases(graph, seed))
    assert found.folds > 0
    expected = run(model, seed)
    np.testing.assert_allclose(run(found.proto, seed), expected, atol=3e-5)
    np.testing.assert_allclose(run(folded(graph).proto, seed), expected, atol=3e-5)
    exact = rotate(graph, found.bases, exact=True).proto
    assert {t.data_type for t in exact.graph.initializer} & {1} == set()


@pytest.mark.parametrize("norm", NORMS)
def test_a_weight_that_misses_what_it_takes_over_is_another_network(norm: str) -> None:
    """The negative control: any one of the weights that change, as it was."""
    model = transformer(norm, 5)
    graph = analyze(model)
    found, expected = rotate(graph, random_bases(graph)), run(model)
    before = {t.name: t for t in graph.proto.graph.initializer}
    tried = 0
    for name in found.weights & before.keys():
        wrong = ModelProto()
        wrong.CopyFrom(found.proto)
        for tensor in wrong.graph.initializer:
            if tensor.name == name:
                tensor.CopyFrom(before[name])
                tried += 1
                assert np.abs(run(wrong) - expected).max() > 1e-4
    assert tried > 3


def test_nothing_of_a_layer_norm_is_left_that_fixes_channels() -> None:
    """What divides stays, in the form that ONNX Runtime fuses; means are gone, and so are shifts."""
    graph = analyze(transformer("as arithmetic", 1))
    after = rotate(graph, random_bases(graph)).proto
    assert not [node for node in after.graph.node if node.op_type == "Sub"]
    kinds = {node.op_type for node in rotate(analyze(transformer("layer norm", 1)), {}).proto.graph.node}
    assert "LayerNormalization" in kinds  # nothing changes that needn't
    graph = analyze(transformer("layer norm", 1))
    kinds = {node.op_type for node in rotate(graph, random_bases(graph)).proto.graph.node}
    assert kinds >= {"Pow", "ReduceMean", "Sqrt", "Div"}
    assert "LayerNormalization" not in kinds


def test_new_names_are_no_names_of_the_model() -> None:
    net = Net(17)
    x = net.linear(net.input((2, TOKENS, 3)), WIDTH)
    x = net.op("LayerNormalization", x, vector(net, x), shift(net, x), name="norm")
    weight = net.weight(WIDTH, 4)
    taken = net.op("MatMul", x, weight, name=f"{weight}_shift")
    net.output(net.op("Tanh", taken, name="norm_pow"))
    graph = analyze(net.model())
    found = rotate(graph, random_bases(graph)).proto
    names = [node.name for node in found.graph.node]
    assert len(set(names)) == len(names)
    np.testing.assert_allclose(run(found), run(net.model()), atol=3e-5)


def branches(*parts: Callable[[Net, str], str]) -> ModelProto:
    """Return a network whose stream several parts read; their results are added up."""
    net = Net(17)
    x = net.linear(net.input((WIDTH, WIDTH, 3)), WIDTH, name="make")
    results = [net.op("Tanh", net.linear(part(net, x), 4)) for part in parts]
    net.output(net.op("Sum", *results))
    return net.model()


def post_norm(net: Net, x: str) -> str:
    """A norm whose result is added to others."""
    y = layer_norm(net, x)
    return net.op("Add", y, net.linear(net.op("Tanh", net.linear(y, 4)), WIDTH))


def computed_scale(net: Net, x: str) -> str:
    """A norm whose scale is no weight."""
    return net.op("LayerNormalization", x, net.op("Add", vector(net, x), vector(net, x)))


def statistics(net: Net, x: str) -> str:
    """A norm whose mean is used as well."""
    y, mean = net.ops("LayerNormalization", x, vector(net, x), count=2)
    return net.op("Add", net.linear(y, 4), mean)


REFUSED: dict[str, tuple[Sequence[Norm], str]] = {
    "post norm": ([post_norm], "more than layers read that"),
    "read with its mean": ([layer_norm, lambda net, x: x], "needs the mean that"),
    "size with the mean": ([layer_norm, root_mean_square], "needs the mean that"),
    "computed scale": ([computed_scale], "isn't a weight"),
    "used statistics": ([statistics], "used elsewhere"),
    "largest": ([lambda net, x: net.op("Sub", x, net.reduce("ReduceMax", x, [-1]))], "taken over these channels"),
    "over tokens, too": (
        [lambda net, x: net.op("Sub", x, net.reduce("ReduceMean", x, [-1, -2]))],
        "over something else as well",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_norm_that_others_need_as_it_is_fixes_channels(case: str) -> None:
    parts, words = REFUSED[case]
    graph = analyze(branches(*parts))
    streams, fixed = find_streams(graph)
    (group,) = (g for g in graph.groups if "make" in g.producers)
    assert group.index not in streams
    assert words in str(fixed[group.index])


def test_a_mean_that_is_an_output_stays() -> None:
    net = Net(17)
    x = net.linear(net.input((2, TOKENS, 3)), WIDTH, name="make")
    mean = net.reduce("ReduceMean", x, [-1])
    net.output(mean)
    net.output(net.op("Tanh", net.linear(net.op("Sub", x, mean), 4)))
    graph = analyze(net.model())
    (group,) = (g for g in graph.groups if "make" in g.producers)
    assert "taken over these channels" in str(find_streams(graph)[1][group.index])


@pytest.mark.parametrize("centered", [True, False])
def test_a_table_that_is_read_as_well_keeps_its_mean(centered: bool) -> None:
    """A language model whose embeddings are its last layer: any basis fits both, but the mean can't leave one alone."""
    net = Net(17)
    table = net.weight(20, WIDTH)
    x = net.op("Gather", table, net.input((2, TOKENS), dtype=7))
    x = net.op("Sub", x, net.reduce("ReduceMean", x, [-1])) if centered else x
    net.output(net.op("Tanh", net.op("Gemm", net.op("Reshape", x, net.const(np.array([-1, WIDTH]))), table, transB=1)))
    streams, fixed = find_streams(analyze(net.model()))
    assert ["used elsewhere" in str(why) for why in fixed.values()] == ([True] if centered else [])
    assert len(streams) == (0 if centered else 1)


def test_norms_of_different_kinds_share_a_stream_of_no_mean() -> None:
    """Two norms that both subtract the mean, written in two ways."""
    model = branches(layer_norm, as_arithmetic)
    graph = analyze(model)
    np.testing.assert_allclose(run(rotate(graph, random_bases(graph)).proto), run(model), atol=3e-5)


def test_data_tell_which_directions_of_a_normalized_stream_matter() -> None:
    """Channels that are the same up to two combinations need two of them."""
    net, rng = Net(17), np.random.default_rng(0)
    low = rng.standard_normal((3, 2)) @ rng.standard_normal((2, WIDTH))
    x = net.op("MatMul", net.input((2, TOKENS, 3)), net.const(low.astype(np.float32), name="make"))
    net.output(net.op("Tanh", net.linear(layer_norm(net, x), 4)))
    graph = analyze(net.model())

    def batches() -> list[dict[str, Array]]:
        return [{"input0": np.random.default_rng(1).standard_normal((2, TOKENS, 3)).astype(np.float32)}]

    rotated = rotate(graph, choose_bases(graph, batches)).proto
    made = numpy_helper.to_array(next(t for t in rotated.graph.initializer if t.name == "make"))
    sizes = np.abs(made).sum(axis=0)
    assert sizes[:2].min() > 0.1
    assert sizes[2:].max() < 0.02 * sizes[:2].min()
