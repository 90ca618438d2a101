"""Repaired networks: exactly right where that is possible, and much better than before where it isn't."""

from __future__ import annotations

import functools
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto

import onnxprune as op
from onnxprune.errors import OnnxPruneError
from onnxprune.model.session import run, session
from onnxprune.model.stream import Batches, Stream
from onnxprune.model.tensors import DATA_FIELDS, weights
from onnxprune.planning.plan import apply_plan
from onnxprune.recover import Method, Repair, recover, repeat
from onnxprune.rewrite.difference import difference
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.settings.planning import PlanSettings, Target
from onnxprune.trace.pruned_graph import PrunedGraph
from onnxprune.workflow.analysis import analyze as analyze_file
from tests.toolbox import Net, analyze, run_once

MODELS = Path(__file__).parents[2] / "models"
DIGITS = ("digits_resnet", "digits_cnn_dynamo")
METHODS: tuple[Method, ...] = get_args(Method)

Array = NDArray[Any]


# Real networks


@functools.cache
def digits() -> tuple[Array, Array]:
    with np.load(MODELS / "digits_test.npz", allow_pickle=False) as data:
        return data["images"], data["labels"]


@functools.cache
def halved(name: str, share: float = 0.5) -> PrunedGraph:
    """Plan for a share of a network's MACs, the same share of every layer's channels."""
    analysis = analyze_file(MODELS / f"{name}.onnx")
    return apply_plan(analysis.graph, op.plan(analysis, PlanSettings(target=Target("macs", share))))


def calibration(half: int, size: int = 25) -> Batches:
    """Give one half of the images, without labels."""
    images = digits()[0][half::2]
    return repeat([{"image": images[i : i + size]} for i in range(0, len(images), size)])


def accuracy(model: ModelProto, half: int) -> float:
    images, labels = (part[half::2] for part in digits())
    logits = run(session(model, threads=1), {"image": images})["logits"]
    return float(np.mean(logits.argmax(axis=1) == labels))


@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize("name", DIGITS)
def test_accuracy_comes_back(name: str, half: int) -> None:
    """Half the MACs are gone; one half of the images repairs, the other one tells."""
    kept = halved(name)
    found = {"dense": accuracy(kept.graph.proto, 1 - half), "pruned": accuracy(rewrite(kept), 1 - half)}
    for method in METHODS:
        model = rewrite(kept)
        recover(kept, model, calibration(half), method=method)
        found[method] = accuracy(model, 1 - half)
    print(name, half, {key: round(value, 3) for key, value in found.items()})
    assert found["dense"] > 0.98
    assert found["pruned"] < 0.8
    assert found["bias"] > found["pruned"] + 0.02
    assert found["bn"] > found["bias"] + 0.1
    assert found["reconstruct"] > found["bn"]
    assert found["reconstruct"] > found["dense"] - 0.03


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", DIGITS)
def test_only_values_change_and_always_alike(name: str, method: Method) -> None:
    kept = halved(name)
    before, first, again, other = (rewrite(kept) for _ in range(4))
    repairs = recover(kept, first, calibration(0, 75), method=method, seed=1, positions=200)
    assert recover(kept, again, calibration(0, 75), method=method, seed=1, positions=200) == repairs
    recover(kept, other, calibration(0, 75), method=method, seed=2, positions=200)
    assert bare(first) == bare(before)
    assert first == again
    assert first != other != before
    changed = {n for n, w in weights(first).items() if not np.array_equal(w, weights(before)[n])}
    floats = {n for n, w in weights(first).items() if w.dtype == np.float32}
    assert changed < floats


def bare(model: ModelProto) -> ModelProto:
    """Return a model without the values of its weights."""
    copy = ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.data_type == 1:
            for field in DATA_FIELDS:
                tensor.ClearField(field)
    return copy


