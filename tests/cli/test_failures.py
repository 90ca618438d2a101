"""Failures of commands: one message, an exit status, no traceback."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune.cli import COMMANDS
from tests.cli.support import invoke, refused
from tests.report.network import network


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
        message = invoke("inspect", model, status=2).stderr
        assert message.startswith("error[OP609]: the installation is incomplete") and "pip install" in message

    def test_tracebacks_of_errors_need_vv(self, tmp_path: Path) -> None:
        absent = tmp_path / "absent.onnx"
        assert "Traceback" not in invoke("inspect", absent, "-v", status=2).stderr
        assert "Traceback" in invoke("inspect", absent, "-vv", status=2).stderr

    def test_json(self, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Under --format json, stdout has one document: the result, or the error if there is none."""
        absent = tmp_path / "absent.onnx"

        def error(*args: object, status: int = 2) -> dict[str, Any]:
            result = invoke(*args, status=status)
            found: dict[str, Any] = json.loads(result.stdout)
            assert found.pop("version") == 3 and found.pop("report") == "error"
            assert found.pop("exit_status") == status
            assert found["cause"] in result.stderr  # for the person who reads the log
            return found

        cause = "can't read the file: No such file or directory"
        expected = {"code": "OP101", "cause": cause, "where": str(absent), "hint": None}
        assert error("inspect", absent, "--format", "json") == expected
        assert error("inspect", absent, "--format=json") == expected
        wrong = error("prune", model, "-o", tmp_path / "p.onnx", "--ratio", "3", "--format", "json")
        assert (wrong["code"], wrong["where"]) == ("OP303", "--ratio")
        assert error("inspect", model, "--nonsense", "--format", "json")["code"] == "OP602"
        assert invoke("inspect", absent, status=2).stdout == ""  # without --format json
        changed, other = tmp_path / "changed.onnx", network()
        weight = other.graph.initializer[0]
        weight.CopyFrom(numpy_helper.from_array(np.ones(weight.dims, np.float32), weight.name))
        onnx.save(other, changed)
        plan = tmp_path / "plan.json"
        invoke("plan", model, "-o", plan, "--ratio", "0.5")
        failed = invoke("verify", model, changed, "--plan", plan, "--format", "json", status=1)
        assert json.loads(failed.stdout)["report"] == "verify"  # the result is the document

        def broken(*_: object, **__: object) -> None:
            raise KeyError("something")

        monkeypatch.setattr("onnxprune.cli.inspect.open_model", broken)
        assert error("inspect", model, "--format", "json")["code"] is None

    def test_interrupted(self, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("onnxprune.cli.inspect.open_model", interrupted)
        assert invoke("inspect", model, status=130).stderr == "stopped\n"

    def test_usage(self) -> None:
        refused("OP602", "prun")
        refused("OP602", "--color")
        refused("OP602", "inspect")
        assert invoke().stdout == invoke("--help").stdout

    def test_names_are_escaped(self, tmp_path: Path) -> None:
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
                assert (option in text) == (command not in ("demo", "completion"))

    @pytest.mark.parametrize("command", COMMANDS)
    def test_options_are_in_sections(self, command: str) -> None:
        """Every option has a section; those that most runs need come first."""
        text = invoke(command, "--help").stdout
        assert "Others:" not in text and "Options:" not in text
        titles = re.findall(r"^(\w[\w ]*):$", text, re.MULTILINE)
        if "--data DATA" in text:
            assert titles[0] == "Most used"
        assert "Output" in titles

    def test_commands_have_near_misses(self) -> None:
        assert "Did you mean benchmark?" in refused("OP602", "benchmrk")
        assert "mean" not in refused("OP602", "xyz")
        assert "--target" in refused("OP602", "prune", "--targte", "macs=1")

    def test_files_have_near_misses(self, model: Path, tmp_path: Path) -> None:
        for wrong in (tmp_path / "modle.onnx", tmp_path / "model.onx"):
            assert f"help: did you mean {model}?" in refused("OP101", "inspect", wrong)
        prune = ("prune", model, "-o", tmp_path / "o.onnx", "--ratio", "0.5")
        assert f"did you mean {model}?" in refused("OP305", *prune[:-2], "--plan", tmp_path / "mode.onnx")
        (tmp_path / "images").mkdir()
        assert f"did you mean {tmp_path / 'images'}?" in refused("OP701", *prune, "--data", tmp_path / "image")
        assert "did you mean" not in refused("OP101", "inspect", tmp_path / "another")
        (tmp_path / "int8.onnx").touch()
        assert "did you mean" not in refused("OP101", "inspect", tmp_path / "nix.onnx")  # alike in its suffix only
