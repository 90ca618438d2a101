"""Networks that resize their images, against the same networks built for the smaller size and fed from outside."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from onnx.reference import ReferenceEvaluator

import onnxprune as op
from onnxprune.errors import PlanError, VerificationError
from onnxprune.normalize import normalize
from onnxprune.resolution.images import find_images
from onnxprune.resolution.interpolation import interpolated
from onnxprune.resolution.proof import prove_resized
from onnxprune.resolution.resize import Resized, resize
from onnxprune.shapes import concretize
from tests.toolbox import Net, run_once

Array = NDArray[Any]
Size = tuple[int, ...]

UINT8 = onnx.TensorProto.UINT8
ENDS = ("global", "window", "mean", "tokens", "squeezed")


def bilinear(array: Array, size: Size, axes: Size = (2, 3)) -> Array:
    """Interpolate position by position, as the definition has it: centers of pixels, the border repeated."""
    for axis, new in zip(axes, size, strict=True):
        old, rows = array.shape[axis], []
        for i in range(new):
            at = min(max((i + 0.5) * old / new - 0.5, 0), old - 1)
            low = int(at)
            high = min(low + 1, old - 1)
            rows.append((1 - (at - low)) * array.take(low, axis) + (at - low) * array.take(high, axis))
        array = np.stack(rows, axis)
    return array


def network(size: Size, seed: int, opset: int = 17, full: Size | None = None) -> ModelProto:
    """Return a random network for a size of the image; its weights are the same for every size.

    Args:
        size: height and width.
        seed: of structure and weights.
        opset: the opset.
        full: the size for which a positional embedding is drawn before it is interpolated.
    """
    net, choose = Net(opset, seed), np.random.default_rng(seed)
    nhwc = bool(choose.integers(2))
    x = net.input((1, *size, 3) if nhwc else (1, 3, *size), "image")
    if nhwc:
        x = net.op("Mul", x, net.const(np.array([0.5, 1.0, 2.0], np.float32)))
        x = net.op("Transpose", x, perm=[0, 3, 1, 2])
    x = net.op("Relu", net.conv(x, 8, kernel=3, strides=[2, 2], name="stem"))
    for i in range(int(choose.integers(1, 3))):
        kind = choose.choice(["plain", "residual", "gate", "enlarged", "halves"])
        y = net.op("Relu", net.conv(x, 8, kernel=3, name=f"body{i}"))
        if kind == "residual" and net.shape(x) == net.shape(y):
            y = net.op("Add", x, y)
        elif kind == "gate":
            y = net.op("Mul", y, net.op("Sigmoid", net.conv(net.op("GlobalAveragePool", y), 8, name=f"gate{i}")))
        elif kind == "enlarged":
            small = net.op("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
            sizes = net.const(np.array(net.shape(y), np.int64))
            y = net.op("Concat", y, net.op("Resize", small, "", "", sizes, mode="nearest"), axis=1)
        elif kind == "halves":
            count, rows = net.shape(y)[1], net.shape(y)[2]
            y = net.op("Concat", *net.split(y, [rows // 2, rows // 2], 2), axis=1)
            assert count
        x = net.op("Relu", net.conv(y, 8, kernel=3, strides=[2, 2], name=f"down{i}")) if kind != "halves" else y
    end = ENDS[int(choose.integers(len(ENDS)))]
    channels, *map_ = net.shape(x)[1:]
    if end == "global":
        x = net.op("Flatten", net.op("GlobalAveragePool", x))
    elif end == "window":
        pool = "AveragePool" if choose.integers(2) else "MaxPool"
        x = net.reshape(net.op(pool, x, kernel_shape=map_, strides=map_), [1, channels])
    elif end == "mean":
        x = net.reduce("ReduceMean", x, [2, 3], keepdims=0)
    elif end == "squeezed":
        x = net.reduce("ReduceMean", net.reshape(x, [1, channels, int(np.prod(map_))]), [2], keepdims=0)
    else:  # tokens with a positional embedding, mixed by attention
        count = int(np.prod(map_))
        x = net.op("Transpose", net.reshape(x, [1, channels, count]), perm=[0, 2, 1])
        whole = map_ if full is None else [n * m // o for n, m, o in zip(map_, full, size, strict=True)]
        embedding = np.random.default_rng(seed).standard_normal((1, *whole, channels)).astype(np.float32)
        class_token = net.weight(1, 1, channels)
        positions = bilinear(embedding, (map_[0], map_[1]), (1, 2)).reshape(1, count, channels)
        positions = np.concatenate([np.full((1, 1, channels), 0.5, np.float32), positions], 1).astype(np.float32)
        x = net.op("Add", net.op("Concat", class_token, x, axis=1), net.const(positions))
        heads = net.op("Transpose", net.reshape(x, [1, count + 1, 2, channels // 2]), perm=[0, 2, 1, 3])
        scores = net.op("MatMul", heads, net.op("Transpose", heads, perm=[0, 1, 3, 2]))
        mixed = net.op("MatMul", net.op("Softmax", scores, axis=-1), heads)
        x = net.reshape(net.op("Transpose", mixed, perm=[0, 2, 1, 3]), [1, count + 1, channels])
        x = net.reshape(net.slice(x, [0], [1], [1]), [1, channels])
    net.output(net.op("Gemm", x, net.weight(channels, 5, name="head"), net.weight(5)))
    return net.model()


def resized(model: ModelProto, size: Size) -> tuple[ModelProto, Resized]:
    proto = normalize(model)
    shapes = concretize(proto)
    (image,) = find_images(proto, shapes)
    return proto, resize(proto, shapes, {image.name: size})


def image(model: ModelProto, seed: int = 0) -> Array:
    shape = tuple(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def outside(x: Array, size: Size) -> Array:
    return bilinear(x, size, (1, 2) if x.shape[-1] == 3 else (2, 3)).astype(np.float32)


def check_against_built(built: Callable[[Size], ModelProto], size: Size) -> None:
    """Compare a network for 16x16 pixels that resizes them with the one that is built for another size."""
    model = built((16, 16))
    proto, found = resized(model, size)
    x = image(model)
    expected, actual = run_once(built(size), {"image": outside(x, size)}), run_once(found.proto, {"image": x})
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-3, atol=1e-4)
    assert prove_resized(proto, found, {"image": x}) < 1e-4


@pytest.mark.parametrize("opset", [13, 17, 18])
@given(seed=st.integers(0, 2**16), cells=st.tuples(st.integers(1, 3), st.integers(1, 3)))
@settings(max_examples=12)
def test_equals_the_network_for_the_smaller_size(seed: int, cells: Size, opset: int) -> None:
    full, size = (32, 48), (8 * cells[0], 8 * cells[1] + 16)
    model = network(full, seed, opset)
    proto, found = resized(model, size)
    x = image(model)
    expected = run_once(network(size, seed, opset, full), {"image": outside(x, size)})
    actual = run_once(found.proto, {"image": x})
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=2e-3, atol=2e-4)
    assert prove_resized(proto, found, {"image": x}) < 1e-4
    onnx.checker.check_model(found.proto, full_check=True)
    for ours, given_ in ((found.proto.graph.input, model.graph.input), (found.proto.graph.output, model.graph.output)):
        assert list(ours) == list(given_)


@given(seed=st.integers(0, 2**16))
@settings(max_examples=10)
def test_with_channels_equals_the_masked_network_for_the_smaller_size(seed: int) -> None:
    full, size = (32, 32), (24, 16)
    model = network(full, seed)
    small = op.prune_model(model, resolution="24x16", ratio=0.5, round_to=1, attention="width")
    masked = network(size, seed, 17, full)
    weights = {t.name: t for t in masked.graph.initializer}
    for name, axes in small.plan.removed.items():
        if name not in weights:  # an interpolated embedding
            return
        array = numpy_helper.to_array(weights[name]).copy()
        for axis, positions in axes.items():
            array[(slice(None),) * axis + (list(positions),)] = 0
        weights[name].CopyFrom(numpy_helper.from_array(array, name))
    x = image(model)
    expected = run_once(masked, {"image": outside(x, size)})
    actual = run_once(small.model.proto, {"image": x})
    assert small.plan.removed
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=2e-3, atol=2e-4)
    assert small.plan.after["macs"] < 0.6 * small.plan.before["macs"]


def test_the_oracle_sees_another_size_and_another_constant() -> None:
    seed = next(s for s in range(99) if "MaxPool" in [n.op_type for n in network((32, 32), s).graph.node])
    proto, found = resized(network((32, 32), seed), (16, 16))
    x = {"image": image(proto)}
    assert prove_resized(proto, found, x) < 1e-4
    scales = next(t for t in found.proto.graph.initializer if t.name.endswith("_scales"))
    wrong = numpy_helper.to_array(scales).copy()
    wrong[wrong != 1] *= 1.01
    scales.CopyFrom(numpy_helper.from_array(wrong, scales.name))
    with pytest.raises(VerificationError, match="OP501"):
        prove_resized(proto, found, x)


def test_the_oracle_sees_a_window_that_no_longer_covers_the_map() -> None:
    net = Net()
    x = net.conv(net.input((1, 3, 16, 16), "image"), 4, kernel=3)
    x = net.op("AveragePool", x, kernel_shape=[16, 16])
    net.output(net.op("Gemm", net.reshape(x, [1, 4]), net.weight(4, 5)))
    proto, found = resized(net.model(), (8, 8))
    x_ = {"image": image(proto)}
    assert prove_resized(proto, found, x_) < 1e-4
    for node in found.proto.graph.node:
        if node.op_type == "AveragePool":
            del node.attribute[:]
            node.attribute.append(onnx.helper.make_attribute("kernel_shape", [8, 7]))
            node.attribute.append(onnx.helper.make_attribute("strides", [1, 2]))
    with pytest.raises(VerificationError, match="OP501"):
        prove_resized(proto, found, x_)


@pytest.mark.parametrize(("old", "new"), [(7, 3), (16, 16), (3, 8), (32, 11), (224, 160)])
def test_interpolation_is_that_of_the_standard(old: int, new: int) -> None:
    x = np.random.default_rng(0).standard_normal((1, 2, old, 5)).astype(np.float32)
    expected = bilinear(x.astype(np.float64), (new, 4))
    np.testing.assert_allclose(interpolated(x, {2: new, 3: 4}), expected, atol=1e-6)
    if old < 50:  # the reference implementation is slow
        net = Net(13)
        y = net.op("Resize", net.input(x.shape, "x"), "", "", net.const(np.array([1, 2, new, 4])), mode="linear")
        net.output(y)
        (reference,) = ReferenceEvaluator(net.model(check=False)).run(None, {"x": x})
        np.testing.assert_allclose(reference, expected, atol=1e-5)


@pytest.mark.parametrize("nhwc", [False, True])
def test_old_opsets_interpolate_by_gathers(nhwc: bool) -> None:
    def built(size: Size) -> ModelProto:
        net = Net(8)
        x = net.input((1, *size, 3) if nhwc else (1, 3, *size), "image")
        x = net.op("Transpose", x, perm=[0, 3, 1, 2]) if nhwc else x
        net.output(net.op("Flatten", net.op("GlobalMaxPool", net.conv(x, 4, kernel=3, strides=[2, 2]))))
        return net.model()

    model = built((20, 20))
    proto, found = resized(model, (13, 9))
    x = image(model)
    assert "Resize" not in {n.op_type for n in found.proto.graph.node}
    actual = run_once(found.proto, {"image": x})
    for name, value in run_once(built((13, 9)), {"image": outside(x, (13, 9))}).items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-4, atol=1e-5)
    assert prove_resized(proto, found, {"image": x}) < 1e-4


def test_symbolic_sizes_are_scaled() -> None:
    net = Net()
    x = net.input((1, 3, 32, 32), "image", symbols={0: "n", 2: "h", 3: "w"})
    x = net.op("GlobalAveragePool", net.op("Relu", net.conv(x, 4, kernel=3, strides=[2, 2])))
    net.output(net.op("Flatten", x), symbols={0: "n"})
    model = net.model()
    _, found = resized(model, (112, 112))  # of the 224 at which it is traced
    x_ = np.random.default_rng(0).standard_normal((2, 3, 40, 60)).astype(np.float32)
    expected = run_once(model, {"image": outside(x_, (20, 30))})
    actual = run_once(found.proto, {"image": x_})
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-4, atol=1e-5)


def test_bytes_are_resized_as_numbers() -> None:
    net = Net()
    x = net.input((1, 3, 16, 16), "image", dtype=UINT8)
    x = net.op("Cast", x, to=1)
    net.output(net.op("Flatten", net.op("GlobalAveragePool", net.op("Relu", net.conv(x, 4, kernel=3)))))
    proto, found = resized(net.model(), (9, 9))
    x_ = np.random.default_rng(0).integers(0, 256, (1, 3, 16, 16), dtype=np.uint8)
    assert prove_resized(proto, found, {"image": x_}) < 1e-4


def flattened(net: Net, x: str) -> str:
    return net.linear(net.op("Flatten", x), 5)


def dense(net: Net, x: str) -> str:
    return net.conv(x, 2, name="mask")


def grid(net: Net, x: str) -> str:
    x = net.reshape(net.conv(x, 4), [1, 4, 4, 2, 4, 2])  # windows of 2
    return net.reduce("ReduceMean", x, [2, 3, 4, 5], keepdims=0)


def mixed(net: Net, x: str) -> str:
    x = net.op("MatMul", net.reshape(x, [1, 8, 64]), net.weight(64, 64))
    return net.reduce("ReduceMean", x, [2], keepdims=0)


def cut(net: Net, x: str) -> str:
    return net.reduce("ReduceMean", net.slice(x, [3], [5], [2]), [2, 3], keepdims=0)


def picked(net: Net, x: str) -> str:
    x = net.op("Gather", x, net.const(np.array([3, 5])), axis=2)
    return net.reduce("ReduceMean", x, [2, 3], keepdims=0)


def stepped(net: Net, x: str) -> str:
    """Columns as frames, as in text recognition: their length follows the height."""
    columns = net.op("Transpose", net.reshape(x, [1, 64, 8]), perm=[2, 0, 1])
    _, last = net.ops("RNN", columns, net.weight(1, 4, 64), net.weight(1, 4, 4), count=2, hidden_size=4)
    return net.squeeze(last, [0])


def masked_positions(net: Net, x: str) -> str:
    x = net.reshape(x, [1, 8, 64])
    x = net.op("Where", net.const(np.ones(64, bool)), x, net.const(np.zeros((), np.float32)))
    return net.reduce("ReduceMean", x, [2], keepdims=0)


def test_groups_of_channels_are_normalized_as_exporters_write_it() -> None:
    """By an InstanceNormalization between two Reshapes, the second of which has all sizes as constants."""

    def built(size: Size) -> ModelProto:
        net = Net()
        x = net.conv(net.input((1, 3, *size), "image"), 8, kernel=3, strides=[2, 2])
        grouped = net.reshape(x, [0, 2, -1])
        grouped = net.op("InstanceNormalization", grouped, net.const(np.ones(2, np.float32)), net.weight(2))
        x = net.op("Relu", net.reshape(grouped, net.shape(x)))
        net.output(net.op("Flatten", net.op("GlobalAveragePool", net.conv(x, 4))))
        return net.model()

    check_against_built(built, (12, 8))


@pytest.mark.parametrize(
    ("end", "cause"),
    [
        (flattened, "Incompatible dimensions"),
        (dense, "an output would have 1x2x4x4 instead of 1x2x8x8"),
        (grid, "it divides 8 positions, now 4, into 4x2"),
        (mixed, "MatMul"),
        (cut, "it cuts an axis of 8, now 4, at position"),
        (picked, "it reads fixed positions"),
        (stepped, "it reads frames of 64 values, now 32"),
        (masked_positions, "Where"),
    ],
)
def test_what_needs_its_size_is_named(end: Callable[[Net, str], str], cause: str) -> None:
    net = Net()
    x = net.op("Relu", net.conv(net.input((1, 3, 16, 16), "image"), 8, kernel=3, strides=[2, 2]))
    net.output(end(net, x))
    with pytest.raises(PlanError, match=f"(?s)OP319.*({cause})"):
        resized(net.model(), (8, 8))


def test_outputs_that_are_enlarged_to_a_fixed_size_keep_it() -> None:
    def built(size: Size) -> ModelProto:
        net = Net()
        x = net.op("Relu", net.conv(net.input((1, 3, *size), "image"), 8, kernel=3, strides=[2, 2]))
        x = net.op("Resize", net.conv(x, 2), "", "", net.const(np.array([1, 2, 16, 16])), mode="linear")
        net.output(net.op("Sigmoid", x))
        return net.model()

    check_against_built(built, (8, 8))


def test_the_same_size_changes_no_constant() -> None:
    for seed in range(6):
        proto, found = resized(network((32, 32), seed), (32, 32))
        assert found.edits == ()
        x = {"image": image(proto)}
        for name, value in run_once(proto, x).items():
            np.testing.assert_allclose(run_once(found.proto, x)[name], value, rtol=1e-4, atol=1e-5)


def test_no_image() -> None:
    net = Net()
    net.output(net.linear(net.input((1, 16), "x"), 4))
    proto = normalize(net.model())
    assert find_images(proto, concretize(proto)) == ()
    with pytest.raises(PlanError, match="OP319"):
        resize(proto, concretize(proto), {"x": (2, 2)})


def test_strides_and_axes_are_found() -> None:
    net = Net()
    x = net.input((1, 32, 48, 3), "image")
    x = net.conv(net.op("Transpose", x, perm=[0, 3, 1, 2]), 4, kernel=3, strides=[2, 2])
    y = net.upsample(net.conv(x, 4, kernel=3, strides=[2, 2]), 2)
    net.output(net.conv(net.op("Add", x, y), 4, kernel=3, strides=[2, 2]))
    proto = normalize(net.model())
    (found,) = find_images(proto, concretize(proto))
    assert dataclasses.astuple(found) == ("image", "image", (1, 2), (32, 48), 4, 3)
