"""Models with states through every command: targets, data, steps, training, judging and timing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper

import onnxprune as op
from onnxprune.benchmarking import benchmark
from onnxprune.data import open_data
from onnxprune.evaluation import evaluate
from onnxprune.latency import plan as latency_plan
from onnxprune.latency.table import LayerTime
from onnxprune.model.states import state_inputs
from onnxprune.settings.benchmarking import BenchmarkSettings
from onnxprune.settings.training import TrainSettings
from tests.toolbox import Net, run_once

LENGTH, WORDS = 5, 20


def returned(net: Net, tensor: str, name: str, symbols: dict[int, str | None]) -> None:
    net.nodes.append(helper.make_node("Identity", [tensor], [name], name=f"{name}_node"))
    net.types[name] = net.types[tensor]
    net.output(name, symbols=symbols)


def recurrent(width: int = 32) -> ModelProto:
    """A GRU whose state comes first among the outputs, with its samples on the second axis."""
    net = Net(seed=1)
    x, h = net.input((1, 8), "x", symbols={0: "N"}), net.input((1, 1, width), "h_in", symbols={1: "N"})
    weights = [net.weight(1, 3 * width, 8, fan_in=8), net.weight(1, 3 * width, width, fan_in=width)]
    _, h = net.ops(
        "GRU",
        *(net.unsqueeze(x, [0]), *weights, net.weight(1, 6 * width, fan_in=50), "", h),
        count=2,
        name="rnn",
        hidden_size=width,
    )
    returned(net, h, "h_out", {1: "N"})
    z = net.op("Relu", net.linear(net.squeeze(h, [0]), 32, name="post"))
    net.output(net.linear(z, 5, name="head"), symbols={0: "N"})
    return net.model()


def decoder(*, cached: bool = True, dim: int = 16, heads: int = 4, width: int = 8) -> ModelProto:
    """A decoder of one layer with a cache that grows, or without one."""
    net = Net(seed=2)
    ids = net.input((1, LENGTH), "input_ids", dtype=7, symbols={0: "batch", 1: "seq"})
    free = {0: "batch", 2: "past"}
    names = ("key", "value")
    past = [net.input((1, heads, 2, width), f"past_key_values.0.{n}", symbols=free) for n in names] if cached else []
    x = net.op("Gather", net.weight(WORDS, dim, name="words", fan_in=4), ids)
    projected = [net.reshape(net.linear(x, heads * width, name=n), [0, 0, heads, width]) for n in ("query", *names)]
    q, *new = [net.op("Transpose", p, perm=[0, 2, 1, 3]) for p in projected]
    k, v = [net.op("Concat", p, n, axis=2) for p, n in zip(past, new, strict=True)] if cached else new
    scores = net.op("Mul", net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2])), net.const(width**-0.5))
    mixed = net.op("Transpose", net.op("MatMul", net.op("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
    x = net.op("Add", x, net.linear(net.reshape(mixed, [0, 0, heads * width]), dim, name="out"))
    x = net.op("Add", x, net.linear(net.op("Relu", net.linear(x, 64, name="up")), dim, name="down"))
    for name, tensor in zip(names, (k, v), strict=True):
        returned(net, tensor, f"present.0.{name}", {0: "batch", 2: None})
    net.output(net.linear(x, WORDS, name="head"), symbols={0: "batch", 1: "seq"})
    return net.model()


RNG = np.random.default_rng(0)
FRAMES = RNG.standard_normal((192, 8)).astype(np.float32)
TOKENS = RNG.integers(0, WORDS, (96, LENGTH))
MODELS = {"recurrent": (recurrent, {"x": FRAMES}), "decoder": (decoder, {"input_ids": TOKENS})}
OPTIONS: dict[str, Any] = {"target": op.Target("macs", 0.7), "resize_states": True}


def first_step(model: ModelProto, data: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Run a model from zero states, or from empty caches."""
    (samples,) = [len(array) for array in data.values()]
    feeds = dict(data)
    for entry in model.graph.input:
        free = {"N": samples, "batch": samples, "past": 0}
        sizes = [d.dim_value or free.get(d.dim_param, 0) for d in entry.type.tensor_type.shape.dim]
        feeds.setdefault(entry.name, np.zeros(sizes, np.float32))
    found = run_once(model, feeds)
    return {name: found[name] for name in found if name.startswith("head")}


@pytest.fixture(scope="module", params=MODELS)
def trained(request: pytest.FixtureRequest) -> tuple[ModelProto, dict[str, Any], op.PruneResult]:
    build, data = MODELS[request.param]
    model = build()
    return model, data, op.prune_model(model, **OPTIONS, data=data, allocation="uniform", finetune=6)


