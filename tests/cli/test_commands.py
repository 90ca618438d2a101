"""Every command on real models: what it prints, what it writes, and what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import helper, numpy_helper

import onnxprune.cli.prune
from onnxprune import pipeline
from onnxprune._runtime import run, session
from onnxprune.budget import Guards
from onnxprune.cli import COMMANDS, cli
from onnxprune.cli.options import settings_of
from onnxprune.errors import CATALOGUE
from tests.report.network import PARAMS, network
from tests.toolbox import Net

DIGITS = Path(__file__).parents[2] / "models" / "digits_resnet.onnx"


def invoke(*args: object, status: int = 0) -> Result:
    result = CliRunner().invoke(cli, [str(a) for a in args])
    assert result.exit_code == status, result.output
    return result


def document(*args: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(invoke(*args, "--format", "json").stdout)
    assert found["version"] == 1
    return found


def refused(code: str, *args: object, status: int = 2) -> str:
    result = invoke(*args, status=status)
    assert result.stderr.splitlines()[0].startswith(f"error[{code}]: "), result.stderr
    return result.stderr


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(network(), path)
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.onnx"


@pytest.fixture
def plan(model: Path, tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    invoke("plan", model, "-o", path, "--ratio", "0.5", "-q")
    return path


class TestPrune:
    def test_a_trained_model(self, out: Path) -> None:
        found = document("prune", DIGITS, "-o", out, "--target", "macs=50%")
        assert found["cost"]["after"]["macs"] <= 0.5 * found["cost"]["before"]["macs"]
        assert found["proved"] and found["verification"]["error"] <= found["verification"]["tolerance"]
        assert found["verification"]["outputs"][0]["change"] > 0
        assert found["file_size"] == {"before": DIGITS.stat().st_size, "after": out.stat().st_size}
        pruned = onnx.load(out)
        onnx.checker.check_model(pruned, full_check=True)
        sizes = sum(int(np.prod(t.dims)) for t in pruned.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
        assert sizes == found["cost"]["after"]["params"]
        assert {p.key: p.value for p in pruned.metadata_props}["onnxprune.plan"] == found["plan_digest"]

    def test_table(self, model: Path, out: Path) -> None:
        result = invoke("prune", model, "-o", out, "--ratio", "0.5")
        for text in ("parameters", "MACs", "file", "proved right", "seed 0", "OP202", "onnxprune explain"):
            assert text in result.stdout
        assert result.stderr == f"wrote {out}\n"

    def test_quiet(self, model: Path, out: Path) -> None:
        result = invoke("prune", model, "-o", out, "--ratio", "0.5", "-q")
        assert (result.stdout, result.stderr) == ("", "")
        assert out.exists()

    def test_the_plan_is_carried_out(self, model: Path, plan: Path, out: Path, tmp_path: Path) -> None:
        found = document("prune", model, "-o", out, "--plan", plan)
        again = tmp_path / "again.onnx"
        invoke("prune", model, "-o", again, "--ratio", "0.5")
        assert out.read_bytes() == again.read_bytes()
        assert found["cost"]["after"] == json.loads(plan.read_text())["cost"]["after"]

    def test_costs_are_counted_not_believed(self, model: Path, plan: Path, out: Path) -> None:
        forged = json.loads(plan.read_text())
        forged["cost"]["after"]["params"] = 1
        plan.write_text(json.dumps(forged))
        found = document("prune", model, "-o", out, "--plan", plan)
        assert 1 < found["cost"]["after"]["params"] < PARAMS

    def test_nothing_is_written_when_the_proof_fails(
        self, model: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def wrong(kept: Any) -> onnx.ModelProto:
            pruned = right(kept)
            bias = next(t for t in pruned.graph.initializer if t.name == "left_b")
            bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.01), "left_b"))
            return pruned

        right = pipeline.rewrite
        monkeypatch.setattr(pipeline, "rewrite", wrong)
        before = set(tmp_path.iterdir())
        refused("OP501", "prune", model, "-o", out, "--ratio", "0.5", status=1)
        assert set(tmp_path.iterdir()) == before
        assert invoke("prune", model, "-o", out, "--ratio", "0.5", "--tolerance", "1").exit_code == 0

    def test_no_verify(self, model: Path, out: Path) -> None:
        result = invoke("prune", model, "-o", out, "--ratio", "0.5", "--no-verify")
        assert "not proved" in result.stdout
        assert out.exists()

    def test_existing_files_are_kept(self, model: Path, out: Path) -> None:
        out.write_text("precious")
        refused("OP116", "prune", model, "-o", out, "--ratio", "0.5")
        assert out.read_text() == "precious"
        invoke("prune", model, "-o", out, "--ratio", "0.5", "--force")
        onnx.checker.check_model(onnx.load(out))

    def test_outputs_are_refused_before_the_work(
        self, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(onnxprune.cli.prune, "open_model", None)
        refused("OP116", "prune", model, "-o", model, "--ratio", "0.5")
        refused("OP116", "prune", model, "-o", tmp_path, "--ratio", "0.5", "--force")
        refused("OP117", "prune", model, "-o", tmp_path / "no" / "o.onnx", "--ratio", "0.5")

    def test_external_data_stays_external(self, tmp_path: Path, out: Path) -> None:
        model = tmp_path / "big.onnx"
        onnx.save(network(), model, save_as_external_data=True, location="big.data", size_threshold=0)
        found = document("prune", model, "-o", out, "--ratio", "0.5")
        data = out.with_name("out.onnx.data")
        assert found["file_size"]["after"] == out.stat().st_size + data.stat().st_size
        out.unlink()
        assert str(data) in refused("OP116", "prune", model, "-o", out, "--ratio", "0.5")
        assert not out.exists()


class TestInput:
    @pytest.fixture
    def image(self, tmp_path: Path) -> Path:
        path = tmp_path / "image.npy"
        np.save(path, np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32))
        return path

    @pytest.mark.parametrize("name", ["", "image="])
    def test_given(self, model: Path, out: Path, image: Path, name: str) -> None:
        found = document("prune", model, "-o", out, "--ratio", "0.5", "--input", f"{name}{image}")
        assert found["verification"]["seed"] is None
        assert found["counted_at"] == {"image": [2, 3, 8, 8]}

    @pytest.mark.parametrize(
        ("array", "cause"),
        [
            (np.zeros((1, 3, 8, 8)), "takes float32, the file holds float64"),
            (np.zeros((1, 3, 9, 8), np.float32), "takes Nx3x8x8, the file holds 1x3x9x8"),
            (np.zeros((3, 8, 8), np.float32), "the file holds 3x8x8"),
            (np.array([{}]), "not a .npy file of numbers"),
        ],
    )
    def test_arrays_that_do_not_fit(self, model: Path, out: Path, tmp_path: Path, array: Any, cause: str) -> None:
        path = tmp_path / "x.npy"
        np.save(path, array, allow_pickle=True)
        assert cause in refused("OP604", "prune", model, "-o", out, "--ratio", "0.5", "--input", path)
        assert not out.exists()

    def test_files_that_are_not_arrays(self, model: Path, out: Path, tmp_path: Path) -> None:
        args = ("prune", model, "-o", out, "--ratio", "0.5", "--input")
        refused("OP604", *args, model)
        refused("OP604", *args, tmp_path / "absent.npy")
        refused("OP604", *args, tmp_path)
        huge = tmp_path / "huge.npy"
        with huge.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (10**15,)})
        refused("OP604", *args, huge)

    def test_names(self, model: Path, out: Path, image: Path) -> None:
        args = ("prune", model, "-o", out, "--ratio", "0.5")
        assert "its inputs are: image" in refused("OP604", *args, "--input", f"imag={image}")
        refused("OP604", *args, "--input", image, "--input", f"image={image}")
        refused("OP302", *args, "--input", image, "--input-shape", "3,3,8,8")

    def test_several_inputs_need_names(self, tmp_path: Path, image: Path) -> None:
        net = Net()
        a, b = (net.input((2, 3, 8, 8), name) for name in "ab")
        net.output(net.conv(net.op("Add", net.conv(a, 8), net.conv(b, 8)), 4))
        model, out = tmp_path / "two.onnx", tmp_path / "o.onnx"
        onnx.save(net.model(), model)
        args = ("prune", model, "-o", out, "--ratio", "0.5", "--input")
        assert "2 inputs" in refused("OP604", *args, image)
        assert "no array for input 'b'" in refused("OP604", *args, f"a={image}")
        invoke(*args, f"a={image}", "--input", f"b={image}")

    def test_an_input_that_tells_nothing(self, model: Path, out: Path, tmp_path: Path) -> None:
        proto = network()
        for tensor in proto.graph.initializer:  # nothing but the input's own values reach the output
            if tensor.name.endswith("_b"):
                tensor.CopyFrom(numpy_helper.from_array(np.zeros(tensor.dims, np.float32), tensor.name))
        onnx.save(proto, model)
        zeros = tmp_path / "zeros.npy"
        np.save(zeros, np.zeros((1, 3, 8, 8), np.float32))
        result = invoke("prune", model, "-o", out, "--ratio", "0.5", "--input", zeros)
        assert result.stderr.startswith("warning: no output changes")
        assert "warning" not in invoke("prune", model, "-o", out, "--ratio", "0.5", "--force").stderr

    def test_shapes(self, model: Path) -> None:
        assert document("inspect", model, "--input-shape", "5,3,8,8")["counted_at"] == {"image": [5, 3, 8, 8]}
        assert document("inspect", model, "--input-shape", "image:5,3,8,8")["counted_at"] == {"image": [5, 3, 8, 8]}
        refused("OP603", "inspect", model, "--input-shape", "imag:5,3,8,8")
        refused("OP603", "inspect", model, "--input-shape", "5,4,8,8")
        refused("OP603", "inspect", model, "--input-shape", "5,3,8,8", "--input-shape", "6,3,8,8")
        refused("OP602", "inspect", model, "--input-shape", "image:5x3")

    def test_the_sizes_of_a_plan_are_kept(self, model: Path, out: Path, tmp_path: Path) -> None:
        plan = tmp_path / "p.json"
        invoke("plan", model, "-o", plan, "--ratio", "0.5", "--input-shape", "7,3,8,8")
        assert document("prune", model, "-o", out, "--plan", plan)["counted_at"] == {"image": [7, 3, 8, 8]}


class TestPlan:
    def test_written(self, model: Path, tmp_path: Path) -> None:
        path = tmp_path / "p.json"
        found = document("plan", model, "-o", path, "--target", "params=0.6", "--allocation", "global")
        written = json.loads(path.read_text())
        assert found["cost"] == written["cost"]
        assert found["settings"]["target"] == {"quantity": "params", "value": 0.6}
        assert {g["name"] for g in found["groups"]} == {"stem", "left"}
        assert all(g["kept"] + g["removed"] == g["units"] for g in found["groups"])
        table = invoke("plan", model, "-o", path, "--ratio", "0.5", "--force").stdout
        assert "stem" in table and "-50.0 %" in table

    def test_to_stdout(self, model: Path) -> None:
        result = invoke("plan", model, "-o", "-", "--ratio", "0.5")
        assert json.loads(result.stdout)["format"] == 2
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
            ("OP302", ["--target", "macs=0.5", "--target", "params=0.5"]),
            ("OP602", ["--target", "mac=0.5"]),
            ("OP602", ["--target", "macs"]),
            ("OP602", ["--target", "macs=half"]),
            ("OP602", ["--ratio", "nan"]),
            ("OP602", ["--ratio-for", "0.5"]),
            ("OP602", ["--ratio", "0.5", "--seed", "-1"]),
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
        assert "did you mean macs?" in refused("OP602", *args, "--target", "mac=0.5")
        assert "--ratio" in refused("OP602", *args, "--rato", "0.5")

    @pytest.mark.parametrize("option", ["--ratio=0.3", "--criterion=l1", "--exact-only", "--exclude=stem"])
    def test_a_plan_is_not_planned_again(self, model: Path, plan: Path, out: Path, option: str) -> None:
        assert option.partition("=")[0] in refused("OP302", "prune", model, "-o", out, "--plan", plan, option)

    def test_documented_defaults_are_the_library_s(self) -> None:

        settings = settings_of({"ratio": 0.5})
        assert settings.guards == Guards()
        text = " ".join(invoke("plan", "--help").stdout.split())
        for default in (
            settings.criterion,
            settings.allocation,
            Guards().min_channels,
            Guards().max_ratio,
            settings.seed,
        ):
            assert f"[default: {default}]" in text


class TestVerify:
    @pytest.fixture
    def pruned(self, model: Path, plan: Path, out: Path) -> Path:
        invoke("prune", model, "-o", out, "--plan", plan, "-q")
        return out

    def test_with_the_plan(self, model: Path, pruned: Path, plan: Path) -> None:
        found = document("verify", model, pruned, "--plan", plan, "--seed", 5)
        assert found["proved"] and found["verification"]["seed"] == 5
        assert "proved right" in invoke("verify", model, pruned, "--plan", plan).stdout

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

    def test_without_the_plan(self, model: Path, pruned: Path) -> None:
        found = document("verify", model, pruned)
        assert not found["proved"] and found["verification"] is None
        (distance,) = found["distances"]
        rng = np.random.default_rng(0)
        image = {"image": rng.standard_normal((1, 3, 8, 8)).astype(np.float32)}
        a, b = (next(iter(run(session(p), image).values())) for p in (model, pruned))
        assert distance["difference"] == pytest.approx(np.abs(a - b).max() / np.abs(a).max(), rel=1e-3)
        assert "isn't proved" in invoke("verify", model, pruned).stdout
        refused("OP302", "verify", model, pruned, "--tolerance", "0.1")

    def test_another_interface(self, model: Path, pruned: Path, plan: Path) -> None:
        changed = onnx.load(pruned)
        changed.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "batch"
        onnx.save(changed, pruned)
        for args in ((), ("--plan", plan)):
            result = invoke("verify", model, pruned, *args, status=1)
            assert result.stderr.startswith("error[OP503]") and "interface" in result.stdout

    def test_not_finite(self, model: Path, pruned: Path) -> None:
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

    @pytest.mark.parametrize("code", sorted(CATALOGUE))
    def test_code(self, code: str) -> None:
        result = invoke("explain", code)
        assert result.stdout.startswith(f"{code} {CATALOGUE[code].title}\n")
        assert document("explain", code)["explanation"] == CATALOGUE[code].explanation

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


class TestFailures:
    def test_a_bug_is_one_line(self, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: object, **__: object) -> None:
            raise KeyError("something")

        monkeypatch.setattr("onnxprune.cli.inspect.open_model", broken)
        brief = invoke("inspect", model, status=2).stderr
        assert brief.splitlines()[0] == "error: internal error: KeyError: 'something'"
        assert "Traceback" not in brief and "report" in brief
        assert "Traceback" in invoke("inspect", model, "-vv", status=2).stderr

    def test_a_missing_package(self, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "onnxprune.report.summary", None)
        told = invoke("inspect", model, status=2).stderr
        assert told.startswith("error[OP609]: the installation is incomplete") and "pip install" in told

    def test_tracebacks_of_errors_need_vv(self, tmp_path: Path) -> None:
        absent = tmp_path / "absent.onnx"
        assert "Traceback" not in invoke("inspect", absent, "-v", status=2).stderr
        assert "Traceback" in invoke("inspect", absent, "-vv", status=2).stderr

    def test_interrupted(self, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("onnxprune.cli.inspect.open_model", interrupted)
        invoke("inspect", model, status=130)

    def test_usage(self) -> None:
        refused("OP602", "prun")
        refused("OP602", "--colour")
        refused("OP602", "inspect")
        assert invoke().stdout == invoke("--help").stdout

    def test_names_can_not_command_the_terminal(self, tmp_path: Path) -> None:
        proto = network()
        proto.graph.node[0].name = "\x1b[31mstem"
        path = tmp_path / "model.onnx"
        onnx.save(proto, path)
        assert "\x1b" not in invoke("inspect", path).stdout
        assert "\x1b" not in invoke("explain", path, "\x1b[31mste", status=2).stderr

    @pytest.mark.parametrize("command", COMMANDS)
    def test_help(self, command: str) -> None:
        for flag in ("-h", "--help"):
            text = invoke(command, flag).stdout
            for option in ("--verbose", "--quiet", "--format"):
                assert option in text


def test_unknown_operators_are_no_failure(tmp_path: Path) -> None:
    net = Net(domains={"my.domain": 1})
    x = net.conv(net.input((1, 3, 8, 8)), 8, 3, name="stem")
    net.output(net.conv(x, 4, name="head"))
    proto = net.model()
    node = helper.make_node("Secret", ["stem_out0"], ["secret"], name="secret", domain="my.domain")
    proto.graph.node.insert(1, node)
    proto.graph.node[2].input[0] = "secret"
    path = tmp_path / "secret.onnx"
    onnx.save(proto, path)
    codes = [pin["code"] for pin in document("explain", path)["pins"]]
    assert "OP203" in codes or "OP213" in codes
    refused("OP310", "prune", path, "-o", tmp_path / "o.onnx", "--ratio", "0.5")
