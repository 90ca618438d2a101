"""Plans: written, applied and verified; options for planning."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune.model.session import run, session
from onnxprune.settings.planning import PlanSettings
from onnxprune.workflow.planning import settled
from tests.cli.support import DIGITS, document, invoke, refused


class TestPlan:
    def test_written(self, model: Path, tmp_path: Path) -> None:
        path = tmp_path / "p.json"
        found = document("plan", model, "-o", path, "--target", "params=0.6", "--allocation", "global")
        written = json.loads(path.read_text())
        assert found["cost"] == written["cost"]
        assert found["settings"]["target"] == {"quantity": "params", "value": 0.6, "absolute": False}
        assert {g["name"] for g in found["groups"]} == {"stem", "left"}
        assert all(g["kept"] + g["removed"] == g["units"] for g in found["groups"])
        table = invoke("plan", model, "-o", path, "--ratio", "0.5", "--force").stdout
        assert "stem" in table and "-50.0 %" in table

    def test_to_stdout(self, model: Path) -> None:
        result = invoke("plan", model, "-o", "-", "--ratio", "0.5")
        assert json.loads(result.stdout)["format"] == 5
        assert "parameters" in result.stderr
        assert invoke("plan", model, "-o", "-", "--ratio", "0.5", "-q").stderr == ""
        refused("OP302", "plan", model, "-o", "-", "--ratio", "0.5", "--format", "json")

    def test_existing_files_are_kept(self, model: Path, plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        before = plan.read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr("onnxprune.cli.plan.open_model", None)
            refused("OP116", "plan", model, "-o", plan, "--ratio", "0.3")
        assert plan.read_bytes() == before
        invoke("plan", model, "-o", plan, "--ratio", "0.3", "--force")
        assert plan.read_bytes() != before

    def test_nothing_is_left_of_a_failed_plan(self, model: Path, tmp_path: Path) -> None:
        before = set(tmp_path.iterdir())
        refused("OP301", "plan", model, "-o", tmp_path / "p.json", "--target", "params=0.001")
        assert set(tmp_path.iterdir()) == before

    def test_patterns(self, model: Path, tmp_path: Path) -> None:
        def kept(*options: str) -> dict[str, int]:
            path = tmp_path / "p.json"
            found = document("plan", model, "-o", path, "--force", "--round-to", 1, *options)
            return {g["name"]: g["kept"] for g in found["groups"]}

        assert kept("--ratio", "0.5") == {"stem": 8, "left": 4}
        assert kept("--ratio", "50%", "--exclude", "head") == {"stem": 8, "left": 8}
        assert kept("--ratio", "0.5", "--include", "ri*") == {"stem": 16, "left": 4}
        assert kept("--ratio-for", "st*=25%") == {"stem": 12, "left": 8}
        assert kept("--ratio", "0.5", "--ratio-for", "stem=0.25") == {"stem": 12, "left": 4}
        assert kept("--ratio", "0.9", "--min-channels", "6") == {"stem": 6, "left": 6}
        assert kept("--ratio", "0.9", "--max-ratio", "25%") == {"stem": 12, "left": 6}

    def test_seed(self, model: Path, tmp_path: Path) -> None:
        def removed(seed: int) -> Any:
            path = tmp_path / "p.json"
            args = ("--criterion", "random", "--ratio", "0.5", "--seed", seed, "--force")
            invoke("plan", model, "-o", path, *args)
            return json.loads(path.read_text())["removed"]

        assert removed(1) == removed(1) != removed(2)


class TestOptions:
    @pytest.mark.parametrize(
        ("code", "options"),
        [
            ("OP602", []),
            ("OP302", ["--ratio", "0.5", "--target", "macs=0.5"]),
            ("OP303", ["--target", "mac=0.5"]),
            ("OP303", ["--target", "macs"]),
            ("OP303", ["--target", "macs=half"]),
            ("OP303", ["--target", "macs=0.5", "--target", "params=50"]),
            ("OP602", ["--ratio", "nan"]),
            ("OP602", ["--ratio-for", "0.5"]),
            ("OP303", ["--ratio", "0.5", "--seed", "-1"]),
            ("OP602", ["--ratio", "0.5", "--allocation", "fair"]),
            ("OP602", ["--rato", "0.5"]),
            ("OP303", ["--ratio", "1.5"]),
            ("OP303", ["--target", "macs=150%"]),
            ("OP303", ["--ratio", "0.5", "--max-ratio", "2"]),
            ("OP303", ["--ratio", "0.5", "--min-channels", "0"]),
            ("OP303", ["--ratio", "0.5", "--round-to", "0"]),
            ("OP304", ["--ratio", "0.5", "--exclude", "nothing*"]),
            ("OP308", ["--ratio", "0.5", "--criterion", "l3"]),
            ("OP302", ["--ratio", "0.5", "-v", "-q"]),
            ("OP302", ["--ratio", "0.5", "--no-verify", "--tolerance", "0.1"]),
        ],
    )
    def test_refused(self, model: Path, out: Path, code: str, options: list[str]) -> None:
        refused(code, "prune", model, "-o", out, *options)
        assert not out.exists()

    def test_suggestions(self, model: Path, out: Path) -> None:
        args = ("prune", model, "-o", out)
        assert "did you mean macs?" in refused("OP303", *args, "--target", "mac=0.5")
        assert "did you mean 50%?" in refused("OP303", *args, "--target", "macs=50")
        assert "did you mean 30%?" in refused("OP303", *args, "--ratio", "30")
        assert "did you mean 1%?" in refused("OP303", *args, "--max-drop", "1", "--data", "random")
        for wrong in ("100", "-1"):
            said = refused("OP303", *args, "--max-drop", wrong, "--data", "random")
            assert "did you mean" not in said and "write a share such as 5% or 0.05" in said
        assert "%" not in refused("OP303", *args, "--min-channels", "0")
        assert "--ratio" in refused("OP602", *args, "--rato", "0.5")

    @pytest.mark.parametrize("option", ["--ratio=0.3", "--criterion=l1", "--exact-only", "--exclude=stem"])
    def test_a_plan_excludes_planning_options(self, model: Path, plan: Path, out: Path, option: str) -> None:
        assert option.partition("=")[0] in refused("OP302", "prune", model, "-o", out, "--plan", plan, option)

    def test_documented_defaults_are_the_library_s(self) -> None:
        settings = settled(PlanSettings(ratio=0.5), data=False)
        limits = settings.constraints
        text = " ".join(invoke("plan", "--help").stdout.split())
        for default in (settings.criterion, settings.allocation, limits.min_channels, limits.max_ratio, settings.seed):
            assert re.search(rf"\[default: {default}[],]", text)


class TestVerify:
    @pytest.fixture
    def pruned(self, model: Path, plan: Path, out: Path) -> Path:
        invoke("prune", model, "-o", out, "--plan", plan, "-q")
        return out

    def test_with_the_plan(self, model: Path, pruned: Path, plan: Path) -> None:
        found = document("verify", model, pruned, "--plan", plan, "--seed", 5)
        assert found["proved"] and found["verification"]["seed"] == 5
        assert "rewriting proved" in invoke("verify", model, pruned, "--plan", plan).stdout
        assert "links" not in found  # nothing else is changed

    def test_a_wrong_model(self, model: Path, pruned: Path, plan: Path) -> None:
        wrong = onnx.load(pruned)
        bias = next(t for t in wrong.graph.initializer if t.name == "left_b")
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.01), "left_b"))
        onnx.save(wrong, pruned)
        assert "NOT right" in invoke("verify", model, pruned, "--plan", plan, status=1).stdout
        refused("OP501", "verify", model, pruned, "--plan", plan, status=1)
        assert invoke("verify", model, pruned, "--plan", plan, "--tolerance", "1").exit_code == 0

    def test_another_plan(self, model: Path, pruned: Path, plan: Path) -> None:
        invoke("plan", model, "-o", plan, "--ratio", "0.25", "--force")
        refused("OP505", "verify", model, pruned, "--plan", plan, status=1)
        refused("OP306", "verify", DIGITS, pruned, "--plan", plan)
        refused("OP306", "prune", DIGITS, "-o", pruned, "--force", "--plan", plan)

    @pytest.fixture
    def unsigned(self, pruned: Path) -> Path:
        proto = onnx.load(pruned)
        del proto.metadata_props[:]
        onnx.save(proto, pruned)
        return pruned

    def test_with_the_plan_in_the_metadata(self, model: Path, pruned: Path) -> None:
        assert document("verify", model, pruned, "--seed", 5)["proved"]

    def test_without_the_plan(self, model: Path, unsigned: Path) -> None:
        pruned = unsigned
        found = json.loads(invoke("verify", model, pruned, "--format", "json", status=1).stdout)
        assert not found["agree"] and not found["proved"] and found["verification"] is None
        (distance,) = found["distances"]
        rng = np.random.default_rng(0)
        image = {"image": rng.standard_normal((1, 3, 8, 8)).astype(np.float32)}
        a, b = (next(iter(run(session(p), image).values())) for p in (model, pruned))
        assert distance["difference"] == pytest.approx(np.abs(a - b).max() / np.abs(a).max(), rel=1e-3)
        assert "Nothing is proved" in invoke("verify", model, pruned, status=1).stdout
        assert "--plan" in refused("OP501", "verify", model, pruned, status=1)

    def test_equal_models_agree_without_a_plan(self, model: Path, unsigned: Path) -> None:
        pruned = unsigned
        found = document("verify", pruned, pruned)
        assert found["agree"] and not found["proved"]
        (distance,) = json.loads(invoke("verify", model, pruned, "--format", "json", status=1).stdout)["distances"]
        assert document("verify", model, pruned, "--tolerance", distance["difference"] * 1.01)["agree"]
        invoke("verify", model, pruned, "--tolerance", distance["difference"] * 0.99, status=1)

    def test_another_interface(self, model: Path, pruned: Path, plan: Path) -> None:
        changed = onnx.load(pruned)
        changed.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "batch"
        onnx.save(changed, pruned)
        for args in ((), ("--plan", plan)):
            result = invoke("verify", model, pruned, *args, status=1)
            assert result.stderr.startswith("error[OP503]") and "interface" in result.stdout

    def test_not_finite(self, model: Path, unsigned: Path) -> None:
        pruned = unsigned
        broken = onnx.load(pruned)
        bias = next(t for t in broken.graph.initializer if t.name == "shift_b")
        bias.CopyFrom(numpy_helper.from_array(np.full(10, np.nan, np.float32), "shift_b"))
        onnx.save(broken, pruned)
        refused("OP502", "verify", model, pruned, status=1)

    def test_not_models(self, model: Path, plan: Path, tmp_path: Path) -> None:
        refused("OP103", "verify", model, plan)
        refused("OP101", "verify", model, tmp_path / "absent.onnx")
        refused("OP305", "verify", model, model, "--plan", model)
        refused("OP305", "verify", model, model, "--plan", tmp_path / "absent.json")
