"""What layers read on data, and criteria made of it, against sums over whole activations and plain least squares."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxprune.errors import PlanError
from onnxprune.importance import Scores, score
from onnxprune.importance.activations import LayerActivations, gather
from onnxprune.model.graph import extract
from onnxprune.model.stream import Inputs
from onnxprune.recover import repeat
from onnxprune.trace.graph import ChannelGraph
from tests.toolbox import Net, analyze, run_once

Array = NDArray[Any]
CHANNELS = 8


def network(*, bias: bool = True) -> ChannelGraph:
    """Trace a 3x3 convolution of 8 channels that a 1x1 convolution reads, and then a grouped one of 6 channels."""
    net = Net(seed=3)
    x = net.input([4, 3, 6, 6], "x")
    hidden = net.op("Relu", net.conv(x, CHANNELS, 3, pads=[1] * 4))
    weight = net.weight(6, CHANNELS, 1, 1, name="reader.weight")
    read = net.op("Conv", hidden, weight, *([net.weight(6)] if bias else []), name="reader")
    y = net.op("Conv", net.op("Relu", read), net.weight(4, 3, 1, 1), group=2)
    net.output(y)
    graph = analyze(net.model())
    assert len(graph.groups[0].units) == CHANNELS
    return graph


def inputs(count: int = 4, seed: int = 0) -> list[Inputs]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((4, 3, 6, 6)).astype(np.float32)} for _ in range(count)]


def tensor(graph: ChannelGraph, name: str, data: list[Inputs]) -> Array:
    """Run the network on all inputs and return a tensor as rows of channels."""
    part = extract(graph.proto, [name])
    values = np.concatenate([run_once(part, dict(batch))[name] for batch in data])
    return np.moveaxis(values, 1, -1).reshape(-1, values.shape[1]).astype(np.float64)


def reader(graph: ChannelGraph, data: list[Inputs]) -> LayerActivations:
    ((_, activations),) = gather(graph, graph.groups[:1], repeat(data))
    (layer,) = activations
    return layer


def relative(values: Array) -> Array:
    return np.asarray(values / values.mean())


ACTIVATIONS = {
    "mean-abs": lambda a: np.abs(a).mean(axis=0),
    "apoz": lambda a: (a != 0).mean(axis=0),
    "variance": lambda a: a.var(axis=0),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_criteria_of_activations(name: str) -> None:
    """All positions of these small batches are drawn, so that the scores are exact."""
    graph, data = network(), inputs()
    found = score(graph, name, batches=repeat(data))[0]
    activations = tensor(graph, reader(graph, data).layer.x, data)
    assert np.allclose(found, relative(ACTIVATIONS[name](activations)), rtol=1e-5)
    others = [relative(f(activations)) for other, f in ACTIVATIONS.items() if other != name]
    assert not any(np.allclose(found, other, rtol=1e-2) for other in others)


def left_over(graph: ChannelGraph, data: list[Inputs], gone: list[int]) -> float:
    """Fit the reader's output by its other inputs and a constant; return the error relative to its variance."""
    layer = reader(graph, data)
    x, y = tensor(graph, layer.layer.x, data), tensor(graph, layer.layer.y, data)
    kept = [c for c in range(CHANNELS) if c not in gone]
    features = np.column_stack([x[:, kept], np.ones(len(x))])
    residual = y - features @ np.linalg.lstsq(features, y, rcond=None)[0]
    return float((residual**2).sum() / ((y - y.mean(axis=0)) ** 2).sum())


def test_the_surgeon_s_scores_are_errors_after_least_squares() -> None:
    """The first score is the smallest error that one channel can cost; scores of several add up to their error."""
    graph, data = network(), inputs()
    scores = score(graph, "obs", batches=repeat(data))[0]
    order = np.argsort(scores, kind="stable").tolist()
    each = [left_over(graph, data, [c]) for c in range(CHANNELS)]
    assert int(np.argmin(each)) == order[0]
    for n in (1, 3, 5):
        assert scores[order[:n]].sum() == pytest.approx(left_over(graph, data, order[:n]), rel=0.05)
    assert left_over(graph, data, order[-3:]) > 2 * left_over(graph, data, order[:3])