@pytest.mark.parametrize("name", DIGITS)
def test_every_layer_gains(name: str) -> None:
    kept = halved(name)
    model = rewrite(kept)
    steps: list[tuple[str, int, int | None]] = []
    repairs = recover(kept, model, calibration(0), progress=lambda *step: steps.append(step))
    assert len(repairs) > 3
    assert {r.node for r in repairs} <= {n.name for n in model.graph.node}
    assert all(r.after <= r.before for r in repairs)
    assert all(r.after < 0.6 * r.before for r in repairs if r.before > 0.1)
    assert steps == [("repair", i + 1, len(steps)) for i in range(len(steps))]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", DIGITS)
def test_where_nothing_is_removed_nothing_changes(name: str, method: Method) -> None:
    kept = PrunedGraph(halved(name).graph)
    model = rewrite(kept)
    before = model.SerializeToString(deterministic=True)

    def batches() -> Iterator[Mapping[str, Array]]:
        raise AssertionError("inputs are asked for")

    assert recover(kept, model, batches, method=method) == []
    assert model.SerializeToString(deterministic=True) == before


def test_without_inputs_nothing_can_be_repaired() -> None:
    kept = halved("digits_resnet")
    with pytest.raises(OnnxPruneError):
        recover(kept, rewrite(kept), repeat([]))


def test_a_single_image_is_enough_to_run() -> None:
    kept = halved("digits_resnet")
    for size in (1, 4):
        model = rewrite(kept)
        recover(kept, model, repeat([{"image": digits()[0][:size]}]))
        assert np.isfinite(run_once(model, {"image": digits()[0]})["logits"]).all()


def peak(batches: int) -> int:
    """Measure the most memory that a repair holds at once, beyond what it started with."""
    kept = halved("digits_cnn_dynamo")
    model = rewrite(kept)
    images = digits()[0][:64]

    def again() -> Iterator[Mapping[str, Array]]:
        return ({"image": images} for _ in range(batches))

    tracemalloc.start()
    try:
        start = tracemalloc.get_traced_memory()[0]
        recover(kept, model, again, positions=64)
        return tracemalloc.get_traced_memory()[1] - start
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    def copied(*args: Any) -> dict[str, Array]:
        return {name: np.array(array) for name, array in run(*args).items()}

    # ONNX Runtime's own arrays are not among what tracemalloc counts.
    monkeypatch.setattr("onnxprune.model.stream.run", copied)
    free = [peak(n) for n in (2, 12)]
    monkeypatch.setattr("onnxprune.recover.repair.Stream", functools.partial(Stream, budget=0))
    bounded = [peak(n) for n in (2, 12)]
    assert bounded[1] < 1.1 * bounded[0]
    assert free[1] > 2 * bounded[1]  # the control: as long as there is room, tensors at the cut are held


def test_the_budget_of_memory_does_not_matter_for_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = halved("digits_cnn_dynamo")
    models = [rewrite(kept) for _ in range(3)]
    for model, budget in zip(models, (1 << 40, 1 << 20, 0), strict=True):
        monkeypatch.setattr("onnxprune.recover.repair.Stream", functools.partial(Stream, budget=budget))
        recover(kept, model, calibration(0))
    results = [run_once(model, {"image": digits()[0]})["logits"] for model in models]
    for other in results[1:]:
        assert difference(results[0], other) < 1e-2
    assert difference(results[0], run_once(rewrite(kept), {"image": digits()[0]})["logits"]) > 0.1


# Networks that can be repaired exactly


def without(model: ModelProto, producer: str, channels: list[int]) -> PrunedGraph:
    """Remove channels that a node makes."""
    graph = analyze(model)
    (group,) = (g for g in graph.groups if producer in g.producers)
    removed = np.zeros(len(graph.pinned), dtype=bool)
    removed[group.units[channels]] = True
    return PrunedGraph(graph, removed)


