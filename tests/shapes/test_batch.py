"""A batch size that an exporter fixed at 1: made symbolic where the results stay those of single samples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxprune.normalize import normalize
from onnxprune.shapes.batch import fix_batch, free_batch
from tests.cli.support import invoke

RNG = np.random.default_rng(0)
node, info = helper.make_node, helper.make_tensor_value_info


def weight(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def model(
    nodes: list[NodeProto], constants: Mapping[str, np.ndarray], shape: list[int], out: list[Any], opset: int = 17
) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [info("x", TensorProto.FLOAT, shape)],
        [info("y", TensorProto.FLOAT, out)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def classifier(*, zeros: bool = False) -> ModelProto:
    """A convolution, positions that are flattened with a fixed 1, and a layer."""
    flat = {"allowzero": 1} if zeros else {}
    nodes = [
        node("Conv", ["x", "k"], ["c"], pads=[1, 1, 1, 1]),
        node("Relu", ["c"], ["r"]),
        node("Reshape", ["r", "flat"], ["f"], **flat),
        node("MatMul", ["f", "w"], ["h"]),
        node("Relu", ["h"], ["a"]),
        node("MatMul", ["a", "v"], ["y"]),
    ]
    flattened = np.array([1, 8 * 16] if zeros else [1, -1])
    constants = {"k": weight(8, 3, 3, 3), "flat": flattened, "w": weight(128, 16), "v": weight(16, 5)}
    return model(nodes, constants, [1, 3, 4, 4], [1, 5])


def transformer() -> ModelProto:
    """A token that is joined to the positions, and heads that become samples and back."""
    nodes = [
        node("Concat", ["token", "x"], ["t"], axis=1),
        node("MatMul", ["t", "q"], ["u"]),
        node("Reshape", ["u", "split"], ["u0"]),
        node("Transpose", ["u0"], ["u1"], perm=[0, 2, 1, 3]),
        node("Reshape", ["u1", "apart"], ["u2"]),
        node("Transpose", ["u2"], ["u3"], perm=[0, 2, 1]),
        node("MatMul", ["u2", "u3"], ["s"]),
        node("Softmax", ["s"], ["p"], axis=-1),
        node("MatMul", ["p", "u2"], ["o"]),
        node("Reshape", ["o", "together"], ["o0"]),
        node("Transpose", ["o0"], ["o1"], perm=[0, 2, 1, 3]),
        node("Reshape", ["o1", "joined"], ["o2"]),
        node("MatMul", ["o2", "v"], ["y"]),
    ]
    sizes = {"split": [1, 5, 4, 6], "apart": [4, 5, 6], "together": [1, 4, 5, 6], "joined": [1, 5, 24]}
    constants = {"token": weight(1, 1, 8), "q": weight(8, 24), "v": weight(24, 3)}
    return model(nodes, constants | {n: np.array(s) for n, s in sizes.items()}, [1, 4, 8], [1, 5, 3])


def recurrent(opset: int = 17) -> ModelProto:
    """A GRU that starts with a state for one sample."""
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        node("GRU", ["t", "w", "r", "", "", "h"], ["", "l"], hidden_size=4),
        node("Transpose", ["l"], ["l0"], perm=[1, 0, 2]),
        node("Reshape", ["l0", "flat"], ["y"]),
    ]
    constants = {"w": weight(1, 12, 3), "r": weight(1, 12, 4), "h": weight(1, 1, 4), "flat": np.array([1, 4])}
    return model(nodes, constants, [1, 6, 3], [1, 4], opset)


@pytest.mark.parametrize(
    "proto",
    [classifier(), classifier(zeros=True), transformer(), recurrent(), recurrent(9)],
    ids=["flattened", "as_dynamo_writes_it", "token_and_heads", "state", "old_opset"],
)
def test_samples_together_give_what_each_gives_alone(proto: ModelProto) -> None:
    source = normalize(proto)
    before = source.SerializeToString()
    freed = free_batch(source)
    assert freed is not None and source.SerializeToString() == before
    shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(7).standard_normal((3, *shape[1:])).astype(np.float32)
    alone = ort.InferenceSession(proto.SerializeToString())
    expected = np.concatenate([alone.run(None, {"x": x[i : i + 1]})[0] for i in range(3)])
    (found,) = ort.InferenceSession(freed.SerializeToString()).run(None, {"x": x})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)

    fix_batch(freed)
    onnx.checker.check_model(freed, full_check=True)
    assert freed.graph.input == proto.graph.input and freed.graph.output == proto.graph.output
    assert [n.op_type for n in freed.graph.node] == [n.op_type for n in source.graph.node]
    assert {t.name for t in freed.graph.initializer} == {t.name for t in source.graph.initializer}
    (found,) = ort.InferenceSession(freed.SerializeToString()).run(None, {"x": x[:1]})
    np.testing.assert_allclose(found, expected[:1], rtol=1e-4, atol=1e-5)


def mixing(*nodes: NodeProto, out: list[Any]) -> ModelProto:
    return model(list(nodes), {"first": np.array(0), "w": weight(4, 4)}, [1, 4], out)


@pytest.mark.parametrize(
    "proto",
    [
        mixing(node("Softmax", ["x"], ["y"], axis=0), out=[1, 4]),
        mixing(node("ReduceMax", ["x"], ["y"], axes=[0]), out=[1, 4]),
        mixing(node("Gather", ["x", "first"], ["y"], axis=0), out=[4]),
        mixing(node("MatMul", ["x", "w"], ["a"]), node("Concat", ["w", "a"], ["y"], axis=0), out=[5, 4]),
    ],
    ids=["normalized_over_samples", "reduced", "first_of_them", "joined"],
)
def test_models_whose_samples_mix_stay(proto: ModelProto) -> None:
    assert free_batch(normalize(proto)) is None


def test_commands_run_batches_and_files_keep_their_interface(tmp_path: Path) -> None:
    path, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(transformer(), path)
    random = ["--data", "random", "--limit", "24"]
    tune = ["finetune", path, "-o", out, "--force", "--teacher", path, "--epochs", 1, "--hold-out", 0, *random]
    together = invoke(*tune, "--batch", 4, "--history", tmp_path / "h.json").stderr
    assert "samples run together" in together and "has no effect" not in together
    shapes = [[d.dim_value for d in v.type.tensor_type.shape.dim] for v in onnx.load(out).graph.input]
    assert shapes == [[1, 4, 8]]
    for how in (["--ratio", 0.3], ["--max-drop", "50%"]):
        assert "together" in invoke("prune", path, "-o", out, "--force", *how, *random).stderr
        small = onnx.load(out)
        assert small.graph.input == onnx.load(path).graph.input and small.graph.output == onnx.load(path).graph.output
        assert not any("onnxprune" in name for n in small.graph.node for name in (n.name, *n.input))
    alone = tmp_path / "alone.onnx"
    onnx.save(mixing(node("MatMul", ["x", "w"], ["a"]), node("Softmax", ["a"], ["y"], axis=0), out=[1, 4]), alone)
    said = invoke("evaluate", alone, "--against", alone, "--batch", 4, *random).stderr
    assert "fixed at 1, so --batch 4 has no effect" in said and "together" not in said
