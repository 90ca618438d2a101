"""The masked original: what it zeroes, and that it detects wrong plans and accepts right ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune.errors import VerificationError
from onnxprune.rewrite.masked import masked
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.rewrite.verify import verify
from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.pruned_graph import PrunedGraph
from tests.toolbox import Net, analyze, inputs_of, largest_difference, removal, run_once, swapped, zeroed


def chain(act: Callable[[Net, str], str], opset: int = 17) -> ChannelGraph:
    """Return two convolutions with something in between, traced."""
    net = Net(opset)
    x = net.conv(net.input((1, 3, 6, 6)), 8, 3, name="first")
    net.output(net.conv(act(net, x), 2, name="second"))
    return analyze(net.model())


def removed(graph: ChannelGraph, seed: int = 0) -> PrunedGraph:
    return removal(graph.groups, graph, np.random.default_rng(seed))


def test_zeroes_are_where_the_plan_says() -> None:
    graph = chain(lambda net, x: net.op("Relu", x))
    kept = removed(graph)
    model = masked(kept)
    positions = kept.positions()
    assert positions.keys() == {"first_w", "first_b", "second_w"}
    for before, after in zip(graph.proto.graph.initializer, model.graph.initializer, strict=True):
        old, new = numpy_helper.to_array(before), numpy_helper.to_array(after)
        mask = np.zeros(old.shape, dtype=bool)
        for axis, gone in positions.get(before.name, {}).items():
            np.moveaxis(mask, axis, 0)[gone] = True
        assert not new[mask].any()
        assert np.array_equal(new[~mask], old[~mask])
    assert list(map(str, model.graph.node)) == list(map(str, graph.proto.graph.node))


def test_an_empty_removal_masks_nothing() -> None:
    graph = chain(lambda net, x: net.op("Sigmoid", x))
    assert str(masked(PrunedGraph(graph))) == str(graph.proto)


@pytest.mark.parametrize("act", ["Sigmoid", "Exp", "Softplus", "Cos", "HardSigmoid"])
def test_whatever_the_activation_makes_of_zero(act: str) -> None:
    """Zeroing the producer alone is a wrong oracle here: f(0) isn't 0."""
    graph = chain(lambda net, x: net.op(act, x))
    kept = removed(graph)
    pruned = rewrite(kept)
    inputs = inputs_of(graph)
    assert verify(kept, pruned, inputs).passed
    producers_only = masked(kept)
    for tensor, source in zip(producers_only.graph.initializer, graph.proto.graph.initializer, strict=True):
        if tensor.name == "second_w":
            tensor.CopyFrom(source)
    assert largest_difference(run_once(producers_only, inputs), run_once(pruned, inputs)) > 1e-3


_POISON: dict[str, Callable[[Net, str], str]] = {
    "reciprocal": lambda net, x: net.op("Reciprocal", x),
    "log": lambda net, x: net.op("Log", net.op("Abs", x)),
    "divided by a weight": lambda net, x: net.op("Div", x, net.between(0.5, 2.0, 8, 1, 1)),
    "divided by itself": lambda net, x: net.op("Div", x, net.op("Abs", x)),
    "divided by its own norm": lambda net, x: net.op("Div", x, net.reduce("ReduceL2", x, [2, 3])),
    "to a negative power": lambda net, x: net.op("Pow", net.op("Abs", x), net.const(-1.0)),
    "normalized": lambda net, x: net.op(
        "InstanceNormalization", x, net.between(0.5, 1.0, 8), net.weight(8), epsilon=0.0
    ),
}


@pytest.mark.parametrize("act", _POISON.values(), ids=_POISON)
def test_zeroes_that_would_poison(act: Callable[[Net, str], str]) -> None:
    """x / 0 in a masked channel neither fails a right model nor passes a wrong one."""
    graph = chain(act)
    assert graph.groups
    kept = removed(graph)
    inputs = inputs_of(graph)
    verdict = verify(kept, rewrite(kept), inputs)
    assert verdict.passed, verdict
    other = swapped(kept, np.random.default_rng(0))
    assert other is not None
    assert not verify(kept, rewrite(other), inputs).passed


