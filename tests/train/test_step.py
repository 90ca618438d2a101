"""Training steps: losses and optimizers against closed forms, and their runners."""

from __future__ import annotations

from math import isclose
from typing import Any

import numpy as np
import pytest

from onnxprune.autodiff.backward import model_of
from onnxprune.autodiff.prepare import as_classes
from onnxprune.errors import TrainingError
from onnxprune.model.session import run, session
from onnxprune.model.tape import INT64, Tape, Tensor
from onnxprune.normalize import normalize
from onnxprune.settings.training import Augmentation, LossSettings, TrainSettings
from onnxprune.train.augment import augment
from onnxprune.train.losses import LOSSES
from onnxprune.train.objective import objective
from onnxprune.train.optimizers import SCHEDULES, rate
from onnxprune.train.runner import DeviceRunner, HostRunner
from onnxprune.train.step import TrainingStep, build_step
from tests.toolbox import Net

RNG = np.random.default_rng(0)
CPU = ["CPUExecutionProvider"]


def value(name: str, output: np.ndarray, target: np.ndarray, **settings: float) -> float:
    """Run a loss."""
    tape = Tape(18)
    x = tape.input("x", output.shape)
    y = tape.input("y", target.shape, INT64 if target.dtype.kind == "i" else 1)
    loss = LOSSES[name](x, y, LossSettings(**settings))
    assert loss.shape == ()
    feeds = {"x": output.astype(np.float32), "y": target if target.dtype.kind == "i" else target.astype(np.float32)}
    return float(run(session(model_of(tape, {"loss": loss})), feeds)["loss"])


def log_softmax(x: np.ndarray) -> np.ndarray:
    return np.asarray(x - np.log(np.exp(x).sum(axis=1, keepdims=True)))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("shape", [(6, 5), (3, 5, 2, 2)])
def test_cross_entropy(shape: tuple[int, ...], smoothing: float) -> None:
    logits = RNG.standard_normal(shape)
    labels = RNG.integers(-1, 5, (shape[0], *shape[2:]))  # -1 is ignored
    log = np.moveaxis(log_softmax(logits), 1, -1).reshape(-1, 5)
    kept = labels.ravel() >= 0
    hard = log[np.arange(len(log)), labels.ravel()]
    expected = -((1 - smoothing) * hard + smoothing * log.mean(axis=1))[kept].mean()
    assert isclose(value("cross-entropy", logits, labels, smoothing=smoothing), expected, rel_tol=1e-5)


def test_other_losses() -> None:
    a, b = RNG.standard_normal((4, 5)), RNG.standard_normal((4, 5))
    p = 1 / (1 + np.exp(-a))
    target = RNG.random((4, 5))
    assert isclose(value("bce", a, target), -(target * np.log(p) + (1 - target) * np.log(1 - p)).mean(), rel_tol=1e-5)
    assert isclose(value("bce", a * 1000, np.zeros((4, 5))), np.maximum(a * 1000, 0).mean(), rel_tol=1e-4)
    assert isclose(value("mse", a, b), ((a - b) ** 2).mean(), rel_tol=1e-5)
    mine, its = log_softmax(a / 3), log_softmax(b / 3)
    expected = 9 * (np.exp(its) * (its - mine)).sum(axis=1).mean()
    assert isclose(value("kl", a, b, temperature=3.0), expected, rel_tol=1e-5)
    assert abs(value("kl", a, a)) < 1e-6


def test_the_axis_of_classes() -> None:
    def shape(scores: tuple[int, ...], labels: tuple[int, ...] | None) -> tuple[int, ...]:
        return as_classes(Tape(18).input("x", scores), labels).shape

    assert shape((4, 10), (4,)) == shape((4, 10, 1, 1), (4,)) == shape((4, 1, 1, 10), (4,)) == (4, 10)
    assert shape((4, 8, 6, 5), (4, 8, 6)) == shape((4, 5, 8, 6), (4, 8, 6)) == (4, 5, 8, 6)
    with pytest.raises(TrainingError, match="OP904"):
        shape((4, 5, 8, 6), (4, 3))


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name: str) -> None:
    rates = [rate(name, step, 100, 10) for step in range(100)]
    assert all(0 <= r <= 1 for r in rates) and max(rates) > 0.99
    assert rates[:10] == [(i + 1) / 10 for i in range(10)]
    if name != "constant":
        assert rates[-1] < 0.02


def small(**changes: Any) -> tuple[TrainingStep, dict[str, np.ndarray]]:
    """Make a step of a linear model."""
    net = Net(17)
    x = net.input((8, 4), "x")
    net.output(net.op("Gemm", x, net.weight(4, 3, name="w"), net.weight(3, name="b")))
    model = normalize(net.model())
    rng = np.random.default_rng(1)
    batch = {"x": rng.standard_normal((8, 4)).astype(np.float32), "labels": rng.integers(0, 3, 8)}
    settings = TrainSettings(**changes)
    return build_step(model, objective(model, settings, labeled=True, teacher=False), settings, batch), batch


