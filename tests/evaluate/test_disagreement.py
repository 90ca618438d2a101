"""Samples on which models disagree: found, ordered and shown as plain NumPy and Pillow say."""

from __future__ import annotations

import io
from base64 import b64decode
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto
from PIL import Image

from onnxprune.data import Recipe, open_data
from onnxprune.data.showing import pixels_of, png
from onnxprune.evaluation import evaluate
from onnxprune.settings import TaskSettings
from tests.toolbox import Net, run_once


def flat(weight: np.ndarray[Any, Any], name: str = "logits", symbol: str = "N") -> ModelProto:
    """A model that multiplies by a matrix: its outputs are what the test computes."""
    net = Net(opset=17)
    x = net.input((2, len(weight)), "x", symbols={0: symbol})
    net.output(net.op("MatMul", x, net.const(weight.astype(np.float32)), name=name), symbols={0: symbol})
    return net.model()


RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 6)).astype(np.float32)
W = RNG.normal(size=(6, 4))
V = W + 0.5 * RNG.normal(size=W.shape)


def softmax(scores: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("batch", [7, 200])
def test_classes_that_differ_most_come_first(batch: int) -> None:
    labels = (X @ W).argmax(axis=1)
    data = open_data({"x": X, "labels": labels}, flat(W))
    found = evaluate(flat(V), data, against=flat(W), examples=5, batch=batch).examples
    its, mine = softmax(X @ W), softmax(X @ V)
    differ = its.argmax(axis=1) != mine.argmax(axis=1)
    lost = its.max(axis=1) - mine[np.arange(200), its.argmax(axis=1)]
    wanted = sorted(np.flatnonzero(differ), key=lambda row: -lost[row])[:5]
    assert differ.sum() > 10
    for example, row in zip(found, wanted, strict=True):
        assert example.name.endswith(f"sample {row}")
        assert example.original.startswith(f"class {its[row].argmax()} ({(X @ W)[row].max():.3g}")
        assert example.model.startswith(f"class {mine[row].argmax()} ")
        assert example.label == f"class {labels[row]}"
        assert example.picture is None and example.text is None


def test_what_agrees_is_no_example() -> None:
    data = open_data({"x": X}, flat(W))
    assert evaluate(flat(2 * W), data, against=flat(W), examples=5).examples == ()
    assert evaluate(flat(V), data, against=flat(W)).examples == ()  # none were to be kept
    labeled = open_data({"x": X, "labels": (X @ V).argmax(axis=1)}, flat(W))
    assert evaluate(flat(W), labeled, examples=5).examples == ()  # there is nothing to compare with


def test_numbers_differ_by_their_distance() -> None:
    data = open_data({"x": X, "labels": (X @ W).astype(np.float32)}, flat(W), reading=TaskSettings(task="regression"))
    found = evaluate(flat(V), data, against=flat(W), examples=3).examples
    far = np.sqrt((((X @ V - X @ W) / np.std(X @ W)) ** 2).mean(axis=1))
    order = np.argsort(-far)[:3]
    assert [int(e.name.rpartition(" ")[2]) for e in found] == order.tolist()
    assert [e.distance for e in found] == pytest.approx(far[order], rel=0.3)
    assert float(found[0].original.split(",")[0]) == pytest.approx((X @ W)[order[0], 0], rel=1e-3)


def images() -> ModelProto:
    """Scores of three classes from the mean of each channel."""
    net = Net(opset=17)
    x = net.input((1, 3, 8, 8), "image", symbols={0: "N"})
    pooled = net.op("Flatten", net.op("GlobalAveragePool", x))
    net.output(net.op("MatMul", pooled, net.const(np.eye(3, dtype=np.float32)), name="scores"), symbols={0: "N"})
    return net.model()


def mixed() -> ModelProto:
    """The same, with the classes permuted."""
    model = images()
    weight = next(t for t in model.graph.initializer if list(t.dims) == [3, 3])
    weight.raw_data = np.roll(np.eye(3, dtype=np.float32), 1, axis=1).tobytes()
    return model


def decoded(uri: str) -> np.ndarray[Any, Any]:
    with Image.open(io.BytesIO(b64decode(uri.removeprefix("data:image/png;base64,")))) as image:
        return np.asarray(image)


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
def test_pictures_are_the_pixels_that_went_in(channels: str) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    recipe = Recipe.parse(f"channels={channels} scale=1/255 mean=0.485,0.456,0.406 std=0.229,0.224,0.225 layout=NCHW")
    data = open_data({"images": pixels}, images(), recipe=recipe)
    found = evaluate(mixed(), data, against=images(), examples=4).examples
    assert len(found) == 4
    for example in found:
        assert example.picture is not None
        row = int(example.name.rpartition(" ")[2])
        assert np.array_equal(decoded(example.picture), pixels[row])


@pytest.mark.parametrize("shape", [(5, 7, 3), (64, 48, 1)])
def test_png_is_read_back(shape: tuple[int, int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    with Image.open(io.BytesIO(png(pixels))) as image:
        image.verify()
    with Image.open(io.BytesIO(png(pixels))) as image:
        assert np.array_equal(np.asarray(image).reshape(shape), pixels)


def test_what_is_no_image_has_no_picture() -> None:
    assert pixels_of(np.zeros((3, 2, 2), np.float32)) is None  # too small to see
    assert pixels_of(np.zeros((5, 64), np.float32)) is None
    assert pixels_of(np.zeros((7, 16, 16), np.float32)) is None  # seven channels
    assert pixels_of(np.full((3, 8, 8), np.nan, np.float32)) is None
    assert pixels_of(np.zeros((1, 1, 8, 1 << 14), np.float32)) is None
    large = pixels_of(np.zeros((3, 1000, 500), np.float32))
    assert large is not None and max(large.shape) <= 160


def test_the_range_is_stretched_without_a_recipe() -> None:
    image = np.linspace(-2, 2, 64, dtype=np.float32).reshape(1, 8, 8)
    shown = pixels_of(image)
    assert shown is not None and shown[0, 0, 0] == 0 and shown[-1, -1, 0] == 255
    bytes_ = pixels_of(np.full((8, 8, 3), 77, np.uint8))
    assert bytes_ is not None and (bytes_ == 77).all()


def test_segmentations_differ_by_positions() -> None:
    def masks(shift: float) -> ModelProto:
        net = Net(opset=17)
        x = net.input((1, 1, 6, 6), "x", symbols={0: "N"})
        zero = net.op("Mul", x, net.const(np.float32(0)))
        both = net.op("Concat", net.op("Sub", x, net.const(np.float32(shift))), zero, axis=1)
        net.output(both, symbols={0: "N"})
        return net.model()

    x = np.random.default_rng(2).normal(size=(20, 1, 6, 6)).astype(np.float32)
    data = open_data({"x": x}, masks(0), reading=TaskSettings(task="segmentation"))
    found = evaluate(masks(0.3), data, against=masks(0), examples=2).examples
    differ = ((x > 0.3) != (x > 0)).reshape(20, -1).mean(axis=1)
    assert next(int(e.name.rpartition(" ")[2]) for e in found) == differ.argmax()
    outputs = next(iter(run_once(masks(0), {"x": x[[differ.argmax()]]}).values()))
    share = (outputs.argmax(axis=1) == 0).mean()
    assert f"class 0 at {share:.1%}" in found[0].original
