"""Synthetic inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune.data import noise, open_data
from onnxprune.errors import UsageError
from tests.cli.support import invoke


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


def attention(batch: int) -> ModelProto:
    """Attention that was exported at a length of 8 and a batch size, and declares both symbolic."""
    rng = np.random.default_rng(0)
    node, wide = helper.make_node, (rng.standard_normal((32, 64)) / 6).astype(np.float32)
    nodes = [
        node("MatMul", ["x", "w"], ["q"]),
        node("Transpose", ["q"], ["q0"], perm=[1, 0, 2]),
        node("Reshape", ["q0", "heads"], ["q1"]),
        node("MatMul", ["q1", "key"], ["s"]),
        node("Reshape", ["s", "whole"], ["s0"]),
        node("Transpose", ["s0"], ["y"], perm=[1, 0, 2]),
    ]
    constants = {
        "w": wide,
        "heads": np.array([8, 4 * batch, 16]),
        "key": (rng.standard_normal((16, 16)) / 4).astype(np.float32),
        "whole": np.array([8, batch, 64]),
    }
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "T", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", "T", 64])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_samples_have_the_sizes_that_are_fixed_inside_the_model() -> None:
    """The length is found, and samples run one by one, since the model only takes one, whatever it declares."""
    model = attention(1)
    data = open_data("random", model, limit=5)
    batches = list(data.batches(4))
    assert [batch.inputs["x"].shape for batch in batches] == [(1, 8, 32)] * 5 and data.fixed_batch == 1
    assert any("one by one" in note for note in data.notes)
    assert not np.array_equal(batches[0].inputs["x"], batches[1].inputs["x"])
    runner = ort.InferenceSession(model.SerializeToString())
    assert [runner.run(None, dict(batch.inputs))[0].shape for batch in batches] == [(1, 8, 64)] * 5
    with pytest.raises(Exception, match=r"Reshape"):  # two at once don't run
        runner.run(None, {"x": np.zeros((2, 8, 32), np.float32)})


def test_a_files_samples_run_one_by_one_too() -> None:
    data = open_data({"x": np.ones((3, 8, 32), np.float32)}, attention(1))
    assert [len(batch.inputs["x"]) for batch in data.batches(2)] == [1, 1, 1]
    proto = attention(1)
    for constant in proto.graph.initializer:  # not fixed: the batch is what is left over
        if constant.name in ("heads", "whole"):
            sizes = {"heads": [8, -1, 16], "whole": [8, -1, 64]}[constant.name]
            constant.CopyFrom(numpy_helper.from_array(np.array(sizes), constant.name))
    free = open_data({"x": np.ones((3, 8, 32), np.float32)}, proto)
    assert [len(batch.inputs["x"]) for batch in free.batches(2)] == [2, 1] and not free.notes


def test_sizes_that_are_given() -> None:
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Relu", ["x"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "T", 5])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        )
    )
    for sizes in ({"T": 9}, {"x": (1, 9, 5)}):
        data = open_data("random", model, limit=3, sizes=sizes)
        assert [batch.inputs["x"].shape for batch in data.batches(3)] == [(3, 9, 5)]
    with pytest.raises(UsageError, match="OP603"):
        open_data("random", model, sizes={"t": 9})


def recurrent() -> ModelProto:
    """A state whose samples are along its second axis, and a rate that is compared with a constant."""
    node, info = helper.make_node, helper.make_tensor_value_info
    branch = [info("z", TensorProto.FLOAT, None)]
    slow = helper.make_graph([node("Mul", ["s", "zero"], ["z"])], "slow", [], branch)
    fast = helper.make_graph([node("Identity", ["s"], ["z"])], "fast", [], branch)
    nodes = [
        node("ReduceMean", ["x"], ["m"], axes=[1], keepdims=1),
        node("Add", ["state", "m"], ["s"]),
        node("Reshape", ["rate", "one"], ["r"]),
        node("Gather", ["r", "first"], ["r0"]),
        node("Equal", ["r0", "known"], ["c"]),
        node("If", ["c"], ["y"], then_branch=fast, else_branch=slow),
    ]
    constants = {
        "zero": np.float32(0),
        "one": np.array([1]),
        "first": np.array(0),
        "known": np.array(16000),
    }
    graph = helper.make_graph(
        nodes,
        "g",
        [
            info("x", TensorProto.FLOAT, ["N", "T"]),
            info("rate", TensorProto.INT64, []),
            info("state", TensorProto.FLOAT, [2, "N", 4]),
        ],
        [info("y", TensorProto.FLOAT, [2, "N", 4])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_samples_that_cannot_be_stacked_and_a_number_that_is_compared() -> None:
    model = recurrent()
    batches = list(open_data("random", model, limit=3).batches(2))
    assert [batch.inputs["state"].shape for batch in batches] == [(2, 1, 4)] * 3 and all(b.whole for b in batches)
    assert all(batch.inputs["rate"] == 16000 for batch in batches)  # the other branch returns zeros
    runner = ort.InferenceSession(model.SerializeToString())
    assert all(runner.run(None, dict(batch.inputs))[0].any() for batch in batches)


def test_all_commands_take_them(tmp_path: Path) -> None:
    path, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(attention(1), path)
    random = ["--data", "random", "--limit", "24"]
    for command in (
        ["evaluate", path, "--against", path],
        ["finetune", path, "-o", out, "--teacher", path, "--epochs", "1", "--batch", "4"],
        ["sensitivity", path, "--share", "50%"],
        ["prune", path, "-o", out, "--ratio", "0.3"],
        ["prune", path, "-o", out, "--max-drop", "20%"],
    ):
        invoke(*command, *random, *(["--force"] if "-o" in command else []))
    assert "fixed at 1" in invoke("evaluate", path, "--against", path, "--batch", 4, *random).stderr
