"""Penalties that make networks sparse before they are pruned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

import onnxprune as op
from onnxprune.autodiff.backward import gradients, model_of
from onnxprune.autodiff.forward import feeds_of, forward
from onnxprune.data import Dataset, open_data
from onnxprune.errors import TrainingError
from onnxprune.evaluation import evaluate
from onnxprune.model.session import run, session
from onnxprune.settings.training import TrainSettings
from onnxprune.train import FineTuned, finetune
from onnxprune.train.sparsity import lasso
from onnxprune.train.trainable import trainable
from tests.toolbox import Net

MODELS = Path(__file__).parents[2] / "models"
MODEL = MODELS / "digits_resnet.onnx"
SETTINGS = TrainSettings(epochs=2, batch=32, optimizer="sgd", rate=0.02)


@pytest.fixture(scope="module")
def data() -> Dataset:
    with np.load(MODELS / "digits_test.npz", allow_pickle=False) as arrays:
        return open_data({"image": arrays["images"], "labels": arrays["labels"]}, op.load(MODEL).proto)


def weights_of(model: ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


Gradients = dict[str, np.ndarray]


def penalty(analysis: op.TracedModel) -> tuple[float, Gradients]:
    """Run the graph of the group lasso and of its gradients."""
    graph = analysis.graph
    step = forward(graph.proto, graph.shapes.inputs, trainable(graph.proto))
    loss = lasso(step, graph.proto)
    found = dict(zip(step.weights, gradients(step.tape, loss, list(step.weights.values())), strict=True))
    opened = session(model_of(step.tape, {"loss": loss, **{f"d {n}": g for n, g in found.items()}}), threads=1)
    feeds = feeds_of(step, graph.proto)
    made = run(opened, {i.name: feeds[i.name] for i in opened.get_inputs()})
    return float(made.pop("loss")), {name.removeprefix("d "): array for name, array in made.items()}


def by_hand(analysis: op.TracedModel) -> tuple[float, Gradients]:
    """Go through the units one by one; a grouped convolution's weight has its groups' inputs side by side."""
    graph, total = analysis.graph, 0.0
    arrays = weights_of(graph.proto)
    arrays = {n: arrays[n].astype(np.float64) for n in trainable(graph.proto)}
    derived = {n: np.zeros_like(a) for n, a in arrays.items()}

    def views(unit: int) -> list[tuple[np.ndarray, np.ndarray]]:
        found = []
        for piece in graph.unit(unit).slices:
            for position in map(int, piece.positions if piece.tensor in arrays else ()):
                pair, axis = (arrays[piece.tensor], derived[piece.tensor]), piece.axis
                if groups := graph.per_group.get((piece.tensor, axis)):
                    group, position = divmod(position, len(graph.slots[piece.tensor, axis]) // groups)
                    pair = (np.split(pair[0], groups)[group], np.split(pair[1], groups)[group])
                found.append(tuple(np.moveaxis(a, axis, 0)[position : position + 1] for a in pair))
        return found

    for group in graph.groups:
        norms = np.array([np.sqrt(sum((w**2).sum() for w, _ in views(int(u)))) for u in group.units])
        strength = 2 ** (4 * (norms.max() - norms) / (norms.max() - norms.min()))
        total += float((strength * norms**2).sum()) / 2
        for unit, factor in zip(group.units, strength, strict=True):
            for w, d in views(int(unit)):
                d += factor * w
    return total, derived


def grouped_convolution() -> ModelProto:
    net = Net(17)
    x = net.conv(net.input((2, 3, 8, 8), "x"), 8, 3)
    y = net.op("Relu", net.op("Conv", net.op("Relu", x), net.weight(12, 4, 3, 3), group=2))
    net.output(net.conv(y, 4, 1))
    return net.model()


@pytest.mark.parametrize("model", [MODEL, grouped_convolution()], ids=["residual", "grouped"])
def test_the_group_lasso(model: op.Source) -> None:
    analysis = op.analyze(model)
    (loss, found), (total, expected) = penalty(analysis), by_hand(analysis)
    assert loss == pytest.approx(total, rel=1e-5)
    for name, gradient in expected.items():
        np.testing.assert_allclose(found[name], gradient, atol=1e-4 * max(np.abs(gradient).max(), 1e-3), err_msg=name)
    some = max(expected.values(), key=lambda g: np.abs(g).max())
    assert np.abs(some).max() > 0.1


def trained(model: op.Source, data: Dataset, **changes: float) -> FineTuned:
    return finetune(model, data, settings=replace(SETTINGS, **changes), hold_out=0.2)  # type: ignore[arg-type]


def test_whole_channels_vanish_and_can_be_pruned(data: Dataset) -> None:
    accuracies = []
    for weight in (0.0, 0.03):
        result = trained(MODEL, data, lasso=weight, epochs=10)
        assert result.sparsified == bool(weight) and (result.kept == "after" or not weight)
        analysis = op.analyze(result.proto)
        small = op.prune(analysis, op.plan(analysis, op.PlanSettings(target=op.Target("macs", 0.5)))).proto
        accuracies.append(evaluate(small, data, metrics=["top1"])["top1"].model.value)
    without, with_ = accuracies
    assert with_ > 0.9 > without + 0.3


def test_slimming_makes_scales_small(data: Dataset) -> None:
    def scales(slimming: float) -> float:
        found = weights_of(trained(MODEL, data, slimming=slimming).proto)
        return sum(float(np.abs(a).sum()) for n, a in found.items() if n.endswith("bn.weight"))

    assert scales(0.1) < 0.9 * scales(0.0)


def test_where_there_is_nothing_to_make_sparse() -> None:
    folded = op.load(MODELS / "digits_cnn_dynamo.onnx").proto
    images = open_data({folded.graph.input[0].name: np.zeros((64, 1, 8, 8), np.float32)}, folded)
    with pytest.raises(TrainingError, match="OP904"):
        finetune(folded, images, teacher=folded, settings=TrainSettings(slimming=0.1), hold_out=0)
    net = Net(17)
    net.output(net.op("MatMul", net.input((8, 4), "x"), net.weight(4, 3)))
    vectors = open_data({"x": np.zeros((64, 4), np.float32)}, net.model())
    with pytest.raises(TrainingError, match="OP904"):
        finetune(net.model(), vectors, teacher=net.model(), settings=TrainSettings(lasso=0.1), hold_out=0)
