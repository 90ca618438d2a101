"""The preprocessing that suits a network: networks whose inputs are known, and controls where nothing tells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxprune.data import Data, Recipe, open_data
from onnxprune.evaluation import preprocessing
from onnxprune.evaluation.preprocessing import suited
from onnxprune.settings import DataSettings
from onnxprune.workflow.inputs import as_opened, open_samples
from tests.data.support import model

linear_model = pytest.importorskip("sklearn.linear_model", reason="needs the dev extra: scikit-learn")
pytestmark = pytest.mark.dev

RNG = np.random.default_rng(0)
# Four classes of images: the half that is bright, and in which color.
LABELS = np.arange(48) % 4
IMAGES = RNG.integers(0, 90, (48, 8, 8, 3)).astype(np.uint8)
for image, label in zip(IMAGES, LABELS, strict=True):
    color = np.array([150, 60, 10], np.uint8)  # reddish
    image[slice(0, 4) if label < 2 else slice(4, 8)] += color if label % 2 else color[::-1]


def values(recipe: Recipe) -> NDArray[np.float32]:
    """Preprocess the images by hand, NCHW."""
    x = IMAGES[..., ::-1] if recipe.channels == "BGR" else IMAGES
    x = x.astype(np.float64) * (recipe.scale or 1) - np.array(recipe.mean or (0.0,))
    return (x / np.array(recipe.std or (1.0,))).transpose(0, 3, 1, 2).astype(np.float32)


def network(recipe: Recipe, *, norm: bool = False, width: int = 8) -> onnx.ModelProto:
    """A convolution, with BatchNormalization or a bias, and classes trained by scikit-learn, on inputs of a recipe."""
    x = values(recipe)
    weight = RNG.standard_normal((width, 3, 1, 1)).astype(np.float32)
    z = np.einsum("oi,nihw->nohw", weight[:, :, 0, 0], x)
    mean, deviation = z.mean(axis=(0, 2, 3)), z.std(axis=(0, 2, 3))
    features = np.maximum((z - mean[:, None, None]) / deviation[:, None, None], 0)
    pooled = features.reshape(48, width, 2, 4, 2, 4).mean(axis=(3, 5)).reshape(48, -1)
    fitted = linear_model.LogisticRegression(C=3.0, max_iter=1000).fit(pooled, LABELS)
    arrays: dict[str, Any] = {"v": fitted.coef_.T, "c": fitted.intercept_}
    if norm:
        arrays |= {"w": weight, "g": np.ones(width), "b": np.zeros(width), "m": mean, "s": deviation**2}
        first = "z = Conv(x, w)\n y = BatchNormalization<epsilon=0.0>(z, g, b, m, s)"
    else:
        arrays |= {"w": weight / deviation[:, None, None, None], "b": -mean / deviation}
        first = "y = Conv(x, w, b)"
    body = f"{first}\n r = Relu(y)\n p = AveragePool<kernel_shape=[4,4], strides=[4,4]>(r)\n f = Flatten(p)\n"
    proto = model("float[N,3,8,8] x", outputs="float[N,4] o", body=f"{body} o = Gemm(f, v, c)")
    for name, array in arrays.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array, np.float32), name))
    return proto


def opened(proto: onnx.ModelProto, *, labeled: bool = False, recipe: str = "") -> Data:
    arrays = {"images": IMAGES, **({"labels": LABELS} if labeled else {})}
    return open_data(arrays, proto, recipe=Recipe.parse(recipe))


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize(
    "text",
    [
        "scale=1",
        "scale=1/255",
        "scale=1/127.5 mean=1",
        "scale=1/255 mean=0.485,0.456,0.406 std=0.229,0.224,0.225",
        "mean=123.68,116.779,103.939",
    ],
)
def test_statistics_and_sizes_tell(text: str, norm: bool) -> None:
    right = Recipe.parse(f"channels=RGB {text}")
    proto = network(right, norm=norm)
    data, found = suited(proto, opened(proto))
    assert found is not None and found.samples == 32
    assert right in found.recipes or not norm  # without statistics, the size tells no more than this:
    far = [r for r in found.recipes if ((r.scale or 1) == 1) != ((right.scale or 1) == 1)]
    assert not far  # another size of values by two orders is never confused
    assert data.recipe == found.recipes[0]


def test_statistics_of_every_position_are_none_of_channels() -> None:
    """BatchNormalization-7 with spatial=0: the size of the layer's outputs tells, as without statistics."""
    right = Recipe.parse("channels=RGB scale=1/255")
    proto = network(right, norm=True, width=6)
    node = next(n for n in proto.graph.node if n.op_type == "BatchNormalization")
    node.attribute.append(onnx.helper.make_attribute("spatial", 0))
    for tensor in proto.graph.initializer:
        if tensor.name in node.input[1:]:
            spread = np.broadcast_to(numpy_helper.to_array(tensor)[:, None, None], (6, 8, 8))
            tensor.CopyFrom(numpy_helper.from_array(spread.copy(), tensor.name))
    proto.opset_import[0].version = 8
    _, found = suited(proto, opened(proto))
    assert found is not None
    assert not [r for r in found.recipes if (r.scale or 1) == 1]


def test_labels_tell_what_confidence_cannot() -> None:
    right = Recipe.parse("channels=BGR scale=1/255 mean=0.406,0.456,0.485 std=0.225,0.224,0.229")
    proto = network(right)
    data, found = suited(proto, opened(proto, labeled=True))
    assert found is not None and found.recipes[0] == right
    np.testing.assert_allclose(next(data.batches(48)).inputs["x"], values(right), rtol=1e-5, atol=1e-6)
    assert "channels=BGR scale=1/255 mean=0.406,0.456,0.485" in str(found) and "is a guess" in str(found)