def test_poison_beside_a_recurrent_layer() -> None:
    """A hidden unit is also read by the other units of its layer."""
    net = Net()
    x = net.input((3, 2, 4))
    y, _ = net.ops("RNN", x, net.weight(1, 5, 4), net.weight(1, 5, 5), count=2, hidden_size=5)
    net.output(net.linear(net.op("Div", y, net.reduce("ReduceL2", y, [0])), 2))
    graph = analyze(net.model())
    kept = removed(graph)
    assert kept.removed.any()
    verdict = verify(kept, rewrite(kept), inputs_of(graph))
    assert verdict.passed, verdict


def _layer_norm(net: Net, x: str) -> str:
    y = net.op("Transpose", x, perm=[0, 2, 3, 1])
    y = net.op("LayerNormalization", y, net.between(0.5, 1.5, 8), net.weight(8))
    return net.op("Transpose", y, perm=[0, 3, 1, 2])


_STATISTICS: dict[str, Callable[[Net, str], str]] = {
    "LRN": lambda net, x: net.op("LRN", x, size=3, alpha=1.0),
    "LayerNormalization": _layer_norm,
    "mean": lambda net, x: net.op("Mul", x, net.reduce("ReduceMean", x, [1])),
    "max": lambda net, x: net.op("Sub", x, net.reduce("ReduceMax", net.op("Sub", x, net.op("Exp", x)), [1])),
    "norm": lambda net, x: net.op("LpNormalization", net.op("Softplus", x), axis=1),
    "sum of sigmoids": lambda net, x: net.op("Mul", x, net.reduce("ReduceSum", net.op("Sigmoid", x), [1])),
}


@pytest.mark.parametrize("act", _STATISTICS.values(), ids=_STATISTICS)
def test_statistics_are_of_what_remains(act: Callable[[Net, str], str]) -> None:
    """Statistics over channels would include the zeros: plain zeroing isn't what the pruned model computes."""
    graph = chain(act)
    (group,) = graph.groups
    assert not group.exact
    kept = removed(graph)
    pruned = rewrite(kept)
    inputs = inputs_of(graph)
    assert verify(kept, pruned, inputs).passed
    onnx.checker.check_model(masked(kept), full_check=True)
    plain, real = run_once(zeroed(kept), inputs), run_once(pruned, inputs)
    assert largest_difference(plain, real) > 1e-3
    other = swapped(kept, np.random.default_rng(0))
    assert other is not None
    assert not verify(kept, rewrite(other), inputs).passed


def test_every_wrong_channel_is_caught() -> None:
    """All swaps of one channel, and removals of one too many or too few zeroes."""
    graph = chain(lambda net, x: net.op("Tanh", x))
    (group,) = graph.groups
    inputs = inputs_of(graph)
    gone = np.zeros(len(graph.pinned), dtype=bool)
    gone[group.units[:3]] = True
    kept = PrunedGraph(graph, gone)
    for out in group.units[:3]:
        for back in group.units[3:]:
            other = gone.copy()
            other[out], other[back] = False, True
            assert not verify(kept, rewrite(PrunedGraph(graph, other)), inputs).passed
    for unit in group.units:
        other = gone.copy()
        other[unit] ^= True
        assert not verify(kept, rewrite(PrunedGraph(graph, other)), inputs).passed


def test_a_spoilt_weight_is_caught() -> None:
    graph = chain(lambda net, x: net.op("Tanh", x))
    kept = removed(graph)
    pruned = rewrite(kept)
    for tensor in pruned.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        array.ravel()[0] += 0.05
        other = onnx.ModelProto()
        other.CopyFrom(pruned)
        next(t for t in other.graph.initializer if t.name == tensor.name).CopyFrom(
            numpy_helper.from_array(array, tensor.name)
        )
        assert not verify(kept, other, inputs_of(graph)).passed, tensor.name


def test_other_outputs_are_refused() -> None:
    graph = chain(lambda net, x: net.op("Tanh", x))
    kept = removed(graph)
    pruned = rewrite(kept)
    pruned.graph.output[0].name = pruned.graph.node[0].output[0]
    with pytest.raises(VerificationError) as caught:
        verify(kept, pruned, inputs_of(graph))
    assert caught.value.code == "OP503"


def test_the_verdict_says_what_was_compared() -> None:
    graph = chain(lambda net, x: net.op("Tanh", x))
    kept = removed(graph)
    verdict = verify(kept, rewrite(kept), inputs_of(graph), seed=3)
    assert verdict.seed == 3
    (check,) = verdict.outputs
    assert check.error <= verdict.tolerance == 1e-4
    assert check.change > 0.01
    assert verdict.error == check.error
