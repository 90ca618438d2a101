"""Repair with gradients: which tensors are followed, a known optimum, and that it never makes a model worse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper, numpy_helper

import onnxprune as op
from onnxprune.errors import PlanError
from onnxprune.planning.signature import noted_changes
from onnxprune.train import mimicry
from onnxprune.workflow import training
from onnxprune.workflow.outcome import outcome
from onnxprune.workflow.prune_model import PruneResult, prune_model
from tests.cli.support import document, invoke
from tests.toolbox import Net

MODELS = Path(__file__).parents[2] / "models"
DIGITS = MODELS / "digits_resnet.onnx"
BUDGET: dict[str, Any] = {"target": op.Target("macs", 0.15), "allocation": "uniform"}


X = np.random.default_rng(0).standard_normal((40, 3, 32, 32)).astype(np.float32)


def images(count: int, start: int = 0) -> dict[str, np.ndarray]:
    with np.load(MODELS / "digits_train.npz", allow_pickle=False) as data:
        return {"image": data["images"][start : start + count], "labels": data["labels"][start : start + count]}


def weights_of(model: ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def same(one: ModelProto, other: ModelProto) -> bool:
    a, b = weights_of(one), weights_of(other)
    return a.keys() == b.keys() and all(np.array_equal(a[n], b[n]) for n in a)


def residual(blocks: int = 2, skip: bool = False, size: int = 8) -> tuple[ModelProto, list[str]]:
    """Return a network of residual blocks and what follows each; with a tensor that passes all by, if wanted."""
    net, ends = Net(), list[str]()
    x = net.op("Relu", net.conv(net.input((1, 3, size, size), name="x"), 8))
    first = x
    for _ in range(blocks):
        inner = net.op("Relu", net.conv(x, 8))
        x = net.op("Relu", net.op("Add", net.conv(inner, 8), x))
        ends.append(x)
    x = net.op("Add", x, first) if skip else x
    pooled = net.op("Flatten", net.op("GlobalAveragePool", x))
    net.output(net.linear(pooled, 5))
    return net.model(), [first, *ends, pooled]


def test_blocks_are_cut_where_one_tensor_carries_everything() -> None:
    model, (first, *ends, pooled) = residual()
    assert mimicry.cut_points(op.analyze(model).graph.proto) == [first, *ends[:-1], pooled]


def test_sums_of_blocks_count_where_a_skip_passes_them_by() -> None:
    model, (first, *_, pooled) = residual(skip=True)
    proto = op.analyze(model).graph.proto
    assert mimicry.cut_points(proto) == [first, pooled]
    sums = {node.output[0] for node in proto.graph.node if node.op_type == "Add"}
    found = mimicry.cut_points(proto, sums)
    assert found[0] == first and found[-1] == pooled and len(found) == 3 and found[1] in sums


def test_shapes_and_masks_carry_nothing() -> None:
    """A mask that every layer reads, and the batch size, which the last Reshape reads, don't depend on weights."""
    net = Net()
    x, mask = net.input((2, 4), name="x"), net.input((2, 1), name="mask")
    size = net.op("Slice", net.op("Shape", x), net.const([0]), net.const([1]))
    h = net.op("Mul", net.op("MatMul", x, net.weight(4, 6)), mask)
    g = net.op("Mul", net.op("MatMul", h, net.weight(6, 6)), mask)
    scaled = net.op("Mul", g, net.op("Cast", size, to=1))
    net.output(net.op("MatMul", scaled, net.weight(6, 3)))
    found = mimicry.cut_points(net.model())
    assert found == [h, scaled]


def test_a_resized_network_follows_the_resized_original() -> None:
    """The original at the same resolution is what it follows, and maps of the whole one would have other sizes."""
    model, (*_, pooled) = residual(size=32)
    small = prune_model(
        model, data={"x": X}, resolution=16, target=op.Target("macs", 0.2), allocation="uniform", repair_epochs=2
    )
    assert small.tuned is not None and small.analysis.moves.resolution
    assert {"nmse"} == {loss for losses in small.tuned.follows.values() for loss in losses}
    assert f"{pooled}" in small.tuned.follows and len(small.tuned.follows) > 3
    assert small.judged == "held out" and small.data is not None and len(small.data) == 8


def twins() -> ModelProto:
    """Return y = relu(x A) B, whose hidden units 0 and 2 are the same up to a factor of 2."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((4, 3)).astype(np.float32), np.float32([[0.5, -0.4], [3, 3], [0.3, 0.6]])
    a[:, 2] = 2 * a[:, 0]
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "b"], ["y"], name="second"),
    ]
    values = [helper.make_tensor_value_info(n, 1, ["N", k]) for n, k in (("x", 4), ("y", 2))]
    stored = [numpy_helper.from_array(w, n) for n, w in (("a", a), ("b", b))]
    graph = helper.make_graph(nodes, "twins", values[:1], values[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_known_optimum_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one of the twins, the other takes over its weights: then nothing is lost."""
    monkeypatch.setattr(mimicry, "_RATE", 0.03)
    model = twins()
    plan = op.plan(model, ratio=0.34)
    (gone,) = plan.removed["b"][0]
    assert gone in (0, 2)
    x = np.random.default_rng(1).standard_normal((256, 4)).astype(np.float32)
    found = prune_model(model, plan=plan, data={"x": x}, recover="none", repair_epochs=40)
    tuned = found.tuned
    assert tuned is not None and tuned.before is not None and tuned.after is not None and tuned.kept == "after"
    before, after = tuned.before["mse"].model.value, tuned.after["mse"].model.value
    assert before > 0.01 and after < 1e-3 * before
    b = weights_of(model)["b"]
    wanted = b[0] + 2 * b[2] if gone == 2 else b[2] + b[0] / 2
    left = weights_of(found.model.proto)
    scale = np.linalg.norm(left["a"][:, (1 if gone == 0 else 0)]) / np.linalg.norm(weights_of(model)["a"][:, 2 - gone])
    assert left["b"][1 if gone == 0 else 0] * scale == pytest.approx(wanted, rel=0.02, abs=0.01)


