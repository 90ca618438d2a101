"""The README and docs/ show what happens: every command is run, and its output compared.

`pytest tests/docs --update` writes outputs anew.
"""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.docs.examples import INSTALL, ROOT, SHARED, Page, differences, read, renewed, run, runnable

GENERATED = ("operators.md", "coverage.md", "compatibility.md")
PAGES = [
    read(path)
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if path.name not in GENERATED and (path.parent.name != "benchmarks" or path.name == "index.md")
]


def _named(page: Page) -> str:
    return page.path.relative_to(ROOT).as_posix()


@pytest.mark.skipif(sys.platform == "win32", reason="the commands are for a POSIX shell")
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=_named(page), marks=[pytest.mark.slow] if page.slow else [])
        for page in PAGES
        if page.steps
    ],
)
def test_commands_print_what_is_shown(page: Page, tmp_path: Path, update: bool) -> None:
    for need in page.needs:
        path = SHARED / need.removeprefix("shared/")
        if not (path.exists() if need.startswith("shared/") else find_spec(need)):
            pytest.skip(f"needs {need}")
    wrong, results = [], []
    for step, status, found in run(page, tmp_path):
        results.append((step, found))
        shown = f"{_named(page)}:{step.line}: {step.code.splitlines()[0]}"
        if step.expected is None and status != 0:
            wrong.append("\n".join([f"{shown}\nexit status {status}", *found]))
        elif step.expected is not None and (difference := differences(step.expected, found, measured=step.measured)):
            wrong.append("\n".join([shown, *difference]))
    if update:
        page.path.write_text(renewed(page, results), encoding="utf-8")
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.parametrize("page", PAGES, ids=_named)
def test_every_block_is_checked(page: Page) -> None:
    """No block of a page escapes: it is run, is the output of what is run, or can be parsed."""
    import tomllib

    import yaml

    parsers = {"json": json.loads, "yaml": yaml.safe_load, "toml": tomllib.loads, "xml": ElementTree.fromstring}
    for line, kind, body in page.others:
        assert kind in parsers, f"{_named(page)}:{line}: a block of kind {kind!r} isn't checked"
        parsers[kind](body)


def test_readme_begins_with_the_main_job() -> None:
    """The first command installs the checkout and shrinks a network of `models/`; another runs the tests."""
    steps = read(ROOT / "README.md").steps
    assert INSTALL.match(steps[0].code) and runnable(steps[0].code).startswith("onnxprune shrink models/")
    assert steps[0].expected
    assert any(step.code.endswith(".venv/bin/pytest") for step in steps)


class TestComparison:
    """The comparison sees what matters, and only that."""

    @pytest.mark.parametrize(
        ("expected", "found"),
        [
            (["top-1  98.9 %"], ["top-1   98.2 %"]),
            (["error 7.9e-08, allowed 0.0001"], ["error 3e-07, allowed 0.0001"]),
            (["it takes 3 ms"], ["it takes 9 ms"]),
            (["a", "...", "d"], ["a", "b", "c", "d"]),
            (["...", "c 1", "..."], ["a", "b", "c 1", "d"]),
        ],
    )
    def test_same(self, expected: list[str], found: list[str]) -> None:
        assert not differences(expected, found)

    @pytest.mark.parametrize(
        ("expected", "found"),
        [
            (["top-1  98.9 %"], ["top-1   91.2 %"]),
            (["top-1  98.9 %"], ["top-5   98.9 %"]),
            (["removed 168 of 328 units"], ["removed 120 of 328 units"]),
            (["error 7.9e-08, allowed 0.0001"], ["error 3e-05, allowed 0.0001"]),
            (["it takes 3 ms"], ["it takes long"]),
            (["it takes 3 ms", "a 5"], ["it takes 3 ms", "a 9"]),
            (["a"], ["a", "b"]),
            (["a", "...", "d"], ["a", "b", "c"]),
            (["a", "b"], ["a"]),
            (["...", "x", "..."], ["a", "b"]),
        ],
    )
    def test_different(self, expected: list[str], found: list[str]) -> None:
        assert differences(expected, found)
