"""The site builds without a warning, and a broken link is one; workflows and other settings are valid."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from tests.docs.examples import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A copy of what the site is made of."""
    if not (find_spec("mkdocs") and find_spec("mkdocstrings")):
        pytest.skip("needs the `docs` extra")
    for name in ("mkdocs.yml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("docs", "onnxprune"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def _build(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    variables = {**os.environ, "PYTHONPATH": str(folder), "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_site_builds(site: Path) -> None:
    done = _build(site)
    assert done.returncode == 0, done.stderr
    pages = site / "build" / "site"
    assert "OP101" in (pages / "reference" / "errors" / "index.html").read_text()
    assert "--target" in (pages / "reference" / "cli" / "index.html").read_text()
    reference = (pages / "reference" / "api" / "index.html").read_text()
    import onnxprune

    # settings have tables of their own
    ids = [n.lower() if home == "settings" else f"onnxprune.{home}.{n}" for n, home in onnxprune._HOME.items()]
    assert not [own for own in ids if f'id="{own}"' not in reference]


@pytest.mark.slow
@pytest.mark.parametrize("link", ["[x](absent.md)", "[x](concepts.md#absent)"])
def test_broken_links_are_found(site: Path, link: str) -> None:
    page = site / "docs" / "quickstart.md"
    page.write_text(page.read_text() + f"\n{link}\n")
    done = _build(site)
    assert done.returncode != 0 and "absent" in done.stderr


def test_links_of_pages_outside_the_site() -> None:
    """Links of the README and of the pages beside it name files that exist."""
    for page in ROOT.glob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)[^):]*\)", page.read_text(encoding="utf-8")):
            assert (ROOT / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows(path: Path) -> None:
    """They follow GitHub's schema, and call the steps that `.ci/check` has."""
    content = yaml.safe_load(path.read_text())
    script = (ROOT / ".ci" / "check").read_text()
    steps = set(re.findall(r"^    (\w+)\)$", script, re.MULTILINE))
    assert {"test", "dev", "lint", "docs", "wheel"} == steps
    lines = [step.get("run", "") for job in content["jobs"].values() for step in job["steps"]]
    called = [word for line in lines if ".ci/check" in line for word in line.partition(".ci/check")[2].split()]
    assert called and set(called) <= steps
    if find_spec("check_jsonschema"):
        command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_workflows_cover_what_is_supported() -> None:
    """Pythons and systems of the tests; publishing without a stored token."""
    tests = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["test"]
    matrix = tests["strategy"]["matrix"]
    assert matrix["python"] == ["3.11", "3.12", "3.13", "3.14"]
    assert {name.partition("-")[0] for name in matrix["os"]} == {"ubuntu", "macos", "windows"}
    publish = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"} and "with" in publish["steps"][-2]
    assert not re.search(r"secrets\.|password", (ROOT / ".github" / "workflows" / "release.yml").read_text())


def test_versions_agree() -> None:
    """The package's version is that of its metadata, of the citation, and of the changelog's newest section."""
    import tomllib

    import onnxprune

    version = onnxprune.__version__
    assert tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"] == version
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == version
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[:2] == ["Unreleased", version]


def test_pre_commit() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert {hook["id"] for repository in hooks for hook in repository["hooks"]} >= {"ruff-check", "ruff-format", "mypy"}
