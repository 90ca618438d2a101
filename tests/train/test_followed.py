"""What training follows: all outputs of real numbers, each by its own scale, and tensors that lost channels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper

import onnxprune as op
from onnxprune.cli import cli
from onnxprune.data import open_data
from onnxprune.errors import TrainingError
from onnxprune.evaluation import evaluate
from onnxprune.model.session import run, session
from onnxprune.normalize import normalize
from onnxprune.settings.training import LossSettings, TrainSettings
from onnxprune.train import Job, finetune
from onnxprune.train.batches import TrainingBatches, objective_of
from onnxprune.train.objective import Objective, objective
from onnxprune.train.runner import HostRunner
from onnxprune.train.step import build_step
from tests.toolbox import Net

CPU = ["CPUExecutionProvider"]
X = np.random.default_rng(0).standard_normal((128, 3, 8, 8)).astype(np.float32)
Array = NDArray[Any]


def two_heads(seed: int = 0, large: float = 100.0) -> ModelProto:
    """Make a stem with two heads, the second of which has large values."""
    rng = np.random.default_rng(seed)
    sizes = {"w0": (32, 3, 3, 3), "w1": (4, 32, 1, 1), "w2": (5, 32, 1, 1)}
    arrays = {n: (rng.standard_normal(s) / np.prod(s[1:]) ** 0.5).astype(np.float32) for n, s in sizes.items()}
    arrays["w2"] *= np.float32(large)
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["c0"], name="stem"),
        helper.make_node("Relu", ["c0"], ["f"], name="relu"),
        helper.make_node("Conv", ["f", "w1"], ["first"], name="head1"),
        helper.make_node("Conv", ["f", "w2"], ["second"], name="head2"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info(n, 1, ["N", c, 6, 6]) for n, c in (("first", 4), ("second", 5))],
        [numpy_helper.from_array(a, n) for n, a in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def halved(model: ModelProto) -> tuple[ModelProto, Any]:
    """Prune a model; return the result, and the traced original without what was removed."""
    pruned = op.prune(model, op.plan(model, ratio=0.4))
    return pruned.proto, pruned.kept


def first_losses(
    student: ModelProto, teacher: ModelProto, settings: TrainSettings, kept: Any = None
) -> dict[str, float]:
    """Return the losses of the first step, on a batch of all data."""
    job = Job(normalize(student), open_data({"x": X}, student), settings, normalize(teacher), kept=kept)
    goal = objective_of(job, job.model)
    batches = TrainingBatches(job, goal)
    step = build_step(job.model, goal, settings, batches.example, scales=batches.scales)
    return HostRunner(step, providers=CPU, threads=1).step([batches.example], 0.0)


def outputs_of(model: ModelProto, *tensors: str) -> dict[str, Array]:
    copy = ModelProto()
    copy.CopyFrom(normalize(model))
    copy.graph.output.extend(helper.make_tensor_value_info(t, 1, None) for t in tensors)
    return run(session(copy), {"x": X})


WHOLE = TrainSettings(batch=len(X))


def test_every_output_is_followed_by_its_own_scale() -> None:
    model = two_heads()
    small, _ = halved(model)
    found = first_losses(small, model, WHOLE)
    mine, its = outputs_of(small), outputs_of(model)
    errors = {n: float(((mine[n] - its[n]) ** 2).mean()) for n in its}
    for name in ("first", "second"):
        assert found[f"nmse:{name}"] == pytest.approx(errors[name] / its[name].var(), rel=1e-4)
    assert found["loss"] == pytest.approx(found["nmse:first"] + found["nmse:second"], rel=1e-5)
    plain = first_losses(small, model, TrainSettings(batch=len(X), losses={"mse": 1.0}))  # the negative control
    assert plain["mse:second"] == pytest.approx(errors["second"], rel=1e-4)
    assert plain["mse:second"] > 100 * plain["mse:first"]


def test_the_scale_does_not_depend_on_the_order_of_the_data() -> None:
    """Data that are sorted by size: the first batch alone would say that nothing varies."""
    model = two_heads()
    inputs = np.concatenate([X * 1e-3, X])
    settings = TrainSettings(batch=32)
    job = Job(normalize(model), open_data({"x": inputs}, model), settings, normalize(model))
    batches = TrainingBatches(job, objective_of(job, job.model))
    expected = run(session(model), {"x": inputs})
    for name in ("first", "second"):
        assert batches.scales[f"nmse:{name}"] == pytest.approx(expected[name].var(), rel=0.3)
        assert batches.example[f"teacher:nmse:{name}"].var() < 0.01 * expected[name].var()


def test_training_brings_all_outputs_closer() -> None:
    model = two_heads()
    small, _ = halved(model)
    result = finetune(
        small, open_data({"x": X}, small), teacher=model, settings=TrainSettings(epochs=10, batch=16, rate=0.005)
    )
    assert result.follows == {"first": ("nmse",), "second": ("nmse",)}
    assert result.metric == "nmse" and result.before is not None and result.after is not None
    values = {
        when: [s.model.value for s in e.scores if s.metric == "mse"]
        for when, e in (("before", result.before), ("after", result.after))
    }
    assert all(after < 0.8 * before for before, after in zip(values["before"], values["after"], strict=True))
    assert set(result.history[0].parts) == {"nmse:first", "nmse:second"}
    only = finetune(
        small,
        open_data({"x": X}, small),
        teacher=model,
        settings=TrainSettings(epochs=10, batch=16, rate=0.005, output="first", decay=0.1),
    )
    assert only.follows == {"first": ("nmse",)}
    assert [(layer.node, layer.reason) for layer in only.untrained] == [("head2", "no loss depends on it")]
    assert result.untrained == ()
    before, after = ({t.name: numpy_helper.to_array(t) for t in m.graph.initializer} for m in (small, only.proto))
    assert np.array_equal(before["w2"], after["w2"])  # which isn't trained, and mustn't decay
    assert not np.array_equal(before["w1"], after["w1"])


def test_validation_judges_all_outputs() -> None:
    """The metric is the mean over outputs of the error relative to the variance, as by hand."""
    model = two_heads()
    small, _ = halved(model)
    scores = evaluate(small, open_data({"x": X}, small), against=model, batch=50).scores
    mine, its = outputs_of(small), outputs_of(model)
    for score in (s for s in scores if s.metric == "nmse"):
        name = score.output
        assert name is not None
        assert score.model.value == pytest.approx(((mine[name] - its[name]) ** 2).mean() / its[name].var(), rel=1e-4)
        assert score.model.low <= score.model.value <= score.model.high
    assert sum(s.metric == "nmse" for s in scores) == 2
    same = evaluate(model, open_data({"x": X}, model), against=model)
    assert [s.model.value for s in same.scores if s.metric == "nmse"] == [0, 0]


def unknown_tail(model: ModelProto) -> ModelProto:
    """Let a plug-in's operator make the only output, of both heads."""
    result = helper.make_node("TRT_Select", ["first", "second"], ["chosen"], name="tail", domain="TRT")
    return with_tail(model, [result], helper.make_tensor_value_info("chosen", 1, None))


