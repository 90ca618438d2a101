"""Gradients of gates, against differences of the loss; and criteria made of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import onnxprune as op
from onnxprune.errors import PlanError
from onnxprune.importance.gates import GateGradients
from onnxprune.model.file import set_tensor, weights
from onnxprune.model.session import run, session
from onnxprune.recover.repair import repeat
from onnxprune.trace.graph import ChannelGraph
from tests.importance.network import Arrays
from tests.toolbox import Net, analyze

MODELS = Path(__file__).parents[2] / "models"


def chain() -> ChannelGraph:
    net = Net(17)
    x = net.input((4, 3, 6, 6), "x")
    y = net.op("Relu", net.conv(x, 6, 3, name="first"))
    y = net.op("Add", y, net.op("Relu", net.conv(y, 6, 3, name="second")))
    y = net.op("Flatten", net.op("GlobalAveragePool", net.conv(y, 5, 3, name="third")))
    net.output(net.op("Gemm", y, net.weight(5, 4, name="last")))
    return analyze(net.model())


def log_likelihood(graph: ChannelGraph, scaled: dict[str, float], arrays: Arrays, labels: np.ndarray) -> np.ndarray:
    """Return each sample's loss with some positions of the axes that read channels scaled."""
    model = op.load(graph.proto).proto
    stored = weights(model)
    for key, factor in scaled.items():
        name, axis, position = key.split("|")
        array = np.array(stored[name])
        np.moveaxis(array, int(axis), 0)[int(position)] *= factor
        set_tensor(stored.tensor(name), array)
    y = next(iter(run(session(model), arrays).values())).astype(np.float64)
    return np.asarray(np.log(np.exp(y).sum(axis=1)) - y[np.arange(len(y)), labels])


def test_gradients_are_those_of_differences() -> None:
    graph = chain()
    x = {"x": np.random.default_rng(0).standard_normal((4, 3, 6, 6)).astype(np.float32)}
    y = next(iter(run(session(graph.proto), x).values()))
    noise = np.random.default_rng(0).gumbel(size=y.shape).astype(np.float32)
    labels = (y + noise).argmax(axis=1)
    gates = GateGradients(graph, repeat([x]), seed=0)
    for group in graph.groups:
        found = gates.mean_absolute(group.units)
        for unit, value in zip(group.units, found, strict=True):
            readers = [slot for slot in graph.summed if (graph.unit_of[graph.slots[slot]] == unit).any()]
            keys = [
                f"{name}|{axis}|{p}"
                for name, axis in readers
                for p in np.flatnonzero(graph.unit_of[graph.slots[name, axis]] == unit)
            ]
            up, down = (log_likelihood(graph, dict.fromkeys(keys, 1 + e), x, labels) for e in (1e-2, -1e-2))
            expected = np.abs((up - down) / 2e-2).mean()
            assert value == pytest.approx(expected, rel=0.02, abs=1e-4)
            assert value != pytest.approx(expected * 1.1, rel=0.02, abs=1e-6)


@pytest.mark.parametrize("name", ["taylor", "fisher"])
def test_criteria(name: str) -> None:
    analysis = op.analyze(MODELS / "digits_resnet.onnx")
    with np.load(MODELS / "digits_test.npz", allow_pickle=False) as data:
        images, labels = data["images"], data["labels"]
    batches = repeat([{"image": images[i : i + 32]} for i in range(0, 128, 32)])
    scores = op.score(analysis.graph, name, batches=batches)
    assert all((s >= 0).all() for s in scores if not np.isnan(s).any())

    def accuracy(flip: bool) -> float:
        order = [-s if flip else s for s in scores]
        removed = np.concatenate(
            [g.units[np.argsort(s)[: len(s) // 8]] for g, s in zip(analysis.graph.groups, order, strict=True)]
        )
        mask = np.zeros(analysis.graph.unit_count, bool)
        mask[removed] = True
        from onnxprune.rewrite.rewrite import rewrite

        model = rewrite(op.PrunedGraph(analysis.graph, mask))
        y = run(session(model), {"image": images[128:]})["logits"]
        return float((y.argmax(axis=1) == labels[128:]).mean())

    assert accuracy(flip=False) > accuracy(flip=True) + 0.1


def test_inputs_are_needed() -> None:
    with pytest.raises(PlanError, match="OP312"):
        op.score(chain(), "taylor")
