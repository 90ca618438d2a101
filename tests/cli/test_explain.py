"""`inspect`, `explain` and `rules`: models, operators, and why channels can't be removed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxprune.errors import CATALOG
from tests.cli.support import document, invoke, refused
from tests.report.network import PARAMS
from tests.test_generate_inputs import speech


class TestInspect:
    def test_table(self, model: Path) -> None:
        text = invoke("inspect", model).stdout
        for found in ("opset ai.onnx:17", "Nx3x8x8", "taken as 1x3x8x8", "stem", "OP201 → g0", "98.8 %", "4 of 4"):
            assert found in text

    def test_json(self, model: Path) -> None:
        found = document("inspect", model)
        assert found["cost"]["params"] == PARAMS
        assert found["file_size"] == model.stat().st_size
        assert [layer["node"] for layer in found["layers"]] == ["stem", "left", "right", "head"]

    def test_bad_files(self, tmp_path: Path) -> None:
        empty, text = tmp_path / "empty.onnx", tmp_path / "text.onnx"
        empty.touch()
        text.write_text("hello")
        refused("OP102", "inspect", empty)
        refused("OP103", "inspect", text)
        refused("OP101", "inspect", tmp_path / "absent.onnx")
        refused("OP101", "inspect", tmp_path)


class TestExplain:
    def test_model(self, model: Path) -> None:
        found = document("explain", model)
        assert [pin["code"] for pin in found["pins"]] == ["OP202", "OP201"]
        assert "98.8 %" in invoke("explain", model).stdout

    def test_node(self, model: Path) -> None:
        text = invoke("explain", model, "left").stdout
        assert "8 output channels" in text and "right" in text and "join" in text
        found = document("explain", model, "head")
        assert found["channels"][0]["held"][0]["pin"]["code"] == "OP202"

    def test_everything_that_a_code_pins(self, model: Path) -> None:
        assert [axis["nodes"] for axis in document("explain", model, "OP202")["axes"]] == [["head"], ["shift"]]
        assert "graph output" in invoke("explain", model, "OP202").stdout

    @pytest.mark.parametrize("code", ["OP204", "OP501"])
    def test_a_code_that_pins_nothing(self, model: Path, code: str) -> None:
        assert document("explain", model, code)["axes"] == []
        text = invoke("explain", model, code).stdout
        assert text.startswith(f"{code} {CATALOG[code].title}\n") and "No weight of this model stays" in text

    @pytest.mark.parametrize("code", sorted(CATALOG))
    def test_code(self, code: str) -> None:
        result = invoke("explain", code)
        assert result.stdout.startswith(f"{code} {CATALOG[code].title}\n")
        assert document("explain", code)["explanation"] == CATALOG[code].explanation

    def test_unknown(self, model: Path) -> None:
        assert "did you mean stem" in refused("OP606", "explain", model, "stme")
        refused("OP606", "explain", "OP999")
        refused("OP606", "explain", model, "OP999")
        refused("OP101", "explain", "absent.onnx")


class TestRules:
    def test_all(self) -> None:
        found = document("rules")
        assert {"Conv", "Relu", "Softmax"} <= {o["name"] for o in found["operators"]}
        assert "with a rule" in invoke("rules").stdout

    def test_some(self) -> None:
        assert {o["name"] for o in document("rules", "softm")["operators"]} >= {"Softmax", "LogSoftmax"}
        assert "did you mean Conv" in refused("OP606", "rules", "Convv")


class TestInputs:
    """Commands that only look at a model take inputs and data as `prune` does, and sizes come from them."""

    @pytest.fixture
    def speech(self, tmp_path: Path) -> tuple[Path, Path, list[str]]:
        path, data = tmp_path / "speech.onnx", tmp_path / "speech.npz"
        onnx.save(speech(), path)
        arrays = {"ids": np.zeros((1, 9), np.int64), "n": np.array([9]), "scale": np.array([3.25], np.float32)}
        args = []
        for name, array in arrays.items():
            np.save(tmp_path / f"{name}.npy", array)
            args += ["--input", f"{name}={tmp_path / name}.npy"]
        np.savez(data, ids=arrays["ids"][None], n=arrays["n"][None], scale=arrays["scale"][None] + 2.5)
        return path, data, args

    def test_sizes_come_from_them(self, speech: tuple[Path, Path, list[str]], tmp_path: Path) -> None:
        path, data, inputs = speech

        def frames(*args: object) -> int:
            layers = {layer["node"]: layer for layer in document("inspect", path, *args)["layers"]}
            return int(layers["in"]["output"][2])

        assert frames(*inputs) == 10 and frames("--data", data) == 20
        found = document("explain", path, "in", *inputs)
        assert found["channels"]
        plan = tmp_path / "plan.json"
        invoke("plan", path, "-o", plan, "--ratio", "0.5", *inputs)
        invoke("prune", path, "-o", tmp_path / "small.onnx", "--plan", plan, "--seed", "3", *inputs)
        refused("OP302", "inspect", path, "--preprocess", "scale=2")

    def test_symbolic_sizes_come_from_data_or_by_name(self, tmp_path: Path) -> None:
        path, data = tmp_path / "m.onnx", tmp_path / "d.npz"
        text = """<ir_version: 8, opset_import: ["" : 17]>
        net (float[N,seq,4] x) => (float[N,seq,2] y) <float[4,2] w = {1,1,1,1,1,1,1,1}> { y = MatMul(x, w) }"""
        onnx.save(onnx.parser.parse_model(text), path)
        np.savez(data, x=np.zeros((3, 21, 4), np.float32))

        def size(*args: object) -> object:
            return document("inspect", path, *args)["counted_at"]["x"]

        assert size() == [1, 8, 4]
        assert size("--data", data) == [1, 21, 4]
        assert size("--input-shape", "seq=48") == size("--data", data, "--input-shape", "seq=48") == [1, 48, 4]
        assert "did you mean" in refused("OP603", "inspect", path, "--input-shape", "sqe=48")

    def test_text_is_called_string(self, tmp_path: Path) -> None:
        path = tmp_path / "text.onnx"
        text = """<ir_version: 8, opset_import: ["" : 17]> net (string[N] x) => (string[N] y) { y = Identity(x) }"""
        onnx.save(onnx.parser.parse_model(text), path)
        shown = invoke("inspect", path).stdout
        assert "string" in shown and "object" not in shown


def test_a_batch_size_without_effect_is_said(tmp_path: Path) -> None:
    path, data = tmp_path / "m.onnx", tmp_path / "d.npz"
    # Softmax over samples: together they give something else.
    text = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[1,4] x) => (float[1,4] y) { s = Softmax<axis = 0>(x) y = Add(x, s) }"""
    onnx.save(onnx.parser.parse_model(text), path)
    np.savez(data, x=np.ones((5, 4), np.float32))
    given = ("evaluate", path, "--data", data, "--against", path)
    assert "fixed at 1, so --batch 8 has no effect" in invoke(*given, "--batch", "8").stderr
    assert "has no effect" not in invoke(*given).stderr + invoke(*given, "--batch", "1").stderr
