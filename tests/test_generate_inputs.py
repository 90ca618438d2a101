"""Inputs that are drawn where the user gives none."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune.data.inputs import inputs_of
from onnxprune.data.noise import noise_arrays
from onnxprune.errors import ModelError
from onnxprune.normalize import normalize
from onnxprune.report.summary import summarize
from onnxprune.shapes import concretize, generate_inputs, runnable_inputs
from onnxprune.shapes.generated import draws, roles_of
from onnxprune.trace import trace

MODEL = helper.make_model(
    helper.make_graph(
        [],
        "net",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["N", 3]),
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["N"]),
        ],
        [],
    )
)


def test_types_shapes_and_seed() -> None:
    first, same, other = (generate_inputs(MODEL, {"x": (4, 3), "ids": (9,)}, seed) for seed in (0, 0, 1))
    assert (first["x"].dtype, first["x"].shape) == (np.float16, (4, 3))
    assert (first["ids"].dtype, set(first["ids"].tolist())) == (np.int64, {0, 1})
    assert np.array_equal(first["x"], same["x"])
    assert not np.array_equal(first["x"], other["x"])


def test_too_many_elements() -> None:
    with pytest.raises(ModelError) as caught:
        generate_inputs(MODEL, {"x": (2**31, 3), "ids": (2,)})
    assert (caught.value.code, caught.value.where) == ("OP127", "x:2147483648,3")


def _vectors(**shapes: tuple[int, list[int | str]]) -> list[Any]:
    return [helper.make_tensor_value_info(name, *about) for name, about in shapes.items()]


_NUMBERS = {"four": 4.0, "three": 3.0}


def speech() -> ModelProto:
    """Text to speech: a scale says how many frames the vocoder makes of ids, and "n" how many ids there are."""
    rng = np.random.default_rng(0)
    weights = {
        "table": rng.standard_normal((30, 8)),
        "w1": rng.standard_normal((16, 8, 3)),
        "w2": rng.standard_normal((1, 16, 3)),
    }
    constants = {"zero": np.array(0), "one": np.array(1), "axis": np.array([1]), "first": np.array([0])}
    node = helper.make_node
    nodes = [
        node("Gather", ["table", "ids"], ["e"]),
        node("Transpose", ["e"], ["x"], perm=[0, 2, 1]),
        node("Mul", ["scale", "four"], ["product"]),
        node("Sub", ["product", "three"], ["time"]),
        node("Ceil", ["time"], ["whole"]),
        node("Squeeze", ["whole", "first"], ["scalar"]),
        node("Cast", ["scalar"], ["count"], to=TensorProto.INT64),
        node("Range", ["zero", "count", "one"], ["frames"]),
        node("Mod", ["frames", "n"], ["at"]),
        node("Gather", ["x", "at"], ["up"], axis=2),
        node("Conv", ["up", "w1"], ["a"], name="in", pads=[1, 1]),
        node("Relu", ["a"], ["b"]),
        node("Conv", ["b", "w2"], ["wave"], name="out", pads=[1, 1]),
    ]
    inputs = _vectors(ids=(TensorProto.INT64, [1, 9]), n=(TensorProto.INT64, [1]), scale=(TensorProto.FLOAT, [1]))
    tensors = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items()]
    tensors += [numpy_helper.from_array(a, n) for n, a in constants.items()]
    tensors += [numpy_helper.from_array(np.array([value], np.float32), name) for name, value in _NUMBERS.items()]
    outputs = _vectors(wave=(TensorProto.FLOAT, [1, 1, "samples"]))
    return helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs, tensors),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )


@pytest.mark.parametrize("seed", range(6))
def test_inputs_are_such_that_something_comes_out(seed: int) -> None:
    proto = speech()
    shapes = {"ids": (1, 9), "n": (1,), "scale": (1,)}
    feeds = runnable_inputs(proto, shapes, seed)
    assert feeds["n"].tolist() == [9] and feeds["ids"].max() < 30 and len(set(feeds["ids"].ravel())) > 2
    (wave,) = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, feeds)
    assert wave.size == np.ceil(4 * feeds["scale"][0] - 3) > 0


def test_the_first_draw_alone_does_not_run() -> None:
    proto, shapes = speech(), {"ids": (1, 9), "n": (1,), "scale": (1,)}
    frames = [4 * float(generate_inputs(proto, shapes, seed)["scale"][0]) > 3 for seed in range(12)]
    assert not all(frames)


@pytest.mark.parametrize("seed", range(6))
def test_something_comes_out_of_every_sample(seed: int) -> None:
    arrays = noise_arrays(speech(), inputs_of(speech()), {}, 5, seed)
    opened = onnxruntime.InferenceSession(speech().SerializeToString())
    assert all(opened.run(None, {n: a[i : i + 1] for n, a in arrays.items()})[0].size for i in range(5))
    assert len(np.unique(arrays["ids"], axis=0)) == 5


def test_layers_behind_a_length_that_values_tell_are_reached() -> None:
    graph = trace(normalize(speech()))
    layers = {layer.cost.node: layer for layer in summarize(graph).layers}
    assert layers["in"].reached and layers["out"].reached
    assert graph.shapes.problem is None and graph.shapes.feeds is not None


def test_given_inputs_set_the_sizes() -> None:
    feeds = {"ids": np.zeros((1, 9), np.int64), "n": np.array([9]), "scale": np.array([3.25], np.float32)}
    known = concretize(normalize(speech()), {n: a.shape for n, a in feeds.items()}, feeds)
    assert known.shapes["wave"] == (1, 1, 10)


def refusing() -> ModelProto:
    """A model that runs on nothing: it reads row "n" + 100 of a table of one row."""
    model = speech()
    graph = model.graph
    graph.node.insert(0, helper.make_node("Gather", ["one_row", "far"], ["four"]))
    graph.node.insert(0, helper.make_node("Add", ["n", "offset"], ["far"]))
    kept = [t for t in graph.initializer if t.name != "four"]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    graph.initializer.append(numpy_helper.from_array(np.ones((1,), np.float32), "one_row"))
    graph.initializer.append(numpy_helper.from_array(np.array([100]), "offset"))
    return model


def test_what_to_give_is_said_when_nothing_runs() -> None:
    with pytest.raises(ModelError, match=r"any of \d inputs that were generated") as caught:
        runnable_inputs(refusing(), {"ids": (1, 9), "n": (1,), "scale": (1,)})
    assert caught.value.code == "OP122"
    assert caught.value.hint == "give arrays that it runs on with `inputs` or `data`, for ids, n, scale"
    graph = trace(normalize(refusing()))
    hints = {pin.hint for _, pin in graph.ledger.pins if pin.code == "OP213"}
    assert len(hints) == 1
    (hint,) = hints
    assert hint is not None and "generated" in hint and "give inputs that the model can run on" in hint
    layers = {layer.cost.node: layer for layer in summarize(graph).layers}
    assert {"in", "out"} <= set(layers)  # of unknown size, and counted
    assert layers["in"].cost.output is None


def test_masks_are_ones_and_sizes_are_not_guessed() -> None:
    node = helper.make_node
    proto = helper.make_model(
        helper.make_graph(
            [node("Reshape", ["x", "k"], ["y"]), node("Mul", ["y", "attention_mask"], ["z"])],
            "g",
            _vectors(
                x=(TensorProto.FLOAT, [2, 2]), k=(TensorProto.INT64, [2]), attention_mask=(TensorProto.FLOAT, [2, 2])
            ),
            _vectors(z=(TensorProto.FLOAT, ["a", "b"])),
        )
    )
    shapes = {"x": (2, 2), "k": (2,), "attention_mask": (2, 2)}
    assert [role.kind for role in roles_of(proto.graph, shapes).values()] == ["free", "shape", "mask"]
    assert (generate_inputs(proto, shapes)["attention_mask"] == 1).all()
    assert len(list(draws(proto, shapes))) == 1
