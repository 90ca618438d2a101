"""Every document that a command prints follows docs/schemas, and has no further field.

`tests.cli.support.document` checks many more, which may have further fields.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune.cli import COMMANDS
from onnxprune.version import REPORTS
from tests.cli.support import DIGITS, document, invoke
from tests.report.network import network
from tests.report.schemas import AVAILABLE, SCHEMA, problems

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="needs the `dev` extra: jsonschema")

DATA = DIGITS.parent / "digits_test.npz"
SILENT = ("demo", "completion", "run", "report")  # without --format, or with the document of another command


def test_every_command_has_a_schema() -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    reports = [part["$ref"].rpartition("/")[2] for part in schema["oneOf"]]
    assert set(reports) >= {*COMMANDS, "error"} - set(SILENT)
    for report in reports:
        fields = schema["$defs"][report]["properties"]
        assert (fields["version"]["const"], fields["report"]["const"]) == (REPORTS, report)
    assert SCHEMA.stem.endswith(f"-{REPORTS}")


@pytest.mark.parametrize(
    "arguments",
    [
        "inspect MODEL --measure",
        "explain MODEL",
        "explain MODEL stem",
        "explain OP202",
        "explain MODEL OP202",
        "plan MODEL -o OUT --ratio 50%",
        "prune MODEL -o OUT --ratio 50%",
        "prune DIGITS -o OUT --target macs=70% --data DATA --limit 64 --finetune 1",
        "verify MODEL MODEL",
        "evaluate DIGITS --against DIGITS --data DATA --max-drop 5%",
        "finetune DIGITS -o OUT --data DATA --limit 100 --epochs 1 --teacher DIGITS",
        "sensitivity DIGITS --data DATA --limit 32",
        "quantize DIGITS -o OUT --data DATA --no-timed --kind float16",
        "benchmark MODEL --seconds 0.05 --rounds 5 --profile",
        "rules",
        "cache show",
        "doctor",
    ],
)
def test_documents(arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxprune.benchmarking import speed

    monkeypatch.setattr(speed, "SECONDS", 0.01)
    monkeypatch.setattr(speed, "_REPEATS", 1)
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path))
    onnx.save(network(), tmp_path / "model.onnx")
    paths = {"MODEL": tmp_path / "model.onnx", "OUT": tmp_path / "out.onnx", "DIGITS": DIGITS, "DATA": DATA}
    assert not problems(document(*(paths.get(word, word) for word in arguments.split())))


def test_errors(tmp_path: Path) -> None:
    result = invoke("inspect", tmp_path / "absent.onnx", "--format", "json", status=2)
    assert not problems(json.loads(result.stdout))


def test_violations_are_seen(tmp_path: Path) -> None:
    """A field that is new, gone or of another type."""
    path = tmp_path / "model.onnx"
    onnx.save(network(), path)
    found = document("inspect", path)

    def changed(*where: str | int, value: Any) -> list[str]:
        other: Any = copy.deepcopy(found)
        inner = other
        for key in where[:-1]:
            inner = inner[key]
        if value is None:
            del inner[where[-1]]
        else:
            inner[where[-1]] = value
        return problems(other)

    assert not changed("nodes", value=7)
    assert changed("extra", value=7)
    assert changed("layers", 0, "extra", value=7)
    assert changed("groups", 0, "units", value=None)
    assert changed("cost", "macs", value=np.pi)
    assert changed("version", value=1)
