"""`onnxprune benchmark`: what it prints, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import fromstring

import pytest
from click.testing import CliRunner, Result

from onnxprune.cli import cli

MODELS = Path(__file__).parents[2] / "models"
DIGITS = MODELS / "digits_resnet.onnx"
QUICK = ("--seconds", "0.02", "--rounds", "5", "--threads", "1")


def invoke(*args: object, status: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["benchmark", *map(str, args), *QUICK])
    assert result.exit_code == status, result.output
    return result


def refused(code: str, *args: object, status: int = 2) -> str:
    result = invoke(*args, status=status)
    assert f"error[{code}]" in result.stderr, result.stderr
    return result.stderr


@pytest.fixture
def other(tmp_path: Path) -> Path:
    path = tmp_path / "other.onnx"
    path.write_bytes(DIGITS.read_bytes())
    return path


def test_table(other: Path) -> None:
    found = invoke(DIGITS, other, "--profile").stdout
    for text in ("latency on cpu", "speed-up", "peak memory", "time by operator", "time by layer", "processor", "Conv"):
        assert text in found


def test_document_and_gate(other: Path, tmp_path: Path) -> None:
    base = tmp_path / "base.json"
    found = json.loads(invoke(DIGITS, other, "--format", "json", "-o", base).stdout)
    assert (found["version"], found["report"], found["format"]) == (3, "benchmark", 1)
    assert json.loads(base.read_text()) == found
    case = found["cases"][0]
    assert [r["model"] for r in case["results"]] == ["digits_resnet.onnx", "other.onnx"]
    assert case["results"][1]["speedup"]["low"] > 0 and case["shapes"] == {"image": [1, 1, 8, 8]}
    assert found["environment"]["cores"] >= 1 and found["settings"]["threads"] == 1

    assert "against the baseline" in invoke(DIGITS, other, "--compare", base, "--max-regression", "1000%").stdout
    for result in case["results"]:
        result["latency"]["median"] /= 1000
    base.write_text(json.dumps(found))
    refused("OP806", DIGITS, other, "--compare", base, "--max-regression", "5%", status=1)


def test_speed_within_the_run(other: Path) -> None:
    """Equal models: 100 times as fast is missed for certain, a hundredth is held for certain."""
    found = json.loads(invoke(DIGITS, other, "--min-speedup", "0.01", "--format", "json").stdout)
    (gate,) = found["gates"]
    assert gate["held"] and gate["decided"] and gate["found"] == found["cases"][0]["results"][1]["speedup"]
    missed = refused("OP807", DIGITS, other, "--min-speedup", "100x", status=1)
    assert "at least 100.00x" in missed and "interval reaches" not in missed
    assert "MISSED" in invoke(DIGITS, other, "--min-speedup", "100", status=1).stdout


def test_junit(other: Path, tmp_path: Path) -> None:
    base = tmp_path / "base.json"
    invoke(DIGITS, other, "-o", base)
    flags = ("--min-speedup", "100", "--compare", base, "--max-regression", "1000%", "--format", "junit")
    (suite,) = fromstring(invoke(DIGITS, other, *flags, status=1).stdout)
    passed = {str(case.get("name")): case.find("failure") is None for case in suite.iter("testcase")}
    assert list(passed.values()) == [False, True, True, True]
    assert [name.split()[0] for name in passed] == ["speed-up", "slowdown", "slowdown", "benchmark"]


def test_files_are_not_overwritten(other: Path) -> None:
    refused("OP116", DIGITS, "-o", other)


@pytest.mark.parametrize(
    ("code", "args"),
    [
        ("OP608", ["--providers", "cpu,cuda9"]),
        ("OP608", ["--providers", "vitisai"]),
        ("OP602", ["--provider-option", "cpu.threads"]),
        ("OP602", ["--provider-option", "cuda.use_tf32=0"]),
        ("OP602", ["--batch", "1,x"]),
        ("OP801", ["--batch", "0"]),
        ("OP801", ["--confidence", "1"]),
        ("OP801", ["--warm-up", "-1"]),
        ("OP302", ["--max-regression", "5%"]),
        ("OP302", ["--min-speedup", "1.3"]),
        ("OP602", ["--min-speedup", "0"]),
        ("OP602", ["--min-speedup", "fast"]),
        ("OP804", ["--compare", str(DIGITS)]),
        ("OP603", ["--input-shape", "nope:1,1,8,8"]),
    ],
)
def test_refusals(code: str, args: list[Any]) -> None:
    refused(code, DIGITS, *args)


def test_a_model_twice() -> None:
    refused("OP602", DIGITS, DIGITS)


def test_isolated_with_real_inputs(tmp_path: Path) -> None:
    import numpy as np

    np.save(tmp_path / "x.npy", np.zeros((3, 1, 8, 8), np.float32))
    found = json.loads(
        invoke(
            DIGITS, "--input", tmp_path / "x.npy", "--isolate", "--batch", "2,3", "--no-arena", "--format", "json"
        ).stdout
    )
    assert found["settings"]["arena"] is False and found["settings"]["isolate"] is True
    assert [case["batch"] for case in found["cases"]] == [2, 3]
