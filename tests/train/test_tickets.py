"""Lottery tickets: which weights become zero, what the others begin with, and a search on real data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper, parser

from onnxprune.errors import PlanError, TrainingError
from onnxprune.model.session import run, session
from onnxprune.normalize import normalize
from onnxprune.settings.training import TrainSettings
from onnxprune.train import finetune
from onnxprune.train.tickets import search
from tests.cli.support import document, invoke, refused

MODELS = Path(__file__).parents[2] / "models"
SETTINGS = TrainSettings(sparse="ticket", sparsity=0.75, steps=2)
RNG = np.random.default_rng(0)


def arrays(model: ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def network(scale: float = 1.0) -> ModelProto:
    """Return a network of two products with 12 x 20 and 20 x 6 weights, and a bias."""
    text = """<ir_version: 8, opset_import: ["" : 18]>
    g (float[n, 12] x) => (float[n, 6] y) { a = MatMul (x, first)  b = Add (a, bias)  c = Relu (b)
    y = MatMul (c, second) }"""
    model = parser.parse_model(text)
    for name, shape in (("first", (12, 20)), ("bias", (20,)), ("second", (20, 6))):
        values = scale * RNG.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    return normalize(model)


@dataclass(frozen=True)
class Moved:
    proto: ModelProto


class Trainer:
    """Adds the same numbers to all weights that aren't zero."""

    def __init__(self) -> None:
        self.starts: list[tuple[str, dict[str, np.ndarray]]] = []

    def __call__(self, model: ModelProto, name: str) -> Moved:
        self.starts.append((name, arrays(model)))
        found = ModelProto()
        found.CopyFrom(model)
        for tensor in found.graph.initializer:
            old = numpy_helper.to_array(tensor)
            added = np.random.default_rng(old.size).normal(size=old.shape)
            tensor.CopyFrom(numpy_helper.from_array(np.where(old == 0, old, old + added).astype("f"), tensor.name))
        return Moved(found)


@pytest.mark.parametrize("given", [False, True])
def test_the_smallest_trained_weights_are_zero_and_the_others_as_they_were(given: bool) -> None:
    model, early, trainer = network(), network(0.1) if given else None, Trainer()
    found = search(model, early, SETTINGS, trainer)
    first, begin = arrays(model), arrays(early or model)
    assert [name for name, _ in trainer.starts] == ["step0", "step1", "step2", "control"]
    assert all(np.array_equal(trainer.starts[0][1][name], first[name]) for name in first)
    # Of 360 weights 180 and 90 stay. Axes sum to 32 and 26: 180 x 32/58 = 99.3 and 80.7; 49.7 and 40.3.
    for step, counts in ((1, {"first": 99, "second": 81}), (2, {"first": 50, "second": 40})):
        start, trained = trainer.starts[step][1], arrays(found.rounds[step - 1][1].proto)
        assert np.array_equal(start["bias"], begin["bias"])
        for name, count in counts.items():
            stays = start[name] != 0
            assert stays.sum() == count and np.array_equal(start[name][stays], begin[name][stays])
            assert np.abs(trained[name][stays]).min() > np.abs(trained[name][~stays]).max()
    assert [share for share, _ in found.rounds] == [0, pytest.approx(0.5), pytest.approx(0.75)]
    ticket, control = trainer.starts[2][1], trainer.starts[3][1]
    for name in ("first", "second"):
        assert np.array_equal(ticket[name] != 0, control[name] != 0)
        assert not np.array_equal(ticket[name], control[name])
        assert np.array_equal(np.sort(ticket[name], axis=None), np.sort(control[name], axis=None))
    assert np.array_equal(control["bias"], begin["bias"])


def test_early_weights_are_of_the_same_network() -> None:
    other = network()
    tensor = next(t for t in other.graph.initializer if t.name == "first")
    tensor.CopyFrom(numpy_helper.from_array(np.ones((12, 21), np.float32), "first"))
    with pytest.raises(TrainingError, match=r'no weight "first" of shape \[12, 20\]') as error:
        search(network(), other, SETTINGS, Trainer())
    assert error.value.code == "OP905"
    with pytest.raises(TrainingError, match="is a matrix"):
        search(network(), None, TrainSettings(sparse="ticket", freeze=("first", "second")), Trainer())