def mended(kept: PrunedGraph, method: Method, count: int = 3) -> tuple[float, float, list[Repair]]:
    """Repair a network; give its outputs' relative error on other inputs before and after, and the repairs."""
    rng = np.random.default_rng(0)

    def draw() -> dict[str, Array]:
        return {n: rng.standard_normal(s).astype(np.float32) for n, s in kept.graph.shapes.inputs.items()}

    batches, other = [draw() for _ in range(count)], draw()
    truth = run_once(kept.graph.proto, other)
    model = rewrite(kept)
    before = run_once(model, other)
    repairs = recover(kept, model, repeat(batches), method=method)
    after = run_once(model, other)
    return difference(truth["y"], before["y"]), difference(truth["y"], after["y"]), repairs


Consumer = Callable[[Net, str], str]


def with_bias(net: Net, x: str) -> str:
    return net.conv(x, 5, name="layer")


def before_a_normalization(net: Net, x: str) -> str:
    x = net.conv(x, 5, name="layer", bias=False)
    parameters = [net.between(0.5, 1.5, 5), net.weight(5), net.weight(5), net.between(0.5, 1.5, 5)]
    return net.op("BatchNormalization", x, *parameters)


def before_a_constant(net: Net, x: str) -> str:
    return net.op("Add", net.conv(x, 5, name="layer", bias=False), net.weight(5, 1, 1))


def behind_a_constant(net: Net, x: str) -> str:
    return net.op("Add", net.weight(5, 1, 1), net.conv(x, 5, name="layer", bias=False))


def fully_connected(net: Net, x: str) -> str:
    pooled = net.op("Flatten", net.op("GlobalAveragePool", x))
    return net.op("Gemm", pooled, net.weight(5, 6), net.weight(5), name="layer", transB=1)


def of_a_sequence(net: Net, x: str) -> str:
    rows = net.op("Transpose", net.reshape(x, [0, 0, -1]), perm=[0, 2, 1])
    return net.op("Add", net.linear(rows, 5, name="layer"), net.weight(5))


def with_a_kernel(net: Net, x: str) -> str:
    return net.conv(x, 5, 3, name="layer", pads=[0] * 4)


def transposed(net: Net, x: str) -> str:
    # Without the rim, where a kernel has fewer taps and a constant input gives no constant
    w = net.weight(6, 5, 2, 2)
    return net.op("ConvTranspose", x, w, net.weight(5), name="layer", pads=[1] * 4)


def residual(net: Net, x: str) -> str:
    return net.op("Add", net.conv("x", 5, name="shortcut"), net.conv(x, 5, name="layer"))


CONSUMERS: list[Consumer] = [
    *(with_bias, before_a_normalization, before_a_constant, behind_a_constant, fully_connected),
    *(of_a_sequence, with_a_kernel, transposed, residual),
]
by_consumer = pytest.mark.parametrize("consumer", CONSUMERS, ids=lambda c: c.__name__)


def network(consumer: Consumer, stem: Callable[[Array, Array], None]) -> ModelProto:
    """Build Conv, Relu and a consumer; ``stem`` sets the first layer's weights [6, 3] and biases [6]."""
    net = Net()
    x = net.input((16, 3, 6, 6), "x")
    w = net.rng.standard_normal((6, 3, 1, 1)).astype(np.float32)
    b = net.rng.standard_normal(6).astype(np.float32)
    stem(w[:, :, 0, 0], b)
    hidden = net.op("Relu", net.op("Conv", x, net.const(w), net.const(b), name="stem"))
    net.output(net.op("Identity", consumer(net, hidden), name="last"))
    model = net.model()
    model.graph.node[-1].output[0] = model.graph.output[0].name = "y"
    return model


@by_consumer
@pytest.mark.parametrize("method", METHODS)
def test_a_channel_that_is_constant(consumer: Consumer, method: Method) -> None:
    """What it contributed moves into the next bias, or into what stands for one."""

    def stem(w: Array, b: Array) -> None:
        w[:2], b[:2] = 0.0, 3.0

    before, after, (repair,) = mended(without(network(consumer, stem), "stem", [0, 1]), method)
    assert before > 0.1
    assert after < (2e-2 if method == "reconstruct" else 2e-3)  # the ridge is 1e-4 at least
    assert repair.node == "layer"
    assert repair.after < 1e-3 < repair.before


