"""The library names settings by field and commands in words; only the command line writes flags."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from onnxprune import load, save
from onnxprune.cli.failures import with_flags
from tests.cli.support import invoke
from tests.toolbox import Net

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "onnxprune"
PLUGIN = ROOT / "plugins" / "onnxprune_ort_training" / "onnxprune_ort_training"
LIBRARY = [
    file
    for folder in (PACKAGE, PLUGIN)
    for file in sorted(folder.rglob("*.py"))
    if file.relative_to(PACKAGE.parent).parts[1] != "cli" and file.name != "__main__.py"
]


def flagged(source: str) -> list[str]:
    """Return the strings of a module that write a flag or a command line, docstrings left out."""
    return [text for text in _strings(ast.parse(source)) if re.search(r"--[a-z]|`onnxprune ", text)]


def _strings(node: ast.AST) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Constant) and isinstance(child.value, str):
            if not (isinstance(node, ast.List) and re.fullmatch(r"--[a-z]\S*", child.value)):  # another program's flag
                yield child.value
        elif not (_is_docstring(child) or _is_option(child)):
            yield from _strings(child)


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_option(node: ast.AST) -> bool:
    """Whether a node declares a setting, whose help is that of a flag."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "setting"


@pytest.mark.parametrize("file", LIBRARY, ids=lambda file: str(file.relative_to(ROOT)))
def test_messages_name_fields(file: Path) -> None:
    assert flagged(file.read_text()) == []


def test_flags_in_messages_are_noticed() -> None:
    assert flagged('raise E("OP1", "no", hint="pass --force")') == ["pass --force"]
    assert flagged('hint = f"use --ratio={x}"') == ["use --ratio="]
    assert flagged('hint = f"see `onnxprune inspect {model}`"') == ["see `onnxprune inspect "]
    assert flagged('def f():\n    """Do what --force does."""') == []
    assert flagged('x: int = setting(0, "Samples of --data.")') == []
    assert flagged('other(0, "Samples of --data.")') == ["Samples of --data."]


def test_commands_are_written_as_they_are_typed() -> None:
    assert with_flags("the command `inspect` lists them", None) == "`onnxprune inspect` lists them"
    assert with_flags("pass `force` to overwrite it", None) == "pass `force` to overwrite it"


class TestCommandLine:
    @pytest.fixture
    def model(self, tmp_path: Path) -> Path:
        net = Net(opset=17)
        x = net.conv(net.input([1, 3, 8, 8]), 8, 3, name="first")
        net.output(net.conv(net.conv(x, 8, 3, group=4, name="grouped"), 2, name="last"))
        path = tmp_path / "model.onnx"
        save(load(net.model()), path)
        return path

    def test_errors_name_flags(self, model: Path) -> None:
        found = invoke("explain", model, "zzzzzzzz", status=2).stderr
        assert "help: `onnxprune inspect MODEL` lists them" in found
        found = invoke("inspect", model, "--input-shape", "1,0,8,8", status=2).stderr
        assert "\n  --> --input-shape input0:1,0,8,8\n" in found
        found = invoke("plan", model, "-o", "-", "--ratio", 0.5, "--exclude", "nothing", status=2).stderr
        assert "\n  --> --exclude\n" in found and "`onnxprune inspect MODEL` lists the names" in found

    def test_tables_name_flags(self, model: Path) -> None:
        found = invoke("explain", model, "grouped", "--grouped", "groups").stdout
        assert "help: set --grouped to channels" in found
        assert "`onnxprune explain " in invoke("inspect", model).stdout
