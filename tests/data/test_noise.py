"""Synthetic inputs."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnxprune.data import noise, open_data


def generated(shape: list[int | str], dtype: int = TensorProto.FLOAT, seed: int = 0) -> np.ndarray:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", dtype, None)],
    )
    data = open_data("random", helper.make_model(graph), limit=64, seed=seed)
    assert any("noise" in note for note in data.notes)
    return np.concatenate([batch.inputs["x"] for batch in data.batches(16)])


@pytest.mark.parametrize("shape", [["n", 3, 32, 32], ["n", 32, 24, 3], [1, 1, 32, 32]])
def test_images_are_smooth_but_for_edges_and_mostly_gray_as_pictures_are(shape: list[int | str]) -> None:
    images = generated(shape)
    assert images.shape == (64, *shape[1:]) and images.dtype == np.float32
    channels = 1 if shape[1] in (1, 3) else 3
    images = np.moveaxis(images, channels, -1)
    flat = images - images.mean(axis=(1, 2), keepdims=True)
    near = (flat[:, 1:] * flat[:, :-1]).mean() / (flat**2).mean()
    assert near > 0.6  # of white noise it would be 0
    steps = flat[:, 1:] - flat[:, :-1]
    assert (steps**4).mean() / (steps**2).mean() ** 2 > 6  # of noise without edges, however smooth, it would be 3
    assert np.corrcoef(*flat.reshape(-1, flat.shape[-1]).T[[0, -1]])[0, 1] > 0.7
    assert 0.3 < images.std() < 2 or images.shape[-1] == 1


def test_other_inputs() -> None:
    values = generated(["n", 49, 10, 7])
    assert abs(values.mean()) < 0.05 and values.std() == pytest.approx(1, abs=0.05)
    tokens = generated(["n", "length"], TensorProto.INT64)
    assert tokens.shape == (64, 8) and set(np.unique(tokens)) == {0, 1}


def test_the_seed_decides() -> None:
    shape: list[int | str] = ["n", 3, 8, 8]
    assert np.array_equal(generated(shape), generated(shape))
    assert not np.array_equal(generated(shape), generated(shape, seed=1))


def test_large_inputs_are_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "_BYTES", 2 * 3 * 32 * 32)
    assert len(generated(["n", 3, 32, 32])) == 2


def test_inputs_without_a_common_axis_of_samples() -> None:
    """A picture, a state and a rate: each sample is all that the model takes at once, and the rate a single number."""
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8]),
        helper.make_tensor_value_info("state", TensorProto.FLOAT, [2, 1, 5]),
        helper.make_tensor_value_info("rate", TensorProto.INT64, []),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", inputs, outputs)
    batches = list(open_data("random", helper.make_model(graph), limit=3).batches(2))
    assert len(batches) == 3 and all(b.whole for b in batches)
    assert [batches[0].inputs[n].shape for n in ("x", "state", "rate")] == [(1, 3, 8, 8), (2, 1, 5), ()]