@by_consumer
def test_a_channel_that_another_one_repeats(consumer: Consumer) -> None:
    """Its weights move to the other's; shifting outputs isn't enough."""

    def stem(w: Array, b: Array) -> None:
        w[0], b[0] = 2 * w[1], 2 * b[1]
        w[2], b[2] = 0.5 * w[3], 0.5 * b[3]

    kept = without(network(consumer, stem), "stem", [0, 2])
    before, after, (repair,) = mended(kept, "reconstruct")
    assert before > 0.1
    assert after < 1e-2
    assert repair.after < 1e-4 < repair.before
    assert mended(kept, "bias")[1] > 0.02


@by_consumer
def test_bn_restores_what_a_normalization_would_see(consumer: Consumer) -> None:
    """Every channel of the output gets its mean and its variance back; bias alone gives the mean."""
    kept = without(network(consumer, lambda w, b: None), "stem", [0, 2, 4])
    rng = np.random.default_rng(0)
    batches = [{"x": rng.standard_normal((16, 3, 6, 6)).astype(np.float32)} for _ in range(30)]

    def statistics(model: ModelProto) -> tuple[Array, Array]:
        opened = session(model, threads=1)
        y = np.concatenate([run(opened, batch)["y"] for batch in batches])
        y = y if consumer in (of_a_sequence, fully_connected) else np.moveaxis(y, 1, -1)
        rows = y.reshape(-1, 5).astype(np.float64)
        return rows.mean(axis=0), rows.std(axis=0)

    mean, spread = statistics(kept.graph.proto)
    for method in get_args(Method):
        model = rewrite(kept)
        unrepaired = statistics(model)
        recover(kept, model, repeat(batches), method=method)
        repaired = statistics(model)
        assert np.abs(unrepaired[0] - mean).max() > 0.2 * spread.max()
        np.testing.assert_allclose(repaired[0], mean, atol=0.1 * spread.max())
        # A residual layer is aimed at the sum less the other branch, whose variances don't add up.
        if method == "bn" and consumer is not residual:
            np.testing.assert_allclose(repaired[1], spread, rtol=0.1)
        if method == "bias":
            assert not np.allclose(repaired[1], spread, rtol=0.1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("follower", ["Relu", "Softmax", "output", "two readers"])
def test_where_an_intercept_has_no_place_it_is_done_without(follower: str, method: Method) -> None:
    """A fit that counts on one, and loses it, may be worse than none."""
    net = Net()
    x = net.input((64, 8), "x", symbols={0: "N"})
    hidden = net.op("Relu", net.op("Gemm", x, net.weight(8, 12), net.between(2.0, 3.0, 12), name="stem"))
    y = net.linear(hidden, 5, name="layer")
    if follower == "two readers":
        y = net.op("Mul", y, net.op("Sigmoid", y))
    elif follower != "output":
        y = net.op(follower, y)
    net.output(y)
    kept = without(net.model(), "stem", list(range(9)))
    model = rewrite(kept)
    rng = np.random.default_rng(0)
    batches = [{"x": rng.standard_normal((64, 8)).astype(np.float32)} for _ in range(10)]
    (repair,) = recover(kept, model, repeat(batches), method=method)
    assert repair.after <= repair.before
    rows = {"x": np.concatenate([batch["x"] for batch in batches])}
    truth, pruned, now = (tensor(m, "layer_out0", rows["x"]) for m in (kept.graph.proto, rewrite(kept), model))
    before, after = (float(np.square(truth - y).sum() / np.square(truth).sum()) for y in (pruned, now))
    assert (repair.before, repair.after) == pytest.approx((before, after), rel=0.2)
    assert after <= before
    if method == "reconstruct":  # 0.28 of 0.68 is what plain least squares without an intercept leaves
        assert after < 0.5 * before


def tensor(model: ModelProto, name: str, x: Array) -> Array:
    copy = ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[1:]
    copy.graph.output[0].Clear()
    copy.graph.output[0].name = name
    return np.asarray(run_once(copy, {"x": x})[name], dtype=np.float64)


@pytest.mark.parametrize("computed", [True, False])
def test_what_is_added_to_every_image(computed: bool) -> None:
    """Positions, as in transformers: at the traced batch of one they have the shape of what they are added to."""
    net = Net()
    x = net.input((1, 5, 4), "x", symbols={0: "N"})
    hidden = net.op("Relu", net.op("Add", net.linear(x, 8, name="stem"), net.weight(8)))
    position = net.weight(1, 5, 6)
    position = net.op("Sigmoid", position) if computed else position
    net.output(net.op("Relu", net.op("Add", net.linear(hidden, 6, name="layer"), position)))
    kept = without(net.model(check=False), "stem", [0, 1, 2])
    model = rewrite(kept)
    batches = [{"x": np.random.default_rng(i).standard_normal((4, 5, 4)).astype(np.float32)} for i in range(10)]
    (repair,) = recover(kept, model, repeat(batches))
    assert repair.after < 0.9 * repair.before


def test_what_a_layer_adds_to_every_image() -> None:
    """A small network that makes the positions: it is run once, whatever the batch."""
    net = Net()
    x = net.input((1, 5, 6), "x", symbols={0: "N"})
    hidden = net.op("Relu", net.op("Add", net.linear(net.input((1, 5, 4), "grid"), 8, name="stem"), net.weight(8)))
    net.output(net.op("Relu", net.op("Add", x, net.linear(hidden, 6, name="layer"))))
    kept = without(net.model(check=False), "stem", [0, 1, 2])
    model = rewrite(kept)
    rng = np.random.default_rng(0)
    shapes = {"x": (4, 5, 6), "grid": (1, 5, 4)}
    batches = [{n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()} for _ in range(10)]
    (repair,) = recover(kept, model, repeat(batches))
    assert repair.after < 0.9 * repair.before


def test_a_layer_in_front_of_what_is_removed_is_left_alone() -> None:
    net = Net()
    x = net.conv(net.input((16, 3, 6, 6), "x"), 4, name="early")
    x = net.conv(net.op("Relu", x), 6, name="stem")
    x = net.conv(net.op("Relu", x), 5, name="reader")
    net.output(net.conv(net.op("Relu", x), 2, name="late"))
    kept = without(net.model(), "stem", [0, 1])
    model = rewrite(kept)
    before = {name: w.copy() for name, w in weights(model).items()}
    batches = [{"x": np.random.default_rng(i).standard_normal((16, 3, 6, 6)).astype(np.float32)} for i in range(6)]
    repairs = recover(kept, model, repeat(batches))
    assert [r.node for r in repairs] == ["reader", "late"]
    same = {name for name, w in weights(model).items() if np.array_equal(w, before[name])}
    assert {"early_w", "early_b", "stem_w", "stem_b"} <= same
    assert {"reader_w", "reader_b"}.isdisjoint(same)


def test_a_half_precision_network() -> None:
    net = Net()
    x = net.input((16, 3), "x", dtype=10)
    for name, out in (("stem", 8), ("layer", 4)):
        w, b = (net.rng.standard_normal(s).astype(np.float16) for s in ((net.shape(x)[1], out), (out,)))
        x = net.op("Gemm", x, net.const(w), net.const(b), name=name)
        x = net.op("Relu", x) if name == "stem" else x
    net.output(x)
    kept = without(net.model(), "stem", [0, 1])
    model = rewrite(kept)
    batches = [{"x": np.random.default_rng(i).standard_normal((16, 3)).astype(np.float16)} for i in range(6)]
    (repair,) = recover(kept, model, repeat(batches))
    assert repair.after < repair.before
    assert {w.dtype for w in weights(model).values()} == {np.dtype(np.float16)}