def maps_tail(model: ModelProto) -> ModelProto:
    """Let ZipMap make the only output, of the first head's means."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["first"], ["means"]),
        helper.make_node("Flatten", ["means"], ["rows"]),
        helper.make_node("ZipMap", ["rows"], ["maps"], name="tail", domain="ai.onnx.ml", classlabels_int64s=range(4)),
    ]
    maps = helper.make_map_type_proto(7, helper.make_tensor_type_proto(1, ()))
    return with_tail(model, nodes, helper.make_value_info("maps", helper.make_sequence_type_proto(maps)))


def means_tail(model: ModelProto) -> ModelProto:
    """Make what `maps_tail` does, without maps."""
    tailed = maps_tail(model)
    del tailed.graph.node[-1], tailed.graph.output[:]
    tailed.graph.output.append(helper.make_tensor_value_info("rows", 1, ["N", 4]))
    return tailed


def with_tail(model: ModelProto, nodes: list[Any], output: Any) -> ModelProto:
    tailed = ModelProto()
    tailed.CopyFrom(model)
    del tailed.graph.output[:]
    tailed.graph.node.extend(nodes)
    tailed.graph.output.append(output)
    tailed.opset_import.extend([helper.make_opsetid("TRT", 1), helper.make_opsetid("ai.onnx.ml", 3)])
    return tailed


@pytest.mark.parametrize(("tail", "same"), [(unknown_tail, lambda model: model), (maps_tail, means_tail)])
@pytest.mark.parametrize("hold_out", [0.0, 0.25])
def test_what_is_in_front_of_an_end_that_has_no_gradient_is_trained(tail: Any, same: Any, hold_out: float) -> None:
    """Training ends at the same weights as for the model without the operator that it can't train through."""
    model = two_heads()
    small, _ = halved(model)
    settings = TrainSettings(epochs=2, batch=32)
    found, plain = (
        finetune(make(small), open_data({"x": X}, small), teacher=make(model), hold_out=hold_out, settings=settings)
        for make in (tail, same)
    )
    assert found.kept == "after" and set(found.follows) == set(plain.follows)
    assert "tail" in {node.name for node in found.proto.graph.node}
    theirs = {t.name: numpy_helper.to_array(t) for t in plain.proto.graph.initializer}
    before = {t.name: numpy_helper.to_array(t) for t in normalize(small).graph.initializer}
    for tensor in found.proto.graph.initializer:
        array = numpy_helper.to_array(tensor)
        assert np.array_equal(array, theirs[tensor.name])
        reached = tensor.name != "w2" or tail is unknown_tail
        assert np.array_equal(array, before[tensor.name]) != reached