@pytest.mark.parametrize(
    "settings",
    [{"steps": 3}, {"sparse": "rigl", "steps": 3}, *({"sparse": "ticket", **more} for more in ({"mask_interval": 3},))],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any]) -> None:
    with pytest.raises(PlanError) as error:
        TrainSettings(**settings)
    assert error.value.code == "OP302"
    with pytest.raises(PlanError, match="lottery"):
        finetune(network(), [], rewind=network())  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits network before any training, with weights drawn as He et al. do."""
    model = onnx.load(MODELS / "digits_resnet.onnx")
    stored, rng = {t.name: t for t in model.graph.initializer}, np.random.default_rng(0)
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            shape = tuple(stored[node.input[1]].dims)
            drawn = rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))
            stored[node.input[1]].CopyFrom(numpy_helper.from_array(drawn.astype(np.float32), node.input[1]))
            for bias in node.input[2:]:
                zero = np.zeros(tuple(stored[bias].dims), np.float32)
                stored[bias].CopyFrom(numpy_helper.from_array(zero, bias))
    path = tmp_path_factory.mktemp("start") / "start.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.slow
def test_a_ticket_for_digits(start: Path, tmp_path: Path) -> None:
    """At 95 % zeros it learns as well as the dense network, and better than the same zeros with shuffled values."""
    out, test = tmp_path / "ticket.onnx", MODELS / "digits_test.npz"
    told = document(
        *("finetune", start, "-o", out, "--data", MODELS / "digits_train.npz", "--validation", test),
        *("--sparse", "ticket", "--sparsity", "95%", "--steps", 3, "--epochs", 6, "--rate", 0.01, "--threads", 1),
    )
    ticket, model = told["ticket"], onnx.load(out)
    assert [round(each["zeros"], 2) for each in ticket["rounds"]] == [0, 0.63, 0.86, 0.95] and not ticket["rewound"]
    with np.load(test) as found:
        images, labels = found["images"], found["labels"]
    right = np.mean(run(session(model), {"image": images})["logits"].argmax(axis=1) == labels)
    assert right == pytest.approx(_top1(ticket["rounds"][-1]["after"])["model"]["value"]) and right > 0.9
    weights = np.concatenate([a.ravel() for a in arrays(model).values() if a.ndim > 1])
    assert np.mean(weights == 0) == pytest.approx(0.95, abs=0.005)
    change = _top1(ticket["against_control"])["difference"]
    assert change["value"] == pytest.approx(right - _top1(ticket["control"]["after"])["model"]["value"])
    assert change["low"] <= change["value"] <= change["high"] and change["value"] > 0
    assert _top1(ticket["against_dense"])["difference"]["value"] > -0.03


def _top1(evaluation: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = evaluation["scores"]["top1"]
    return found


@pytest.mark.slow
def test_a_stopped_search_goes_on_and_ends_alike(start: Path, tmp_path: Path) -> None:
    args: tuple[Any, ...] = ("--data", MODELS / "digits_test.npz", "--sparse", "ticket", "--steps", 1, "--epochs", 1)
    args += ("--threads", 1, "--rewind", start)
    shown = invoke("finetune", start, "-o", tmp_path / "once.onnx", *args).stdout
    assert "no lottery ticket" not in shown and "minus that of shuffled values" in shown
    kept = tmp_path / "run.npz"
    invoke("finetune", start, "-o", tmp_path / "first.onnx", *args, "--checkpoint", kept)
    assert sorted(p.name for p in tmp_path.glob("run*")) == ["run.control.npz", "run.step0.npz", "run.step1.npz"]
    (tmp_path / "run.control.npz").unlink()
    invoke("finetune", start, "-o", tmp_path / "again.onnx", *args, "--checkpoint", kept, "--resume")
    once = (tmp_path / "once.onnx").read_bytes()
    assert (tmp_path / "first.onnx").read_bytes() == once == (tmp_path / "again.onnx").read_bytes()
    refused("OP302", "finetune", start, "-o", tmp_path / "x.onnx", "--data", MODELS / "digits_test.npz", "--steps", 2)
