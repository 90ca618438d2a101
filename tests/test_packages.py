"""The order of packages: each imports only from those above it in the table of docs/architecture.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "onnxprune"


def declared() -> list[str]:
    """Return the packages in the order of the table."""
    text = (ROOT / "docs" / "architecture.md").read_text().partition("## Packages")[2].partition("\n## ")[0]
    return re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)


def package_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(source: str) -> Iterator[str]:
    """Yield the packages of ours that a module imports, for type checkers or not."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "onnxprune":
            names = [node.module] if "." in node.module else [f"onnxprune.{alias.name}" for alias in node.names]
            yield from (name.split(".")[1] for name in names)
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("onnxprune."))


def test_every_package_is_in_the_table() -> None:
    found = {package_of(file) for file in PACKAGE.rglob("*.py")} - {"__init__", "__main__"}
    assert found == set(declared())


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_up_the_table(file: Path) -> None:
    order = {name: number for number, name in enumerate(declared())}
    own = package_of(file)
    if own not in order:  # the public front of the package, and python -m
        return
    wrong = {name for name in imports(file.read_text()) if order.get(name, len(order)) > order[own]}
    assert not wrong


def test_an_import_that_runs_back_is_noticed() -> None:
    order = declared()
    assert order.index("trace") < order.index("planning")
    assert set(imports("from onnxprune.planning.plan import PrunePlan\nimport onnxprune.cli.group")) == {
        "planning",
        "cli",
    }
    assert list(imports("if TYPE_CHECKING:\n    from onnxprune import errors")) == ["errors"]


@pytest.mark.parametrize("package", declared())
def test_modules_of_a_package_import_each_other_without_circles(package: str) -> None:
    own = {module_of(file): file for file in PACKAGE.rglob("*.py") if package_of(file) == package}
    needs = {
        name: {
            n.module for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.ImportFrom) and n.module in own
        }
        for name, file in own.items()
    }
    front = f"onnxprune.{package}"  # whose names a module may import through it
    while needs:
        free = [name for name, wanted in needs.items() if not (wanted - {name, front}) & needs.keys()]
        assert free, f"a circle among {sorted(needs)}"
        needs = {name: wanted for name, wanted in needs.items() if name not in free}
