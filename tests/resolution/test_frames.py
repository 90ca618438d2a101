"""Networks on sequences of frames that make them shorter, against the same networks built for the shorter length."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray
from onnx import ModelProto

import onnxprune as op
from onnxprune.errors import PlanError, VerificationError
from onnxprune.normalize import normalize
from onnxprune.planning.plan import PrunePlan
from onnxprune.resolution.images import Image, find_images
from onnxprune.resolution.proof import prove_resized
from onnxprune.resolution.resize import resize
from onnxprune.shapes import concretize
from tests.resolution.test_resize import bilinear
from tests.toolbox import Net, run_once

Array = NDArray[Any]

FEATURES, BATCH = 10, 3
KINDS = ("windows", "spectrogram", "recurrent", "batch first", "lengths")
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def network(kind: str, frames: int, seed: int, batch: int = BATCH) -> ModelProto:
    """Return a classifier of sequences [batch, frames, features]; its weights are the same for every length.

    Args:
        kind: how it reads them.
        frames: the length.
        seed: of structure and weights.
        batch: the number of sequences; the file leaves it open.
    """
    net, choose = Net(17, seed), np.random.default_rng(seed)
    x = net.input((batch, frames, FEATURES), "frames", symbols={0: "n"})
    if kind == "windows":
        x = net.op("Relu", net.op("Conv", net.op("Transpose", x, perm=[0, 2, 1]), net.weight(8, FEATURES, 3)))
        x = net.op("Relu", net.op("Conv", x, net.weight(8, 8, 3), strides=[2]))
        x = net.op("Flatten", net.op("GlobalAveragePool", x))
    elif kind == "spectrogram":
        x = net.reshape(x, [-1, 1, frames, FEATURES])
        x = net.op("Relu", net.conv(x, 8, kernel=3, strides=[2, 2]))
        x = net.op("AveragePool", x, kernel_shape=list(net.shape(x)[2:]))
        x = net.reshape(x, [-1, 8])
    else:
        cell, first = str(choose.choice(list(GATES))), kind == "batch first"
        both = int(choose.integers(1, 3))
        weights = [net.weight(both, GATES[cell] * 8, n, fan_in=n) for n in (FEATURES, 8)]
        lengths = net.const(np.full(batch, frames, np.int32)) if kind == "lengths" else ""
        x = x if first else net.op("Transpose", x, perm=[1, 0, 2])
        attributes = {"hidden_size": 8, "layout": int(first), "direction": "bidirectional" if both == 2 else "forward"}
        _, x = net.ops(cell, x, *weights, "", lengths, count=2, **attributes)
        x = net.reshape(x if first else net.op("Transpose", x, perm=[1, 0, 2]), [-1, both * 8])
    net.output(net.linear(x, 5, name="head"), symbols={0: "n"})
    return net.model()


def traced(model: ModelProto, batch: int = BATCH) -> tuple[ModelProto, Any, tuple[Image, ...]]:
    proto = normalize(model)
    shapes = concretize(proto, {"frames": (batch, *[d.dim_value for d in dims(proto)[1:]])})
    return proto, shapes, find_images(proto, shapes)


def dims(proto: ModelProto) -> Any:
    return proto.graph.input[0].type.tensor_type.shape.dim


def sequences(frames: int, seed: int = 0, batch: int = BATCH) -> Array:
    return np.random.default_rng(seed).standard_normal((batch, frames, FEATURES)).astype(np.float32)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "batch first"])  # ONNX Runtime has no kernel for that layout
@given(seed=st.integers(0, 2**16), frames=st.integers(12, 47))
@settings(max_examples=6)
def test_equals_the_network_for_the_shorter_length(kind: str, seed: int, frames: int) -> None:
    model = network(kind, 48, seed)
    proto, shapes, (found,) = traced(model)
    size = (frames, FEATURES) if kind == "spectrogram" else (frames,)
    assert found.axes == (1, 2)[: len(size)] and found.size == (48, FEATURES)[: len(size)]
    shorter = resize(proto, shapes, {"frames": size})
    x = sequences(48, seed)
    assert prove_resized(proto, shorter, {"frames": x}) < 1e-4
    outside = bilinear(x, size, found.axes).astype(np.float32)
    expected = run_once(network(kind, frames, seed), {"frames": outside})
    for name, value in run_once(shorter.proto, {"frames": x}).items():
        np.testing.assert_allclose(value, expected[name], rtol=2e-3, atol=2e-4)
    onnx.checker.check_model(shorter.proto, full_check=True)


@pytest.mark.parametrize("kind", ["windows", "spectrogram", "recurrent"])
def test_the_batch_stays_open(kind: str) -> None:
    small = op.prune_model(network(kind, 48, 0), resolution="32x10" if kind == "spectrogram" else 32, ratio=0.3)
    x = sequences(48, batch=7)
    assert small.plan.removed
    (value,) = run_once(small.model.proto, {"frames": x}).values()
    for i in range(7):
        np.testing.assert_allclose(
            value[i : i + 1], *run_once(small.model.proto, {"frames": x[i : i + 1]}).values(), atol=1e-5
        )


def test_another_layout_steps_along_another_axis() -> None:
    (found,) = traced(network("batch first", 48, 0))[2]
    assert (found.axes, found.size, found.values) == ((1,), (48,), FEATURES)


def test_the_proof_sees_lengths_that_stayed() -> None:
    proto, shapes, _ = traced(network("lengths", 48, 0))
    shorter = resize(proto, shapes, {"frames": (30,)})
    assert prove_resized(proto, shorter, {"frames": sequences(48)}) < 1e-4
    cell = next(node for node in shorter.proto.graph.node if node.op_type in GATES)
    value = next(t for t in shorter.proto.graph.initializer if t.name == cell.input[4])
    value.CopyFrom(onnx.numpy_helper.from_array(np.array([30, 12, 30], np.int32), value.name))
    with pytest.raises(VerificationError, match="OP501"):
        prove_resized(proto, shorter, {"frames": sequences(48)})


def test_sequences_of_different_lengths_are_refused() -> None:
    net = Net()
    x = net.op("Transpose", net.input((2, 20, 10), "frames"), perm=[1, 0, 2])
    weights = [net.weight(1, 24, n, fan_in=n) for n in (10, 8)]
    _, x = net.ops("GRU", x, *weights, "", net.const(np.array([20, 12], np.int32)), count=2, hidden_size=8)
    net.output(net.squeeze(x, [0]))
    proto = normalize(net.model())
    with pytest.raises(PlanError, match=r"OP319.*steps through 12 of 20 frames, now 10"):
        resize(proto, concretize(proto), {"frames": (10,)})


def test_outputs_for_each_frame_are_refused() -> None:
    net = Net()
    x = net.op("Conv", net.input((1, 10, 20), "frames"), net.weight(4, 10, 1))
    net.output(x)
    proto = normalize(net.model())
    with pytest.raises(PlanError, match="an output would have 1x4x10 instead of 1x4x20"):
        resize(proto, concretize(proto), {"frames": (10,)})


@pytest.mark.parametrize("size", ["10x20", "10x20x30"])
def test_a_sequence_has_one_length(size: str) -> None:
    with pytest.raises(PlanError, match="size of"):
        op.plan(network("windows", 48, 0), resolution=size)


def slow(count: int = 8, frames: int = 48) -> Any:
    """Return batches of 4 sequences each, whose features change slowly."""
    rng = np.random.default_rng(1)
    time = np.linspace(0, np.pi, frames)[:, None]
    rate, phase, level = (rng.uniform(-2, 2, (count, 4, 1, FEATURES)) for _ in range(3))
    values = (np.cos(rate * time + phase) + level).astype(np.float32)
    return lambda: ({"frames": batch} for batch in values)


class TestChoice:
    def test_the_planner_tries_fewer_frames(self) -> None:
        """Only the axis that is long enough becomes shorter."""
        plan = op.plan(network("spectrogram", 48, 3), target=op.Target("macs", 0.5), data=slow())
        tried = [trial["resolution"]["frames"] for trial in plan.settings["tried"] if trial["resolution"]]
        assert tried and all(frames < 48 and features == FEATURES for frames, features in tried)
        assert plan.after["macs"] <= 0.5 * plan.before["macs"]

    def test_a_recurrent_network_may_see_fewer_frames(self) -> None:
        model = network("recurrent", 48, 3)
        plan = op.plan(model, target=op.Target("macs", 0.5), data=slow(), axes=("resolution",))
        assert 20 <= plan.resolution["frames"][0] <= 24
        assert PrunePlan.from_json(plan.to_json()).resolution == plan.resolution
        assert op.prune(model, plan).links[0].error < 1e-4

    def test_signals_keep_their_rate_unless_asked_for(self) -> None:
        net = Net()
        x = net.op("Relu", net.op("Conv", net.input((4, 1, 64), "signal"), net.weight(8, 1, 5), strides=[2]))
        x = net.op("Relu", net.op("Conv", x, net.weight(8, 8, 5)))
        net.output(net.linear(net.op("Flatten", net.op("GlobalAveragePool", x)), 4))
        rng = np.random.default_rng(0)
        batches = [{"signal": rng.standard_normal((4, 1, 64)).astype(np.float32)} for _ in range(6)]
        target = op.Target("macs", 0.5)
        usual, asked = (
            op.plan(net.model(), target=target, data=lambda: iter(batches), resolution=r) for r in (None, "auto")
        )
        assert not any(trial["resolution"] for trial in usual.settings.get("tried", []))
        assert any(trial["resolution"] for trial in asked.settings["tried"])
