"""Trained models on real data: accuracies as measured elsewhere, and as a loop of the test's own finds them."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from PIL import Image

from onnxprune.data import Recipe, open_data, split
from onnxprune.evaluation import evaluate
from onnxprune.model.file import load

SHARED = Path(__file__).parents[2] / "../shared"
pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the models and data of ../shared")

Samples = Iterator[tuple[NDArray[Any], int]]


def npz(name: str, images: str, prepare: Callable[[NDArray[Any]], NDArray[Any]]) -> Samples:
    with np.load(SHARED / "data" / name) as arrays:
        for image, label in zip(prepare(arrays[images].astype(np.float32)), arrays["labels"], strict=True):
            yield image[None], int(label)


def imagenet(prepare: Callable[[Image.Image], NDArray[Any]]) -> Samples:
    with zipfile.ZipFile(SHARED / "data/imagenet500_224.zip") as archive:
        for name in archive.namelist():
            yield prepare(Image.open(BytesIO(archive.read(name))).convert("RGB"))[None], int(name[:4])


def cifar(x: NDArray[Any]) -> NDArray[Any]:
    mean, std = np.array([0.485, 0.456, 0.406], "f4"), np.array([0.229, 0.224, 0.225], "f4")
    normalized: NDArray[Any] = ((x / 255 - mean) / std).transpose(0, 3, 1, 2)
    return normalized


def small(image: Image.Image) -> NDArray[Any]:
    return np.asarray(image.resize((128, 128), Image.Resampling.BILINEAR), np.float32) / 127.5 - 1


def bgr(image: Image.Image) -> NDArray[Any]:
    pixels: NDArray[Any] = np.asarray(image, np.float32)[..., ::-1] - np.array([103.94, 116.78, 123.68], "f4")
    return pixels.transpose(2, 0, 1).astype(np.float16)


CASES = [
    ("cifar_resnet20_ts", "cifar10_test423.npz", "", 0.920, 0, lambda: npz("cifar10_test423.npz", "images", cifar)),
    (
        "mnist_cntk",
        "mnist_6000.npz",
        "scale=1",
        0.989,
        0,
        lambda: npz("mnist_6000.npz", "images", lambda x: x[:, None]),
    ),
    ("mlptiny_kws_dscnn", "kws_mfcc_500.npz", "", 0.913, 0, lambda: npz("kws_mfcc_500.npz", "input", lambda x: x)),
    (
        "mobilenetv1_025_128_f32",
        "imagenet500_224.zip",
        "resize=128x128 label_offset=1",
        0.427,
        1,
        lambda: imagenet(small),
    ),
    pytest.param(
        *("squeezenet_fp16_winml", "imagenet500_224.zip", "channels=BGR mean=103.94,116.78,123.68", 0.61, 0),
        lambda: imagenet(bgr),
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize(("name", "data", "recipe", "published", "offset", "samples"), CASES)
def test_accuracies_are_those_measured_elsewhere(
    name: str, data: str, recipe: str, published: float, offset: int, samples: Callable[[], Samples]
) -> None:
    path = SHARED / "models" / f"{name}.onnx"
    proto = load(path).proto
    opened = open_data(SHARED / "data" / data, proto, recipe=Recipe.parse(recipe), limit=1500)
    chosen = range(len(opened)) if opened.chosen is None else opened.chosen
    session = onnxruntime.InferenceSession(path)
    (port,) = session.get_inputs()
    every = list(samples())
    hits = [session.run(None, {port.name: x})[0].argmax() == label + offset for x, label in (every[i] for i in chosen)]

    result = evaluate(proto, opened)

    top1 = result["top1"].model
    assert result.samples == len(hits)
    assert top1.value == pytest.approx(np.mean(hits), abs=1.5 / len(hits))  # a sample may tip over in a larger batch
    assert top1.value == pytest.approx(published, abs=0.012)  # which was measured on some of the samples
    if offset:  # the control: without it nothing is right
        assert evaluate(proto, open_data(SHARED / "data" / data, proto, limit=100))["top1"].model.value < 0.1


def test_a_large_archive_of_images_gives_a_subset_without_reading_the_rest() -> None:
    proto = load(SHARED / "models/cifar_resnet20_ts.onnx").proto
    data = open_data(SHARED / "data/cifar10_jpeg_train.zip", proto, limit=500, seed=1)
    assert len(data) == 500 and data.source.known_length == 50_000
    calibration, held_out = split(data, 300)
    assert (len(calibration), len(held_out)) == (200, 300)
    top1 = evaluate(proto, held_out)["top1"].model
    assert 0.70 < top1.value < 0.95