def test_shifted_labels_still_tell() -> None:
    right = Recipe.parse("channels=BGR scale=1/255 mean=0.406,0.456,0.485 std=0.225,0.224,0.229")
    proto = network(right)
    data = open_data({"images": IMAGES, "labels": LABELS + 1}, proto, recipe=Recipe(label_offset=0))
    _, found = suited(proto, data)
    assert found is not None and found.recipes[0] == right


def test_where_nothing_tells_the_guess_stays_and_others_are_named() -> None:
    body = "d = Constant<value_float=0.0>()\n m = Mul(x, d)\n p = GlobalAveragePool(m)\n y = Flatten(p)"
    proto = model("float[N,3,8,8] x", outputs="float[N,3] y", body=body)
    data, found = suited(proto, opened(proto))
    assert found is not None and len(found.recipes) == found.tried
    assert found.recipes[0] == Recipe.parse("channels=RGB scale=1/255 mean=0.485,0.456,0.406 std=0.229,0.224,0.225")
    assert "would suit the network as well" in str(found) and data.fits[0].recipe == opened(proto).fits[0].recipe


@pytest.mark.parametrize("recipe", ["scale=1/255", "scale=1", "mean=1 channels=BGR"])
def test_what_the_user_says_is_not_tried(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = network(Recipe.parse("channels=RGB scale=1/127.5 mean=1"))
    monkeypatch.setattr(preprocessing, "Runner", None)
    data = opened(proto, recipe=recipe)
    assert suited(proto, data) == (data, None)
    assert not any("assumed" in note or "guess" in note for note in data.notes)


def test_the_order_that_the_user_says_is_kept() -> None:
    proto = network(Recipe.parse("channels=RGB scale=1"))
    _, found = suited(proto, opened(proto, recipe="channels=BGR"))
    assert found is not None and all(recipe.channels == "BGR" for recipe in found.recipes)


def test_integers_and_arrays_of_numbers_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocessing, "Runner", None)
    raw = model("uint8[N,3,8,8] x")
    assert suited(raw, open_data({"images": IMAGES}, raw))[1] is None
    proto = network(Recipe.parse("channels=RGB scale=1"))
    ready = {"images": IMAGES.transpose(0, 3, 1, 2).astype(np.float32)}
    assert suited(proto, open_data(ready, proto))[1] is None


def test_it_is_a_warning_and_other_data_are_read_alike(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    right = Recipe.parse("channels=RGB scale=1")
    proto = network(right, norm=True)
    np.savez(tmp_path / "images.npz", images=IMAGES)
    settings = DataSettings(data=str(tmp_path / "images.npz"))
    data = open_samples(settings, proto, seed=0, limit=20)
    (warning,) = [r for r in caplog.records if r.levelname == "WARNING"]
    assert "`preprocess` 'channels=RGB scale=1'" in warning.getMessage()
    np.testing.assert_array_equal(next(data.batches(1)).inputs["x"][0], values(right)[data.chosen[0]])  # type: ignore[attr-defined]
    caplog.clear()
    again = open_samples(as_opened(settings, data), proto, seed=0)
    assert not [r for r in caplog.records if r.levelname == "WARNING"]
    np.testing.assert_array_equal(next(again.batches(48)).inputs["x"], values(right))


def test_a_detector_is_judged_by_its_scores() -> None:
    """Scores of boxes that are near 1 in one place are surer than those that are alike everywhere."""
    weight = np.zeros((2, 3, 1, 1), np.float32)
    weight[:, 0] = 1
    body = "z = Conv(x, w, b)\n s = Sigmoid(z)\n f = Reshape(s, shape)\n y = Transpose<perm=[0,2,1]>(f)"
    proto = model("float[N,3,8,8] x", outputs="float[N,64,2] y", body=body)
    arrays = {"w": weight / 30, "b": np.full(2, -5, np.float32), "shape": np.array([0, 2, 64])}
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), n) for n, a in arrays.items())
    _, found = suited(proto, opened(proto))
    assert found is not None and next(r.scale for r in found.recipes if r.mean is None) == 1


@pytest.mark.parametrize(
    ("metadata", "text"),
    [
        (
            {"Image.NominalPixelRange": "Normalized_1_1", "Image.BitmapPixelFormat": "Bgr8"},
            "scale=1/127.5 mean=1 channels=BGR",
        ),
        ({"Image.NominalPixelRange": "NominalRange_0_255"}, "scale=1"),
        ({"author": "Ultralytics", "stride": "32"}, "scale=1/255"),
    ],
)
def test_what_the_file_says_is_taken(metadata: dict[str, str], text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = network(Recipe.parse("channels=RGB scale=1/127.5 mean=1"))
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=value)
    monkeypatch.setattr(preprocessing, "Runner", None)
    data = opened(proto)
    assert suited(proto, data) == (data, None)
    right = Recipe.parse(text)
    np.testing.assert_allclose(next(data.batches(48)).inputs["x"], values(right), rtol=1e-6, atol=1e-6)
    assert any(note.startswith("as the file says: ") for note in data.notes)
    ready = {"images": IMAGES.transpose(0, 3, 1, 2).astype(np.float32)}  # numbers are taken as they are
    np.testing.assert_array_equal(next(open_data(ready, proto).batches(48)).inputs["x"], ready["images"])
    asked = open_data(
        {"images": IMAGES}, proto, recipe=Recipe.parse("scale=1/255 mean=0.5")
    )  # the user has the last word
    np.testing.assert_allclose(
        next(asked.batches(1)).inputs["x"][0], (values(Recipe(scale=1 / 255)) - 0.5)[0], rtol=1e-5
    )
