"""Weights that are zero in training: which, how that changes, and that nothing else of the training does."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

import onnxprune as op
from onnxprune.data import Dataset, open_data
from onnxprune.errors import PlanError, TrainingError
from onnxprune.settings.training import TrainSettings
from onnxprune.train import finetune
from onnxprune.train.masks import DENSE, MASK, Masks, densities, first_masks
from onnxprune.train.runner import HostRunner
from tests.cli.support import document

MODELS = Path(__file__).parents[2] / "models"
MODEL = MODELS / "digits_resnet.onnx"
QUICK = TrainSettings(epochs=2, batch=64, rate=0.005)
METHODS = ("rigl", "gmp")


@pytest.fixture(scope="module")
def data() -> Dataset:
    with np.load(MODELS / "digits_train.npz", allow_pickle=False) as found:
        return open_data({"image": found["images"][:256], "labels": found["labels"][:256]}, op.load(MODEL).proto)


def layers(model: ModelProto) -> dict[str, np.ndarray]:
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    return {name: a for name, a in arrays.items() if a.ndim > 1 and a.size > a.shape[0]}


def zeros(model: ModelProto) -> float:
    found = np.concatenate([a.ravel() for a in layers(model).values()])
    return float((found == 0).mean())


def test_budgets_are_those_worked_by_hand() -> None:
    # sums of axes over products: 10/24, 30/200; at 50 %, 112 = scale (10 + 30), so 28 of 24: the first is whole
    found = densities({"a": (4, 6), "b": (10, 20)}, 0.5)
    assert found["a"] == 1.0 and found["b"] == pytest.approx((112 - 24) / 200)
    found = densities({"a": (4, 6), "b": (10, 20)}, 0.9)  # 22.4 = scale 40
    assert found == {"a": pytest.approx(5.6 / 24), "b": pytest.approx(16.8 / 200)}
    shapes = {"conv": (64, 64, 3, 3), "point": (16, 8, 1, 1), "depth": (8, 1, 3, 3)}
    found = densities(shapes, 0.95)
    kept = sum(found[n] * np.prod(s) for n, s in shapes.items()) / sum(np.prod(s) for s in shapes.values())
    assert kept == pytest.approx(0.05) and found["depth"] == 1.0 and found["point"] > found["conv"]


class Held:
    """A state."""

    def __init__(self, state: dict[str, np.ndarray]) -> None:
        self.state: dict[str, Any] = state

    def put(self, arrays: Any) -> None:
        self.state |= arrays


def test_an_update_of_rigl_is_that_of_the_paper_in_torch() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    w, g = rng.normal(size=(12, 10)).astype(np.float32), rng.normal(size=120).astype(np.float32)
    settings = TrainSettings(sparse="rigl", sparsity=0.7, mask_interval=10)
    mask = first_masks({"w": w}, settings)["w"]
    assert mask.sum() == 36
    slot = rng.normal(size=120).astype(np.float32) * mask
    held = Held({"w": w * mask.reshape(12, 10), "w" + MASK: mask, "w" + DENSE: g, "w:velocity": slot, "v": w})
    masks = Masks({"w": (12, 10)}, held, settings)
    masks.after(9, 100)
    assert held.state["w" + MASK] is mask  # not yet
    masks.after(20, 100)

    t, end, alpha = 20, 75, 0.3
    drop = int(alpha / 2 * (1 + np.cos(t * np.pi / end)) * 36)
    theta, active, gradient = (torch.tensor(a) for a in ((w.ravel() * mask), mask.astype(bool), g))
    kept = torch.zeros(120, dtype=torch.bool)
    kept[torch.topk(torch.where(active, theta.abs(), -1.0), 36 - drop).indices] = True
    grown = torch.zeros(120, dtype=torch.bool)
    grown[torch.topk(torch.where(kept, -1.0, gradient.abs()), drop).indices] = True
    assert drop > 5 and int((grown & ~active).sum()) > 0
    np.testing.assert_array_equal(held.state["w" + MASK] != 0, (kept | grown).numpy())
    old = (kept | (grown & active)).numpy()
    np.testing.assert_array_equal(held.state["w"].ravel(), np.where(old, w.ravel() * mask, 0))
    np.testing.assert_array_equal(held.state["w:velocity"], np.where(old, slot, 0))
    np.testing.assert_array_equal(held.state["v"], w)
    before = held.state["w" + MASK].copy()
    masks.after(80, 100)  # after three quarters of the steps
    np.testing.assert_array_equal(held.state["w" + MASK], before)


def test_fewer_and_fewer_weights_follow_the_cubic_schedule() -> None:
    rng = np.random.default_rng(0)
    settings = TrainSettings(sparse="gmp", sparsity=0.8, mask_interval=15)
    held = Held({"w": rng.normal(size=(50, 40)), "w" + MASK: np.ones(2000, np.float32)})
    masks = Masks({"w": (50, 40)}, held, settings)
    seen = []
    for number in range(1, 101):
        masks.after(number, 100)
        seen.append(1 - float(held.state["w" + MASK].mean()))
    # at 15, 30, 45, 60, 75 of 75 steps: 0.8 (1 - (1 - t)^3), t = 0.2 ... 1
    assert [seen[n - 1] for n in (14, 15, 30, 45, 60, 75, 100)] == pytest.approx(
        [0, 0.8 * 0.488, 0.8 * 0.784, 0.8 * 0.936, 0.8 * 0.992, 0.8, 0.8], abs=1e-3
    )
    left = np.abs(held.state["w"][held.state["w"] != 0])
    assert len(left) == 400


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("accumulate", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_masks_hold_at_every_step(method: Any, accumulate: int, data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    shares, own, masks = [], HostRunner.step, list[dict[str, np.ndarray]]()

    def step(self: HostRunner, *args: Any) -> dict[str, float]:
        found = own(self, *args)
        state = self.state
        names = [n.removesuffix(MASK) for n in state if n.endswith(MASK)]
        assert len(names) == 14
        for name in names:
            mask = state[name + MASK]
            for tensor in [n for n in state if n == name or n.startswith(f"{name}:")]:
                if not tensor.endswith((DENSE, ":gradient")):
                    assert not state[tensor].ravel()[mask == 0].any(), tensor
        if method == "rigl":  # the gradient of what is zero is there
            assert sum(state[n + DENSE][state[n + MASK] == 0].any() for n in names) > 5
        shares.append(1 - np.concatenate([state[n + MASK] for n in names]).mean())
        masks.append({n: state[n + MASK].copy() for n in names})
        return found

    monkeypatch.setattr(HostRunner, "step", step)
    settings = replace(QUICK, mask_interval=2, sparse=method, sparsity=0.8, accumulate=accumulate, batch=32)
    result = finetune(MODEL, data, settings=settings)
    assert result.kept == "after" and result.sparsified
    assert zeros(result.proto) == pytest.approx(0.8, abs=0.01)
    if method == "gmp":
        assert shares[0] == 0 and sorted(shares) == shares and shares[-1] == pytest.approx(0.8, abs=0.01)
    else:
        assert shares == pytest.approx([0.8] * len(shares), abs=0.01)
        moved = [any((a[n] != b[n]).any() for n in a) for a, b in pairwise(masks)]
        assert any(moved) and not any(moved[int(0.75 * len(moved)) + 1 :])


@pytest.mark.slow
def test_a_teacher_needs_no_labels(data: Dataset) -> None:
    unlabeled = open_data(
        {"image": np.concatenate([b.inputs["image"] for b in data.batches(64)])}, op.load(MODEL).proto
    )
    settings = replace(QUICK, mask_interval=2, sparse="rigl", sparsity=0.7, epochs=6)
    result = finetune(MODEL, unlabeled, teacher=MODEL, validation=data, settings=settings)
    assert result.after is not None and result.after["top1"].model.value > 0.9
    assert zeros(result.proto) == pytest.approx(0.7, abs=0.01)


@pytest.mark.parametrize("method", ["rigl", pytest.param("gmp", marks=pytest.mark.slow)])
def test_a_run_that_was_cut_gives_the_same_bytes(method: Any, data: Dataset, tmp_path: Path) -> None:
    settings = replace(QUICK, mask_interval=2, sparse=method, sparsity=0.8)
    whole = finetune(MODEL, data, settings=settings, threads=1)

    class Cut(Exception):
        pass

    def cut(_: str, done: int, total: int | None) -> None:
        if done == 5:
            raise Cut

    path = tmp_path / "kept.npz"
    with pytest.raises(Cut):
        finetune(MODEL, data, settings=settings, threads=1, checkpoint=path, every=1, progress=cut)
    with np.load(path, allow_pickle=False) as kept:
        assert any(name.endswith(MASK) for name in kept)
    again = finetune(MODEL, data, settings=settings, threads=1, checkpoint=path, every=1, resume=True)
    assert again.proto.SerializeToString() == whole.proto.SerializeToString()
    other = finetune(MODEL, data, settings=replace(settings, seed=1), threads=1)
    assert other.proto.SerializeToString() != whole.proto.SerializeToString()  # the control


def sparse_model(share: float) -> ModelProto:
    model = op.load(MODEL).proto
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.ndim > 1:
            limit = np.quantile(np.abs(array), share)
            tensor.CopyFrom(numpy_helper.from_array(np.where(np.abs(array) <= limit, 0, array), tensor.name))
    return model


def test_zeros_of_a_sparse_model_are_kept(data: Dataset) -> None:
    model = sparse_model(0.6)
    before = {name: a == 0 for name, a in layers(model).items()}
    result = finetune(model, data, settings=QUICK)
    after = layers(result.proto)
    assert result.kept == "after" and all((after[n][gone] == 0).all() for n, gone in before.items())
    free = layers(finetune(model, data, settings=replace(QUICK, keep_zeros=False)).proto)
    assert any((free[n][gone] != 0).any() for n, gone in before.items())  # the control
    # a few zeros are chance, and a weight that is nothing but zeros is to be trained
    assert not first_masks({"a": np.where(np.arange(100) < 9, 0, 1).reshape(10, 10)}, QUICK)
    assert not first_masks({"a": np.zeros((10, 10))}, QUICK)
    assert first_masks({"a": np.where(np.arange(100) < 10, 0, 1).reshape(10, 10)}, QUICK)


def test_settings(data: Dataset) -> None:
    with pytest.raises(PlanError, match="OP302"):
        TrainSettings(sparsity=0.5)
    with pytest.raises(PlanError, match="OP302"):
        TrainSettings(sparse="rigl", lasso=1.0)
    with pytest.raises(PlanError, match="OP303"):
        TrainSettings(sparse="rigl", sparsity=1.0)
    with pytest.raises(TrainingError, match="OP908"):
        finetune(MODEL, data, settings=TrainSettings(sparse="rigl"), backend="os:getcwd")


def test_command(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    args = ("finetune", MODEL, "-o", out, "--data", MODELS / "digits_train.npz", "--limit", 300, "--epochs", 1)
    found = document(*args, "--sparse", "gmp", "--sparsity", "60%")
    assert found["kept"] == "after"
    assert zeros(op.load(out).proto) == pytest.approx(0.6, abs=0.01)
