"""Whole networks against torch's autograd, on the same weights."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.autodiff.backward import gradients, model_of
from onnxprune.autodiff.forward import feeds_of, forward
from onnxprune.model.session import run, session
from onnxprune.normalize import normalize
from onnxprune.settings.training import LossSettings, TrainSettings
from onnxprune.train.objective import objective
from onnxprune.train.runner import HostRunner
from onnxprune.train.step import build_step
from onnxprune.train.trainable import trainable

torch = pytest.importorskip("torch")
zoo = pytest.importorskip("tests.zoo.catalog")
pytestmark = pytest.mark.dev

USUAL = ("mobilenet_v3", "resnet", "unet", "vit_split", "lstm_tagger")
OTHERS = sorted(set(zoo.NETWORKS) - set(USUAL))
Arrays = Mapping[str, NDArray[Any]]


def _resnet18() -> Any:
    from benchmarks.small_networks import resnet18

    return resnet18()


_SIZES = {"batch": 2, "height": 32, "width": 32}
RESNET18 = zoo.Network(_resnet18, {"image": zoo.Input(("batch", 3, "height", "width"))}, _SIZES, _SIZES)


def exported(name: str) -> tuple[Any, ModelProto, dict[str, Any]]:
    """Export a network as it is, so that initializers are called as its parameters; return it in double precision."""
    from tests.zoo.export import randomize

    network = RESNET18 if name == "resnet18" else zoo.NETWORKS[name]
    torch.manual_seed(0)
    module = randomize(network.build())
    inputs = {n: torch.from_numpy(a) for n, a in network.draw(network.sizes).items()}
    with TemporaryDirectory() as folder, warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            path,
            dynamo=False,
            opset_version=17,
            input_names=list(inputs),
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
        )
        model = normalize(onnx.load(path))
    return module.double(), model, {n: x.double() if x.is_floating_point() else x for n, x in inputs.items()}


def outputs_of(module: Any, inputs: Mapping[str, Any]) -> list[Any]:
    found = module(*inputs.values())
    return list(found) if isinstance(found, (tuple, list)) else [found]


def single(inputs: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    return {n: x.float().numpy() if x.is_floating_point() else x.numpy() for n, x in inputs.items()}


@pytest.mark.parametrize("name", [*USUAL, *(pytest.param(n, marks=pytest.mark.slow) for n in OTHERS)])
def test_gradients(name: str) -> None:
    module, model, inputs = exported(name)
    rng = np.random.default_rng(0)
    outputs = outputs_of(module, inputs)
    weights = [rng.standard_normal(tuple(y.shape)) for y in outputs]
    sum((y * torch.from_numpy(w)).sum() for y, w in zip(outputs, weights, strict=True)).backward()
    expected = {n: p.grad.numpy() for n, p in module.named_parameters() if p.grad is not None}

    # Where several nodes read a vector, each has a copy of its own after normalization.
    copies = {n: [t for t in trainable(model, also=["*"]) if t.partition("::")[0] == n] for n in expected}
    trained = [t for n in expected for t in copies[n]]
    step = forward(model, {n: tuple(x.shape) for n, x in inputs.items()}, trained, norms="frozen")
    tape, made = step.tape, list(step.outputs.values())
    assert [y.shape for y in made] == [tuple(y.shape) for y in outputs]
    terms = [(y * tape.constant(w.astype(np.float32))).sum(keep=False) for y, w in zip(made, weights, strict=True)]
    total = terms[0] if len(terms) == 1 else tape.emit("Sum", *terms)
    derived = gradients(tape, total, list(step.weights.values()))
    graph = model_of(tape, {f"d {n}": g for n, g in zip(step.weights, derived, strict=True)})
    opened = session(graph, threads=1)
    feeds = {**feeds_of(step, model), **single(inputs)}
    results = run(opened, {i.name: feeds[i.name] for i in opened.get_inputs()})

    found = {n: sum(results[f"d {t}"] for t in copies[n]) for n in expected if copies[n]}
    assert len(found) > 0.75 * len(expected)
    largest = max(np.abs(g).max() for g in expected.values())
    scales = {n: max(np.abs(expected[n]).max(), 1e-3 * largest) for n in found}
    for n, gradient in found.items():
        np.testing.assert_allclose(gradient / scales[n], expected[n] / scales[n], atol=2e-3, err_msg=n)
    caught = [np.abs(g * 1.01 - expected[n]).max() > 2e-3 * scales[n] for n, g in found.items()]
    assert np.mean(caught) > 0.7, "the tolerance is too loose to catch a gradient that is off by a hundredth"


def torch_steps(module: Any, settings: TrainSettings, x: Any, labels: Any, steps: int) -> Iterator[float]:
    """Train with torch as the settings say."""
    exempt = [p for p in module.parameters() if p.numel() == max(p.shape, default=1)]
    others = [p for p in module.parameters() if p.numel() != max(p.shape, default=1)]
    groups = [{"params": others, "weight_decay": settings.decay}, {"params": exempt, "weight_decay": 0.0}]
    if settings.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=settings.peak)
    else:
        optimizer = torch.optim.SGD(groups, lr=settings.peak, momentum=settings.momentum, nesterov=True)
    module.train(settings.norms == "batch")
    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(module(x), labels, label_smoothing=settings.loss.smoothing)
        loss.backward()
        if settings.clip:
            torch.nn.utils.clip_grad_norm_(module.parameters(), settings.clip)
        optimizer.step()
        yield loss.item()


@pytest.mark.parametrize("norms", ["batch", "frozen"])
@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        *(("resnet", o) for o in ("sgd", "adamw")),
        *((name, "sgd") for name in ("mobilenet_v3", "unet", "vit_split")),
        pytest.param("resnet18", "sgd", marks=pytest.mark.slow),
    ],
)
def test_steps(name: str, optimizer: str, norms: str) -> None:
    module, model, inputs = exported(name)
    every = {name for name, _ in module.named_parameters()} & {t.name for t in model.graph.initializer}
    settings = TrainSettings(
        optimizer=optimizer,
        norms=norms,
        rate=0.01,
        clip=1.0,
        decay=0.01,
        loss=LossSettings(smoothing=0.1),
        also=tuple(every),  # a table of positions wouldn't be trained otherwise
    )
    rng = np.random.default_rng(0)
    ((images_name, example),) = inputs.items()
    images = rng.standard_normal(tuple(example.shape))
    (classes, *places) = outputs_of(module.eval(), inputs)[0].shape[1:]
    labels = rng.integers(0, classes, (len(images), *places))
    goal = objective(model, settings, labeled=True, teacher=False)
    batch = {images_name: images.astype(np.float32), "labels": labels}
    runner = HostRunner(build_step(model, goal, settings, batch), providers=["CPUExecutionProvider"], threads=1)
    before = dict(runner.state)
    expected = list(torch_steps(module, settings, torch.from_numpy(images), torch.from_numpy(labels), 6))
    found = [runner.step([batch], settings.peak)["loss"] for _ in range(6)]
    # Adam divides by the gradient's size: where that is nothing but rounding, it moves all the same.
    loose = optimizer == "adamw"
    np.testing.assert_allclose(found, expected, rtol=2e-3 if loose else 2e-4)
    assert expected[-1] < expected[0]
    if optimizer == "adamw" and norms == "batch":
        return  # which is so for every bias before a normalization, and shifts whatever follows
    state, close = module.state_dict(), []
    for name in runner.weights:
        if name in state:
            moved = np.linalg.norm(state[name].numpy() - before[name])
            error = np.linalg.norm(runner.state[name] - state[name].numpy())
            close.append(error <= 0.02 * moved + 1e-6)
    assert np.mean(close) >= (0.7 if loose else 1)
