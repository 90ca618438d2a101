"""The public functions: they exist, they are functions, and their examples run."""

from __future__ import annotations

import doctest
import inspect
import logging
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import onnxprune as op

ROOT = Path(__file__).parents[2]
WORKFLOW = (
    *(
        "load",
        "analyze",
        "plan",
        "prune",
        "repair",
        "finetune",
        "evaluate",
        "benchmark",
        "verify",
        "save",
        "prune_model",
    ),
)


def test_the_names_exist() -> None:
    for name in op.__all__:
        assert getattr(op, name) is not None and name in dir(op)
    assert set(WORKFLOW) <= set(op.__all__)
    with pytest.raises(AttributeError):
        _ = op.nothing  # type: ignore[attr-defined]


def test_names_for_type_checkers_are_those_at_run_time() -> None:
    text = Path(op.__file__).read_text(encoding="utf-8")
    typed = text.partition("if TYPE_CHECKING:")[2].partition("\n_ERRORS")[0]
    assert set(re.findall(r" as (\w+)", typed)) == set(op.__all__)


def test_functions_stay_functions() -> None:
    """Importing submodules doesn't replace a public function by a module of the same name."""
    script = f"""
import importlib, pkgutil, inspect, onnxprune
for found in pkgutil.walk_packages(onnxprune.__path__, "onnxprune."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
for name in {WORKFLOW}:
    assert inspect.isfunction(getattr(onnxprune, name)), name
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


@pytest.mark.parametrize("name", [name for name in op.__all__ if inspect.isfunction(getattr(op, name))])
def test_examples(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function: Any = getattr(op, name)
    monkeypatch.chdir(ROOT)
    (found,) = doctest.DocTestFinder(recurse=False).find(function, name, module=import_module(function.__module__))
    if name in WORKFLOW and name not in ("load", "save", "finetune", "evaluate", "benchmark"):
        assert found.examples, f"{name} has no example"
    assert not any(doctest.SKIP in example.options for example in found.examples)
    failed, tried = doctest.DocTestRunner(verbose=False).run(found)
    assert failed == 0 and tried == len(found.examples)


def test_the_example_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    failed, tried = doctest.testmod(op)
    assert failed == 0 and tried >= 5


def test_steps_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "onnxprune"):
        op.prune_model(ROOT / "models" / "digits_resnet.onnx", ratio=0.5)
    logged = " ".join(record.getMessage() for record in caplog.records)
    for step in ("traced", "planned", "rewritten", "proved"):
        assert step in logged
    assert all(record.name.startswith("onnxprune.") for record in caplog.records)


def test_settings_or_options_not_both() -> None:
    with pytest.raises(op.UsageError) as caught:
        op.plan(ROOT / "models" / "digits_resnet.onnx", op.PlanSettings(ratio=0.5), seed=1)
    assert caught.value.code == "OP602"
    with pytest.raises(op.UsageError):
        op.prune_model(ROOT / "models" / "digits_resnet.onnx", op.PruneSettings(), ratio=0.5)


@pytest.mark.parametrize(
    ("old", "new"), [("Settings", "PlanSettings"), ("Guards", "Constraints"), ("analyse", "analyze")]
)
def test_old_names_are_accepted_with_a_warning(old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=new):
        assert getattr(op, old) is getattr(op, new)
    with pytest.raises(AttributeError):
        getattr(op, f"{old}s")
