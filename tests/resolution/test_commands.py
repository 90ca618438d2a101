"""Resolutions on the command line: planned, applied and verified."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.cli.support import DIGITS, document, invoke, refused
from tests.resolution.support import classifier


class TestCommands:
    def test_a_plan_gives_the_same_bytes_and_is_verified(self, tmp_path: Path) -> None:
        model, plan = tmp_path / "m.onnx", tmp_path / "p.json"
        onnx.save(classifier(), model)
        options = ("--resolution", "28x24", "--target", "macs=0.5", "--round-to", 1)
        found = document("plan", model, "-o", plan, *options)
        assert found["resolution"] == json.loads(plan.read_text())["resolution"] == {"image": [28, 24]}
        direct, planned, other = (tmp_path / name for name in ("a.onnx", "b.onnx", "c.onnx"))
        shown = invoke("prune", model, "-o", direct, *options)
        assert 'resized inside the model: "image" 32x32 → 28x24' in shown.stdout
        assert "resizing proved: error" in shown.stdout
        invoke("prune", model, "-o", planned, "--plan", plan)
        assert direct.read_bytes() == planned.read_bytes()
        checked = document("verify", model, planned, "--plan", plan)
        assert checked["proved"] and [link["what"] for link in checked["links"]] == ["resizing"]
        assert "resizing proved" in invoke("verify", model, planned, "--plan", plan).stdout
        invoke("prune", model, "-o", other, "--resolution", 16, "--target", "macs=0.2", "--round-to", 1)
        refused("OP505", "verify", model, other, "--plan", plan, status=1)

    def test_a_model_that_resizes_otherwise_is_not_verified(self, tmp_path: Path) -> None:
        model, plan, small = tmp_path / "m.onnx", tmp_path / "p.json", tmp_path / "s.onnx"
        onnx.save(classifier(), model)
        invoke("plan", model, "-o", plan, "--resolution", 16)
        invoke("prune", model, "-o", small, "--plan", plan)
        proto = onnx.load(small)
        scales = next(t for t in proto.graph.initializer if t.name.endswith("_scales"))
        values = onnx.numpy_helper.to_array(scales) * np.array([1, 1, 0.75, 0.75], np.float32)
        scales.CopyFrom(onnx.numpy_helper.from_array(values, scales.name))
        onnx.save(proto, small)
        assert "error[OP501]" in invoke("verify", model, small, "--plan", plan, status=1).stderr

    @pytest.mark.parametrize(
        ("code", "options"),
        [
            ("OP302", ("--axes", "channels", "--resolution", "16")),
            ("OP312", ("--resolution", "auto", "--max-drop", "1%", "--data", "random", "-q")),
            ("OP302", ("--axes", "resolution", "--max-drop", "1%", "--data", "random", "--minimize", "size", "-q")),
        ],
    )
    def test_refused(self, code: str, options: tuple[str, ...], tmp_path: Path) -> None:
        model = tmp_path / "m.onnx"
        onnx.save(classifier(), model)
        refused(code, "prune", model, "-o", tmp_path / "o.onnx", *options)
        assert not (tmp_path / "o.onnx").exists()

    def test_unknown_axes(self, tmp_path: Path) -> None:
        result = invoke("prune", DIGITS, "-o", tmp_path / "o.onnx", "--axes", "channels,depth", status=2)
        assert "'depth' is not one of channels, resolution" in result.stderr