def test_trained_by_the_original(trained: tuple[ModelProto, dict[str, Any], op.PruneResult]) -> None:
    """The teacher has states of other sizes; what counts is the error of the outputs, not of the states."""
    small = trained[2]
    assert small.pruned.verification is not None and small.pruned.verification.steps > 1
    assert any(state.kept for state in small.pruned.kept.states())
    tuned = small.tuned
    assert tuned is not None and tuned.failure is None
    assert tuned.before is not None and tuned.after is not None and tuned.metric is not None
    assert tuned.before.scores[0].output is None or tuned.before.scores[0].output.startswith("head")
    assert tuned.after[tuned.metric].model.value <= tuned.before[tuned.metric].model.value


def test_judged_against_the_original(trained: tuple[ModelProto, dict[str, Any], op.PruneResult]) -> None:
    model, data, small = trained
    proto = small.pruned.proto
    (name, right), (_, ours) = (next(iter(first_step(m, data).items())) for m in (model, proto))
    found = evaluate(proto, open_data(data, proto), against=model, metrics=["mse"])
    score = next(s for s in found.scores if s.output in (name, None))
    assert score.model.value == pytest.approx(np.square(ours - right).mean(), rel=1e-4)
    assert score.model.value > 1e-6
    whole = op.analyze(model, resize_states=True).graph.proto
    assert all(
        s.model.value == 0 for s in evaluate(whole, open_data(data, whole), against=model, metrics=["mse"]).scores
    )


@pytest.mark.parametrize("name", MODELS)
def test_in_steps(name: str) -> None:
    """What remains of the states after two steps is said in positions of the original."""
    build, data = MODELS[name]
    model = build()
    settings = {**OPTIONS, "target": op.Target("macs", 0.5), "allocation": "uniform"}
    small = op.prune_model(model, **settings, data=data, steps=2, finetune=1)
    again = op.prune(op.analyze(model, resize_states=True), small.plan)
    assert again.verification is not None and again.verification.passed
    kept = {s.input: dict(s.kept) for s in again.kept.states()}
    assert {n: dict(s.kept) for n, s in state_inputs(small.model.proto).items()} == kept
    assert any(kept.values())
    assert first_step(small.model.proto, data)


def test_within_a_drop() -> None:
    small = op.prune_model(recurrent(), max_drop=0.5, data={"x": FRAMES}, resize_states=True)
    assert small.plan.after["macs"] < small.plan.before["macs"]
    assert small.evaluation is not None
    assert small.evaluation.scores[0].output in (None, "head_out0")


def test_for_a_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_plan, "_SECONDS", 0.05)
    monkeypatch.setattr(latency_plan, "_REPEATS", 1)
    monkeypatch.setattr(LayerTime, "noisy", False)
    small = op.prune_model(recurrent(512), target=op.Target("latency", 0.8), resize_states=True, threads=1, cache=False)
    assert small.pruned.kept.shape("h_in")[2] < 512
    assert small.pruned.verification is not None and small.pruned.verification.passed


def test_timed_side_by_side() -> None:
    """In either order, at any batch size: states of another size are cut or filled up."""
    model = recurrent()
    small = op.prune_model(model, ratio=0.5, resize_states=True)
    quick = BenchmarkSettings(seconds=0.05, rounds=5, threads=1, batches=(4,), profile=True)
    for pair in ({"a": model, "b": small.model}, {"b": small.model, "a": model}):
        (case,) = benchmark(pair, quick).cases
        assert [r.model for r in case.results] == list(pair)
        assert case.shapes["h_in"] == (1, 4, 32 if next(iter(pair)) == "a" else 16)


def test_verified_with_the_plan() -> None:
    model = recurrent()
    small = op.prune_model(model, ratio=0.5, resize_states=True)
    assert op.verify(model, small.model, small.plan).proved
    assert op.verify(model, small.model).proved  # by the plan in its metadata
    del small.model.proto.metadata_props[:]
    found = op.verify(model, small.model)
    assert not found.proved and found.changes[0].startswith("input 'h_in' was float32 [1, 'N', 32]")


def test_empty_caches_train_like_none() -> None:
    """The oracle is the same network without caches: each step gives the same weights."""
    students, weights = (decoder(), decoder(cached=False)), []
    for student in students:
        teacher = ModelProto.FromString(student.SerializeToString())
        for tensor in teacher.graph.initializer:
            if tensor.name == "head_w":
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[:, ::-1].copy(), tensor.name))
        settings = TrainSettings(epochs=1, batch=32, optimizer="sgd", rate=0.05)
        data = open_data({"input_ids": TOKENS}, student)
        tuned = op.finetune(student, data, teacher=teacher, settings=settings, hold_out=0)
        weights.append({t.name: numpy_helper.to_array(t) for t in tuned.proto.graph.initializer})
    before = {t.name: numpy_helper.to_array(t) for t in students[0].graph.initializer}
    trained = [n for n, w in weights[0].items() if w.dtype == np.float32 and w.ndim > 1]
    assert len(trained) >= 6
    for name in trained:
        np.testing.assert_allclose(weights[0][name], weights[1][name], rtol=1e-4, atol=1e-6)
    assert any(np.abs(weights[0][n] - before[n]).max() > 1e-3 for n in trained)