def repaired(samples: int = 100, **options: Any) -> PruneResult:
    return prune_model(DIGITS, data=images(samples), **BUDGET, **options)


@pytest.mark.slow
def test_it_is_better_on_samples_that_no_repair_saw() -> None:
    found = repaired(repair_epochs=30)
    tuned = found.tuned
    assert tuned is not None and tuned.kept == "after" and tuned.before is not None and tuned.after is not None
    assert tuned.after["kl"].model.value < 0.8 * tuned.before["kl"].model.value
    assert found.repairs and found.fitted_on is not None and len(found.fitted_on) == 80 and tuned.before.samples == 20
    brought = outcome(found, op.PruneSettings(planning=op.PlanSettings(**BUDGET)))
    assert brought.judged == "held out" and brought.fidelity is not None and brought.fidelity.samples == 20
    assert brought.calibrated is not None and brought.calibrated.samples == 20
    changed = noted_changes(found.model.proto).values()
    assert ("repair", "training") in {change.by for change in changed}
    again = repaired(repair_epochs=30)
    assert same(found.model.proto, again.model.proto)


def test_what_goes_in_is_returned_where_training_makes_it_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    start = repaired(repair_epochs=1, recover="reconstruct").pruned.proto
    monkeypatch.setattr(mimicry, "_RATE", 3.0)
    found = repaired(repair_epochs=2)
    assert found.tuned is not None and found.tuned.kept == "before"
    assert same(found.model.proto, start)


def test_labels_are_not_learned_from() -> None:
    wrong = images(100)
    wrong["labels"] = (wrong["labels"] + 1) % 10
    one = repaired(repair_epochs=1)
    other = prune_model(DIGITS, data=wrong, **BUDGET, repair_epochs=1)
    assert same(one.model.proto, other.model.proto)


def test_samples_held_back_take_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither least squares nor training may read the samples that judge; the same holds for fine-tuning."""
    read: dict[str, set[bytes]] = {}

    def spied(name: str) -> Any:
        function = getattr(training, name)

        def call(pruned: Any, data: Any, *args: Any, validation: Any, **options: Any) -> Any:
            for key, samples in (("trained", data), ("judged", validation)):
                read[key] = {a.tobytes() for batch in samples.batches(1) for a in batch.inputs.values()}
            return function(pruned, data, *args, validation=validation, **options)

        return call

    monkeypatch.setattr(training, "finetune", spied("finetune"))
    for option, share in (("repair_epochs", 5), ("finetune", 10)):
        found = repaired(**{option: 1})
        assert found.fitted_on is not None
        calibrated = {a.tobytes() for batch in found.fitted_on.batches(1) for a in batch.inputs.values()}
        assert read["judged"].isdisjoint(read["trained"] | calibrated) and calibrated <= read["trained"]
        assert len(read["judged"]) == 100 // share


def test_time_decides_the_number_of_epochs() -> None:
    found = repaired(repair_minutes=1e-4)
    assert found.tuned is not None and found.tuned.epochs == len(found.tuned.history) == 1


def test_an_interrupt_keeps_the_best_so_far() -> None:
    def interrupt(phase: str, done: int, total: int | None) -> None:
        if phase.startswith("train: epoch 4"):
            raise KeyboardInterrupt

    found = repaired(repair_epochs=50, progress=interrupt)
    tuned = found.tuned
    assert tuned is not None and len(tuned.history) == 3 and tuned.epochs == 50
    assert tuned.epoch is not None and tuned.epoch <= 3
    with pytest.raises(KeyboardInterrupt):  # training that was asked for isn't cut short silently
        repaired(finetune=50, progress=interrupt)


def test_within_a_drop_every_trial_is_repaired() -> None:
    options: Any = {"max_drop": 0.5, "limit": 64, "repair_epochs": 1, "allocation": "uniform"}
    found = prune_model(DIGITS, data=images(200), target=op.Target("macs", 0.3), **options)
    assert found.tuned is not None and found.trials and found.drop is not None


def test_what_contradicts_it() -> None:
    with pytest.raises(PlanError, match="trains the repaired model already"):
        prune_model(DIGITS, data="random", **BUDGET, finetune=1, repair_minutes=1.0)
    with pytest.raises(PlanError, match="needs inputs"):
        prune_model(DIGITS, **BUDGET, repair_minutes=1.0)


def test_the_command_and_the_check_of_its_result(tmp_path: Path) -> None:
    data, small = tmp_path / "some.npz", tmp_path / "small.onnx"
    np.savez(data, **images(100))
    options = ["--target", "macs=15%", "--allocation", "uniform", "--data", data, "--repair-epochs", "4", "-q"]
    found = document("prune", DIGITS, "-o", small, *options)
    assert found["finetuning"]["kept"] == "after" and len(found["finetuning"]["history"]) == 4
    assert found["outcome"]["calibrated"] is not None
    assert "rewriting proved" in invoke("verify", DIGITS, small).output
    model = op.load(small).proto  # the negative control
    name = next(iter(noted_changes(model)))
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 1.01, name))
    tampered = tmp_path / "tampered.onnx"
    tampered.write_bytes(model.SerializeToString())
    assert name in invoke("verify", DIGITS, tampered, status=1).output
