"""Outputs that are maps of the image get their size back: against the smaller network, enlarged outside."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import given, settings, strategies as st
from onnx import ModelProto, helper, numpy_helper

import onnxprune as op
from onnxprune.errors import PlanError, VerificationError
from onnxprune.normalize import normalize
from onnxprune.planning.plan import PrunePlan
from onnxprune.resolution.proof import prove_resized
from onnxprune.resolution.resize import Resized, resize
from onnxprune.shapes import concretize
from tests.resolution.support import smooth
from tests.resolution.test_resize import Size, bilinear, image
from tests.toolbox import Net, run_once


def dense(size: Size, seed: int, *, last: bool = False) -> ModelProto:
    """Return a network with a mask of the image's size, another of a part of it, and scores of the whole image.

    Args:
        size: height and width.
        seed: of weights.
        last: whether channels come last, in the input and the outputs.
    """
    net = Net(17, seed)
    x = net.input((1, *size, 3) if last else (1, 3, *size), "image")
    x = net.op("Transpose", x, perm=[0, 3, 1, 2]) if last else x
    whole = net.op("Relu", net.conv(x, 8, kernel=3, name="whole"))
    half = net.op("Relu", net.conv(whole, 8, kernel=3, strides=[2, 2], name="half"))
    up = net.op("ConvTranspose", half, net.weight(8, 8, 2, 2), strides=[2, 2])
    masks = [net.conv(net.op("Add", whole, up), 2, name="mask"), net.conv(half, 3, name="coarse")]
    for name in masks:
        net.output(net.op("Transpose", name, perm=[0, 2, 3, 1]) if last else net.op("Sigmoid", name))
    net.output(net.op("Flatten", net.op("GlobalAveragePool", half)))
    return net.model()


def restored(model: ModelProto, size: Size) -> tuple[ModelProto, Resized]:
    proto = normalize(model)
    return proto, resize(proto, concretize(proto), {"image": size}, outputs=True)


@given(seed=st.integers(0, 2**16), cells=st.tuples(st.integers(2, 7), st.integers(2, 11)), last=st.booleans())
@settings(max_examples=12)
def test_equals_the_smaller_network_enlarged_outside(seed: int, cells: Size, last: bool) -> None:
    full, size, axes = (16, 24), (2 * cells[0], 2 * cells[1]), (1, 2) if last else (2, 3)
    model = dense(full, seed, last=last)
    proto, found = restored(model, size)
    assert len(found.maps) == 2
    x = image(model, seed)
    assert prove_resized(proto, found, {"image": x}) < 1e-4
    outside = bilinear(x, size, axes).astype(np.float32)
    small = run_once(dense(size, seed, last=last), {"image": outside})
    actual = run_once(found.proto, {"image": x})
    assert list(found.proto.graph.output) == list(model.graph.output)
    for name, value in run_once(model, {"image": x}).items():
        expected = small[name]
        if value.ndim == 4:
            expected = bilinear(expected, (value.shape[axes[0]], value.shape[axes[1]]), axes)
        np.testing.assert_allclose(actual[name], expected, rtol=2e-3, atol=5e-4)
    onnx.checker.check_model(found.proto, full_check=True)


def test_the_proof_sees_another_size() -> None:
    model = dense((16, 16), 0)
    proto, found = restored(model, (8, 8))
    scales = [t for t in found.proto.graph.initializer if t.name.endswith("_map_scales")]
    assert len(scales) == 2 and prove_resized(proto, found, {"image": image(model)}) < 1e-4
    for tensor in scales:
        tensor.CopyFrom(numpy_helper.from_array(np.array([1, 1, 2.05, 2.05], np.float32), tensor.name))
    with pytest.raises(VerificationError, match="OP501"):
        prove_resized(proto, found, {"image": image(model)})


def test_only_where_it_is_allowed() -> None:
    model = dense((32, 32), 0)
    with pytest.raises(PlanError, match=r"(?s)OP319.*instead of 1x2x32x32.*`resize_outputs` enlarges"):
        op.plan(model, resolution=16)
    plan = op.plan(op.analyze(model, resize_outputs=True), resolution=16, ratio=0.3)
    small = op.prune(model, PrunePlan.from_json(plan.to_json()))
    assert plan.removed and small.links[0].error < 1e-4
    x = {"image": image(model)}
    assert {n: v.shape for n, v in run_once(small.proto, x).items()} == {
        n: v.shape for n, v in run_once(model, x).items()
    }


def test_the_planner_tries_smaller_images_then() -> None:
    half, batches = op.Target("macs", 0.5), smooth()
    without, plan = (
        op.plan(op.analyze(dense((32, 32), 0), resize_outputs=allowed), target=half, data=batches)
        for allowed in (False, True)
    )
    assert not any(trial["resolution"] for trial in without.settings.get("tried", []))
    assert any(trial["resolution"] for trial in plan.settings["tried"])


def flattened(net: Net, x: str) -> str:
    return net.reshape(net.conv(x, 2), [1, 2, 64])


def captured(net: Net, x: str) -> str:
    """Return a map that a loop's body reads, too."""
    mask = net.conv(x, 2, name="mask")
    float_ = onnx.TensorProto.FLOAT
    body = helper.make_graph(
        [
            helper.make_node("Add", ["carried", mask], ["next"]),
            helper.make_node("Identity", ["condition"], ["go_on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", onnx.TensorProto.INT64, []),
            helper.make_tensor_value_info("condition", onnx.TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried", float_, None),
        ],
        [
            helper.make_tensor_value_info("go_on", onnx.TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", float_, None),
        ],
    )
    count = net.op("Cast", net.op("ReduceMax", net.op("Abs", x), keepdims=0), to=onnx.TensorProto.INT64)
    (looped,) = net.ops("Loop", count, "", mask, body=body, count=1, shapes=[(1, 2, 8, 8)])
    net.output(net.op("ReduceMean", looped, keepdims=0))
    return mask


def ending(end: Callable[[Net, str], str]) -> ModelProto:
    net = Net()
    x = net.op("Relu", net.conv(net.input((1, 3, 16, 16), "image"), 8, kernel=3, strides=[2, 2]))
    net.output(end(net, x))
    return net.model()


def test_what_is_no_map_of_the_image_is_refused() -> None:
    with pytest.raises(PlanError, match=r"(?s)OP319.*instead of 1x2x64.*only outputs that are maps"):
        restored(ending(flattened), (8, 8))


def test_a_loop_goes_on_with_the_smaller_map() -> None:
    proto, found = restored(ending(captured), (8, 8))
    x = {"image": image(proto)}
    assert prove_resized(proto, found, x) < 1e-4
    assert [value.shape for value in run_once(found.proto, x).values()] == [(), (1, 2, 8, 8)]


def test_frames_get_their_scores_back() -> None:
    def built(frames: int) -> ModelProto:
        net = Net()
        x = net.op("Relu", net.op("Conv", net.input((1, 10, frames), "frames"), net.weight(8, 10, 3), pads=[1, 1]))
        net.output(net.op("Conv", x, net.weight(4, 8, 1)))
        return net.model()

    proto = normalize(built(20))
    found = resize(proto, concretize(proto), {"frames": (13,)}, outputs=True)
    x = np.random.default_rng(0).standard_normal((1, 10, 20)).astype(np.float32)
    assert prove_resized(proto, found, {"frames": x}) < 1e-4
    (small,) = run_once(built(13), {"frames": bilinear(x, (13,), (2,)).astype(np.float32)}).values()
    (actual,) = run_once(found.proto, {"frames": x}).values()
    np.testing.assert_allclose(actual, bilinear(small, (20,), (2,)), rtol=2e-3, atol=2e-4)