def test_an_output_as_a_feature() -> None:
    model = two_heads()
    small, _ = halved(model)
    found = first_losses(small, model, TrainSettings(batch=len(X), features=("second",), feature_weight=0.5))
    assert found["feature:second"] == pytest.approx(found["nmse:second"])
    assert found["loss"] == pytest.approx(found["nmse:first"] + 1.5 * found["nmse:second"], rel=1e-5)


def test_of_a_tensor_that_lost_channels_the_others_are_followed() -> None:
    model = two_heads()
    small, kept = halved(model)
    changed = ModelProto()
    changed.CopyFrom(small)
    stem = next(t for t in changed.graph.initializer if t.name == "w0")
    stem.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(stem) * np.float32(1.1), "w0"))
    settings = TrainSettings(batch=len(X), features=("f",))
    stayed = np.flatnonzero(kept.mask("f", 1))
    mine, its = outputs_of(changed, "f")["f"], outputs_of(model, "f")["f"]
    assert 0 < len(stayed) < its.shape[1]
    wanted = its[:, stayed]
    found = first_losses(changed, model, settings, kept)["feature:f"]
    assert found == pytest.approx(((mine - wanted) ** 2).mean() / wanted.var(), rel=1e-4)
    others = its[:, np.setdiff1d(np.arange(its.shape[1]), stayed)[: len(stayed)]]  # the negative control
    if others.shape == mine.shape:
        assert ((mine - others) ** 2).mean() / others.var() > 2 * found
    with pytest.raises(TrainingError, match="OP904") as refused:
        first_losses(changed, model, settings)
    assert refused.value.hint is not None and "plan" in refused.value.hint


def test_a_teacher_without_the_tensor_is_refused() -> None:
    model = two_heads()
    with pytest.raises(TrainingError, match=r"OP904.*no tensor"):
        first_losses(model, model, TrainSettings(batch=len(X), features=("nothing",)))


def classes(net: Net, y: str) -> Objective:
    net.output(y)
    proto = normalize(net.model())
    return objective(proto, TrainSettings(), labeled=False, teacher=True)


def test_what_counts_as_scores_of_classes() -> None:
    def losses(*last: str, width: int = 5, rank: int = 2) -> tuple[str, int | None]:
        net = Net(17)
        x = net.input((4, 7) if rank == 2 else (4, 6, 7), "x")
        y = net.op("MatMul", x, net.weight(7, width))
        for operator in last:
            y = net.op(operator, y)
        (term,) = classes(net, y).terms
        return term.loss, term.axis

    assert losses()[0] == "kl"
    assert losses("Softmax") == ("kl", -1)
    assert losses("LogSoftmax", rank=3) == ("kl", -1)
    assert losses("Sigmoid")[0] == losses("Tanh")[0] == losses("Relu")[0] == "nmse"
    assert losses(width=1)[0] == "nmse"  # one logit: a distribution over one class says nothing
    assert losses(rank=3)[0] == "nmse"