def by_hand(state: dict[str, np.ndarray], batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the gradients of cross-entropy of a linear model."""
    logits = batch["x"] @ state["w"] + state["b"]
    wrong = (np.exp(log_softmax(logits)) - np.eye(3)[batch["labels"]]) / len(logits)
    return {"w": batch["x"].T @ wrong, "b": wrong.sum(axis=0)}


def test_sgd_with_decay_and_clipping() -> None:
    step, batch = small(optimizer="sgd", momentum=0.8, decay=0.1, clip=0.05)
    runner = HostRunner(step, providers=CPU, threads=1)
    state = {n: a.astype(np.float64) for n, a in runner.weights.items()}
    velocity = {n: np.zeros_like(a) for n, a in state.items()}
    for _ in range(3):
        found = by_hand(state, batch)
        norm = np.sqrt(sum((g**2).sum() for g in found.values()))
        assert norm > 0.05
        for n, g in found.items():
            g = g * 0.05 / norm + (0.1 * state[n] if n == "w" else 0)  # biases don't decay
            velocity[n] = 0.8 * velocity[n] + g
            state[n] -= 0.1 * (g + 0.8 * velocity[n])
        runner.step([batch], 0.1)
        for n, a in runner.weights.items():
            np.testing.assert_allclose(a, state[n], rtol=1e-4, atol=1e-6)


def test_adamw() -> None:
    step, batch = small(optimizer="adamw", decay=0.1, clip=0.0)
    runner = HostRunner(step, providers=CPU, threads=1)
    state = {n: a.astype(np.float64) for n, a in runner.weights.items()}
    mean, square = ({n: np.zeros_like(a) for n, a in state.items()} for _ in range(2))
    for t in range(1, 4):
        for n, g in by_hand(state, batch).items():
            mean[n], square[n] = 0.9 * mean[n] + 0.1 * g, 0.999 * square[n] + 0.001 * g**2
            state[n] *= 1 - 0.01 * (0.1 if n == "w" else 0)
            state[n] -= 0.01 * (mean[n] / (1 - 0.9**t)) / (np.sqrt(square[n] / (1 - 0.999**t)) + 1e-8)
        runner.step([batch], 0.01)
        for n, a in runner.weights.items():
            np.testing.assert_allclose(a, state[n], rtol=1e-4, atol=1e-6)


def test_lamb() -> None:
    step, batch = small(optimizer="lamb", decay=0.1, clip=0.0)
    runner = HostRunner(step, providers=CPU, threads=1)
    state = {n: a.astype(np.float64) for n, a in runner.weights.items()}
    mean, square = ({n: np.zeros_like(a) for n, a in state.items()} for _ in range(2))
    for t in range(1, 4):
        for n, g in by_hand(state, batch).items():
            mean[n], square[n] = 0.9 * mean[n] + 0.1 * g, 0.999 * square[n] + 0.001 * g**2
            direction = (mean[n] / (1 - 0.9**t)) / (np.sqrt(square[n] / (1 - 0.999**t)) + 1e-8)
            direction = direction + 0.1 * state[n] if n == "w" else direction
            moved = 0.01 * np.linalg.norm(state[n]) * direction / np.linalg.norm(direction)
            assert np.linalg.norm(moved) == pytest.approx(0.01 * np.linalg.norm(state[n]))  # that share of the weight
            state[n] = state[n] - moved
        runner.step([batch], 0.01)
        for n, a in runner.weights.items():
            np.testing.assert_allclose(a, state[n], rtol=1e-4, atol=1e-6)


def test_lamb_lets_zeros_leave() -> None:
    step, batch = small(optimizer="lamb", clip=0.0)
    step.state["b"][:] = 0
    runner = HostRunner(step, providers=CPU, threads=1)
    runner.step([batch], 0.1)
    assert np.sqrt((runner.weights["b"] ** 2).mean()) == pytest.approx(0.1 * 1e-3, rel=1e-4)


def test_state_on_a_device_is_the_same() -> None:
    step, batch = small(accumulate=2)
    host = HostRunner(step, providers=CPU, threads=1)
    device = DeviceRunner(step, providers=CPU, threads=1, device=("cpu", 0))
    for _ in range(3):
        assert host.step([batch, batch], 0.1) == device.step([batch, batch], 0.1)
    first, second = host.state, device.state
    assert all(np.array_equal(first[n], second[n]) for n in first)
    assert not np.array_equal(first["w"], step.state["w"])
    device.load_state(step.state, 0)
    assert np.array_equal(device.weights["w"], step.state["w"])


def test_augmentation() -> None:
    image = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5) + 1
    rng = np.random.default_rng(0)
    for _ in range(10):
        (flipped,) = augment(Augmentation(flip=True), {"x": image}, rng).values()
        assert all((f == i).all() or (f == i[:, :, ::-1]).all() for f, i in zip(flipped, image, strict=True))
        (moved,) = augment(Augmentation(crop=2), {"x": image}, rng).values()
        assert all(set(m.ravel()) - {0.0} <= set(i.ravel()) for m, i in zip(moved, image, strict=True))
        (cut,) = augment(Augmentation(cutout=2), {"x": image}, rng).values()
        assert ((cut == image) | (cut == 0)).all() and (cut == 0).any()
        last = np.ascontiguousarray(np.moveaxis(image, 1, 3))
        assert augment(Augmentation(flip=True, crop=1, cutout=1), {"x": last}, rng)["x"].shape == last.shape
    vector = np.ones((2, 7), np.float32)
    assert augment(Augmentation(flip=True), {"x": vector}, rng)["x"] is vector


def test_what_is_emitted_twice_is_one_node() -> None:
    tape = Tape(18)
    x = tape.input("x", (2, 3))
    first: list[Tensor] = [(x * 2.0 + 1.0).op("Exp") for _ in range(3)]
    assert len({t.name for t in first}) == 1 and len(tape.nodes) == 3