def test_of_two_alike_channels_one_is_free() -> None:
    net = Net(seed=1)
    x = net.input([4, 3, 6, 6], "x")
    weight = net.rng.standard_normal((CHANNELS, 3, 3, 3)).astype(np.float32)
    weight[5] = weight[2]
    hidden = net.op("Relu", net.op("Conv", x, net.const(weight), pads=[1] * 4))
    net.output(net.op("Conv", hidden, net.weight(6, CHANNELS, 1, 1), net.weight(6)))
    scores = score(analyze(net.model()), "obs", batches=repeat(inputs()))[0]
    first, second = sorted(scores[[2, 5]])
    assert first < 1e-2 * np.median(scores) < second


@pytest.mark.parametrize("bias", [True, False])
def test_what_is_left_without_a_unit_is_the_least_squares_solution(bias: bool) -> None:
    graph, data = network(bias=bias), inputs()
    layer = reader(graph, data)
    assert (layer.place is not None) == bias
    found = layer.without(graph.groups[0].units[[1, 4]])[0]
    x, y = tensor(graph, layer.layer.x, data), tensor(graph, layer.layer.y, data)
    kept = [0, 2, 3, 5, 6, 7]
    features = np.column_stack([x[:, kept], np.ones(len(x))]) if bias else x[:, kept]
    exact = np.linalg.lstsq(features, y, rcond=None)[0].T
    columns = [*kept, CHANNELS] if bias else kept
    assert np.allclose(found[:, columns], exact, atol=0.02)
    assert not np.allclose(layer.parameters[0][:, columns], exact, atol=0.05)
    assert not found[:, [1, 4]].any()


def test_each_group_of_a_convolution_is_refitted_by_itself() -> None:
    graph, data = network(), inputs()
    found = {g.index: activations for g, activations in gather(graph, graph.groups, repeat(data))}
    grouped = next(r for activations in found.values() for r in activations if r.layer.groups == 2)
    assert grouped.units.shape == (2, 3)
    unit = int(grouped.units[1, 0])
    new = grouped.without(np.array([unit]))
    assert np.array_equal(new[0], grouped.parameters[0]) and not new[1][:, 0].any()
    assert not np.allclose(new[1][:, 1:], grouped.parameters[1][:, 1:], atol=1e-3)


def test_little_memory_means_more_runs_and_the_same_activations() -> None:
    graph, data = network(), inputs()
    runs = 0

    def counted() -> Iterator[Inputs]:
        nonlocal runs
        runs += 1
        return iter(data)

    whole = list(gather(graph, graph.groups, counted))
    once, runs = runs, 0
    pieces = list(gather(graph, graph.groups, counted, budget=1))
    assert runs > once
    assert [g.index for g, _ in pieces] == [g.index for g, _ in whole]
    for (_, a), (_, b) in zip(whole, pieces, strict=True):
        assert [r.layer.node.name for r in a] == [r.layer.node.name for r in b]
        assert all(np.array_equal(p.sums.gram, q.sums.gram) for p, q in zip(a, b, strict=True))


def test_memory_does_not_grow_with_the_data() -> None:
    """Activations of one batch take 36 kB a layer; sums over 40 of them take no more than over 4."""
    graph = network()

    def peak(batches: int) -> int:
        def stream() -> Iterator[Mapping[str, Array]]:
            return (batch for seed in range(batches) for batch in inputs(1, seed))

        tracemalloc.start()
        list(gather(graph, graph.groups[:1], stream, budget=1))
        _, top = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return top

    peak(2)
    assert peak(40) < peak(4) + 40 * 4 * 3 * 36 * 4 * 2 + 2**20


def same(a: list[Scores], b: list[Scores]) -> bool:
    return all(np.array_equal(x, y, equal_nan=True) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", [*ACTIVATIONS, "obs"])
def test_the_same_seed_gives_the_same_scores(name: str) -> None:
    graph, data = network(), repeat(inputs())
    assert same(score(graph, name, batches=data), score(graph, name, batches=data))
    assert not same(score(graph, name, batches=data), score(graph, name, batches=repeat(inputs(seed=9))))


@pytest.mark.parametrize("name", [*ACTIVATIONS, "obs"])
def test_without_inputs(name: str) -> None:
    with pytest.raises(PlanError) as caught:
        score(network(), name)
    assert caught.value.code == "OP312" and name in caught.value.cause