def test_two_vectors_are_not_taken_for_scores() -> None:
    net = Net(17)
    x = net.input((4, 7), "x")
    net.output(net.op("MatMul", x, net.weight(7, 3)))
    goal = classes(net, net.op("MatMul", x, net.weight(7, 5)))
    assert [term.loss for term in goal.terms] == ["nmse", "nmse"]


def test_the_divergence_is_taken_along_the_axis_of_the_softmax() -> None:
    """Of sequences as recognizers of speech output them, [n, steps, classes]."""
    net = Net(17)
    x = net.input((4, 6, 7), "x")
    net.output(net.op("Softmax", net.op("MatMul", x, net.weight(7, 5, name="w")), name="soft"))
    model = net.model()
    teacher = ModelProto()
    teacher.CopyFrom(model)
    teacher.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(model.graph.initializer[0])[::-1] * 2, "w")
    )
    x_ = np.random.default_rng(0).standard_normal((4, 6, 7)).astype(np.float32)
    settings = TrainSettings(batch=4, loss=LossSettings(temperature=2.0))
    job = Job(normalize(model), open_data({"x": x_}, model), settings, normalize(teacher))
    batches = TrainingBatches(job, goal := objective_of(job, job.model))
    runner = HostRunner(build_step(job.model, goal, settings, batches.example), providers=CPU, threads=1)
    found = runner.step([batches.example], 0.0)["loss"]

    def logs(m: ModelProto, axis: int) -> Array:
        z = x_.astype(np.float64) @ numpy_helper.to_array(m.graph.initializer[0]).astype(np.float64) / 2
        return np.asarray(z - np.log(np.exp(z).sum(axis=axis, keepdims=True)))

    along, across = (
        4 * (np.exp(logs(teacher, axis)) * (logs(teacher, axis) - logs(model, axis))).sum(axis=axis).mean()
        for axis in (2, 1)
    )
    assert found == pytest.approx(along, rel=1e-4) and not np.isclose(along, across, rtol=0.05)


def test_the_command_follows_features_by_the_plan(tmp_path: Path) -> None:
    model = two_heads()
    op.save(model, tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", x=X)
    at = {name: str(tmp_path / name) for name in ("model.onnx", "plan.json", "small.onnx", "tuned.onnx", "data.npz")}
    for command in (
        ["plan", at["model.onnx"], "-o", at["plan.json"], "--ratio", "0.4"],
        ["prune", at["model.onnx"], "-o", at["small.onnx"], "--plan", at["plan.json"]],
    ):
        assert CliRunner().invoke(cli, command).exit_code == 0
    fixed = ["finetune", at["small.onnx"], "-o", at["tuned.onnx"], "--data", at["data.npz"], "--epochs", "1"]
    taught = [*fixed, "--teacher", at["model.onnx"], "--feature", "f", "--force"]
    refused = CliRunner().invoke(cli, taught)
    assert refused.exit_code == 2 and "OP904" in refused.stderr and "--plan" in refused.stderr
    assert not (tmp_path / "tuned.onnx").exists()
    result = CliRunner().invoke(cli, [*taught, "--plan", at["plan.json"], "--format", "json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["follows"] == {"first": ["nmse"], "second": ["nmse"], "f": ["nmse"]}
    assert set(document["history"][0]["parts"]) == {"nmse:first", "nmse:second", "feature:f"}
    shown = CliRunner().invoke(cli, [*taught, "--plan", at["plan.json"]])
    assert "Trained on first (nmse), second (nmse), f (nmse)." in shown.output and "nmse:second" in shown.output
    alone = CliRunner().invoke(cli, [*fixed, "--plan", at["plan.json"], "--force"])
    assert alone.exit_code == 2 and "OP302" in alone.stderr
