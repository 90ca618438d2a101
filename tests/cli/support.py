"""Run commands as a user does, and return what they print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from onnxprune.cli import cli
from onnxprune.version import REPORTS
from tests.report.schemas import AVAILABLE, problems

DIGITS = Path(__file__).parents[2] / "models" / "digits_resnet.onnx"


def invoke(*args: object, status: int = 0) -> Result:
    result = CliRunner().invoke(cli, [str(a) for a in args])
    assert result.exit_code == status, result.output
    return result


def document(*args: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(invoke(*args, "--format", "json").stdout)
    assert found["version"] == REPORTS
    assert not AVAILABLE or not problems(found, strict=False)
    return found


def refused(code: str, *args: object, status: int = 2) -> str:
    result = invoke(*args, status=status)
    assert result.stderr.splitlines()[0].startswith(f"error[{code}]: "), result.stderr
    return result.stderr
