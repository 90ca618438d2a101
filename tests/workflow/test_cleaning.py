"""Cleaning: fewer nodes with the same outputs; optimizers that change outputs, crash, hang or bloat are left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import onnxprune as op
from onnxprune.benchmarking import speed
from onnxprune.cleaning.optimizers import optimize
from onnxprune.errors import ModelError
from onnxprune.evaluation.intervals import Estimate
from onnxprune.workflow import cleaning
from tests.cli.support import document, invoke

DIGITS = Path(__file__).parents[2] / "models" / "digits_resnet.onnx"
QUICK: dict[str, Any] = {"optimizers": ("onnxprune", "onnxruntime"), "timed": False}


def wasteful(batch: Any = "n") -> ModelProto:
    """Return two convolutions with a normalization to fold, weights as inputs (IR 4), and nodes that do nothing."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.normal(size=(8, 3, 3, 3)),
        "scale": rng.uniform(0.5, 2, 8),
        "shift": rng.normal(size=8),
        "mean": rng.normal(size=8),
        "var": rng.uniform(0.5, 2, 8),
        "v": rng.normal(size=(4, 8, 1, 1)),
        "unread": rng.normal(size=(64, 64)),
    }
    tensors = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items()]
    nodes = [
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("Conv", ["same", "w"], ["a"]),
        helper.make_node("BatchNormalization", ["a", "scale", "shift", "mean", "var"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Sqrt", ["c"], ["dead"]),
        helper.make_node("Conv", ["c", "v"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 12, 12])]
    inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 4, 10, 10])]
    graph = helper.make_graph(nodes, "wasteful", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=4)


def outputs(model: ModelProto, x: np.ndarray) -> np.ndarray:
    """Run a model by ONNX Runtime itself, without this package."""
    opened = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(opened.run(None, {"x": x})[0])


def test_the_cleaned_model_computes_the_same_with_the_nodes_that_matter() -> None:
    model = wasteful()
    found = op.clean(model, **QUICK)
    assert found.best is not None and found.best.name == "onnxruntime"
    assert [node.op_type for node in found.model.proto.graph.node] == ["Conv", "Relu", "Conv"]
    assert found.model.proto.ByteSize() < model.ByteSize() - 64 * 64 * 4
    assert found.draws == 2  # also of another batch size
    x = np.random.default_rng(1).normal(size=(5, 3, 12, 12)).astype(np.float32)
    np.testing.assert_allclose(outputs(found.model.proto, x), outputs(model, x), rtol=1e-4, atol=1e-5)


def test_inputs_outputs_and_metadata_stay_as_they_are_declared() -> None:
    model = wasteful()
    model.metadata_props.add(key="author", value="somebody")
    made = op.clean(model, **QUICK).model.proto
    assert [i.name for i in made.graph.input] == ["x"]
    assert made.graph.input[0] == model.graph.input[0] and made.graph.output[0] == model.graph.output[0]
    assert {"author", "onnxprune.cleaned"} <= {entry.key for entry in made.metadata_props}
    assert [o.domain for o in made.opset_import] == [""]


def altered(model: ModelProto) -> ModelProto:
    changed = ModelProto()
    changed.CopyFrom(model)
    weight = next(t for t in changed.graph.initializer if len(t.dims) == 4)
    array = numpy_helper.to_array(weight).copy()
    array[0] *= 1.01
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    return changed


def test_an_optimizer_that_changes_outputs_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def harmful(model: ModelProto, name: str, *, seconds: float) -> ModelProto:
        return altered(optimize(model, "onnxruntime", seconds=seconds))

    monkeypatch.setattr(cleaning, "optimize", harmful)
    found = op.clean(wasteful(), **QUICK)
    assert {t.name: t.failure for t in found.tried} == {"onnxprune": None, "onnxruntime": "it changes the outputs"}
    assert found.best is not None and found.best.name == "onnxprune"


