from __future__ import annotations

import ast
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

from onnxprune import errors
from onnxprune.errors import CATALOG, ModelError, OnnxPruneError, VerificationError


def test_message_has_only_the_lines_that_are_present() -> None:
    assert str(OnnxPruneError("OP101", "no file")) == "error[OP101]: no file"
    full = ModelError("OP101", "no file", where="a.onnx", hint="check the path")
    assert str(full) == "error[OP101]: no file\n  --> a.onnx\n  help: check the path"
    assert (full.code, full.cause, full.where, full.hint) == (
        "OP101",
        "no file",
        "a.onnx",
        "check the path",
    )


def test_every_kind_of_error_is_exported() -> None:
    kinds = {k for k, v in vars(errors).items() if isinstance(v, type) and issubclass(v, OnnxPruneError)}
    assert kinds == {name for name in errors.__all__ if name.endswith("Error")}


def test_exit_status_is_one_for_a_failed_gate_and_two_for_bad_input() -> None:
    public = vars(errors).values()
    kinds = [k for k in public if isinstance(k, type) and issubclass(k, OnnxPruneError)]
    assert {k.__name__: k.exit_status for k in kinds} == {
        "OnnxPruneError": 2,
        "ModelError": 2,
        "PlanError": 2,
        "RewriteError": 2,
        "VerificationError": 1,
        "UsageError": 2,
        "DataError": 2,
        "DivergenceError": 1,
        "TrainingError": 2,
        "BenchmarkError": 2,
        "RegressionError": 1,
        "InstallationError": 1,
    }


def test_a_code_outside_the_catalog_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="OP999"):
        OnnxPruneError("OP999", "?")


def test_attributes_are_read_only() -> None:
    with pytest.raises(AttributeError):
        ModelError("OP101", "x").code = "OP102"  # type: ignore[misc]


def test_errors_survive_pickling() -> None:
    error = VerificationError("OP501", "differs", where="out", hint="report")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is VerificationError and str(again) == str(error)


def test_every_code_is_well_formed_and_explained() -> None:
    assert list(CATALOG) == sorted(CATALOG)
    for code, info in CATALOG.items():
        assert re.fullmatch(r"OP[1-9]\d\d", code)
        assert info.title and not info.title.endswith(".")
        assert info.explanation.endswith(".") and len(info.explanation) > 60
        assert "  " not in info.explanation
    assert {f"OP{n}" for n in range(201, 215)} <= CATALOG.keys()


def codes_in(source: str) -> set[str]:
    """Return the codes that Python code names in strings of their own: arguments of errors and of pins."""
    strings = [n.value for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return {text for text in strings if re.fullmatch(r"OP\d+", text)}


def test_the_catalog_has_the_codes_that_are_used_and_no_others() -> None:
    package = Path(errors.__file__).parents[1]
    used = {code for path in package.rglob("*.py") for code in codes_in(path.read_text(encoding="utf-8"))}
    assert used - CATALOG.keys() == set()
    assert CATALOG.keys() - used == set()
    assert codes_in('raise ModelError("OP999", "OP998 is meant")') == {"OP999"}


def test_the_catalog_is_read_when_a_code_is_looked_up() -> None:
    check = "from onnxprune import errors; read = lambda: '_entries' in vars(errors.CATALOG)"
    used = "errors.OnnxPruneError('OP101', '')"
    for then, expected in [("None", "False"), (used, "True")]:
        command = [sys.executable, "-c", f"{check}; {then}; print(read())"]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == expected