def test_an_optimizer_that_takes_an_open_size_for_a_constant_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs agree at the size that it saw, and nowhere else."""
    shape = numpy_helper.from_array(np.array([1, -1], np.int64), "shape")
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", size]) for n, size in (("x", 4), ("y", None))]
    nodes = [
        helper.make_node("Identity", ["x"], ["a"]),
        helper.make_node("Flatten", ["a"], ["y"]),
    ]
    model = helper.make_model(helper.make_graph(nodes, "open", value[:1], value[1:]), ir_version=8)
    model.opset_import[0].version = 13

    def fixing(given: ModelProto, name: str, *, seconds: float) -> ModelProto:
        fixed = ModelProto()
        fixed.CopyFrom(given)
        del fixed.graph.node[:]
        fixed.graph.node.append(helper.make_node("Reshape", ["x", "shape"], ["y"]))
        fixed.graph.initializer.append(shape)
        return fixed

    monkeypatch.setattr(cleaning, "optimize", fixing)
    found = op.clean(model, **QUICK)
    assert found.tried[1].failure == "it changes the outputs"


def test_what_is_larger_or_slower_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def bloating(model: ModelProto, name: str, *, seconds: float) -> ModelProto:
        made = optimize(model, "onnxruntime", seconds=seconds)
        made.graph.initializer.append(numpy_helper.from_array(np.zeros((64, 640), np.float32), "ballast"))
        return made

    with monkeypatch.context() as patch:
        patch.setattr(cleaning, "optimize", bloating)
        assert op.clean(wasteful(), **QUICK).tried[1].failure == "it makes the file larger"
    monkeypatch.setattr(speed, "SECONDS", 0.01)
    monkeypatch.setattr(speed, "ratio", lambda *_, **__: Estimate(0.5, 0.4, 0.6))
    found = op.clean(wasteful(), optimizers=("onnxprune", "onnxruntime"))
    assert {t.failure for t in found.tried} == {"it is slower than the file"}
    assert found.best is None and found.model.proto == wasteful()
    monkeypatch.setattr(speed, "ratio", lambda *_, **__: Estimate(1.5, 1.4, 1.6))
    assert op.clean(wasteful(), optimizers=("onnxprune", "onnxruntime")).best is not None


FAKES = {
    "import os; os._exit(11)": "onnxsim fails: it ended with status 11",
    "import time; time.sleep(60)": "onnxsim doesn't finish within 3 s",
    "raise TypeError('no such operator')": "onnxsim fails: TypeError: no such operator",
    "m.graph.output[0].name = 'z'; return m, True": "onnxsim writes an invalid model",
    "m.graph.node[0].input[0] = 'other'; m.graph.input[0].name = 'other'; return m, True": "onnxsim changes the inputs",
}


@pytest.mark.parametrize(("body", "cause"), FAKES.items(), ids=["crash", "hang", "raise", "invalid", "inputs"])
def test_an_optimizer_that_fails_costs_nothing_but_its_result(
    body: str, cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "onnxsim"
    package.mkdir()
    (package / "__init__.py").write_text(f"def simplify(m):\n    {body}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    model = op.analyze(wasteful()).graph.proto
    with pytest.raises(ModelError, match=f"OP129.*{cause}"):
        optimize(model, "onnxsim", seconds=3 if "sleep" in body else 10)
    if "TypeError" in body:
        found = op.clean(wasteful(), optimizers=("onnxprune", "onnxsim"), timed=False)
        assert found.tried[1].failure == cause and found.best is not None and found.best.name == "onnxprune"


@pytest.mark.dev
def test_onnxsim_makes_what_the_file_computes() -> None:
    pytest.importorskip("onnxsim")
    found = op.clean(DIGITS, timed=False)
    assert found.best is not None and found.best.name == "onnxsim" and found.best.nodes < found.tried[0].nodes


def test_the_command_writes_the_model_and_says_what_was_tried(tmp_path: Path) -> None:
    model, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    onnx.save(wasteful(), model)
    report = document("clean", model, "-o", out, "--optimizers", "onnxprune,onnxruntime", "--no-timed")
    assert (report["report"], report["before"]["nodes"], report["best"]["nodes"]) == ("clean", 6, 3)
    assert [t["name"] for t in report["tried"]] == ["onnxprune", "onnxruntime"]
    assert len(onnx.load(out).graph.node) == 3
    again = invoke("clean", out, "-o", tmp_path / "again.onnx", "--optimizers", "onnxprune,onnxruntime", "--no-timed")
    assert "3" in again.stdout and (tmp_path / "again.onnx").is_file()
    assert "nothing makes it better" in again.stderr
