"""The wheel, built from what git has, installed elsewhere: it runs without the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import onnxprune

ROOT = Path(__file__).parents[1]
BIN = "Scripts" if sys.platform == "win32" else "bin"

pytestmark = pytest.mark.slow


def _run(*command: object, cwd: Path) -> str:
    # Neither the checkout nor the tests' own settings are there for the installed program.
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "COLUMNS"))}
    text, out = [str(part) for part in command], subprocess.PIPE
    done = subprocess.run(text, cwd=cwd, env=variables, stdout=out, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("needs a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / "source" / name)
    pip = (sys.executable, "-m", "pip")
    _run(*pip, "wheel", "-q", "--no-deps", "-w", folder / "dist", folder / "source", cwd=folder)
    return next((folder / "dist").glob("*.whl"))


def test_contents(wheel: Path) -> None:
    """All modules, the texts of error codes, the demo's files and the manual page; no tests."""
    names = set(zipfile.ZipFile(wheel).namelist())
    listed = subprocess.run(["git", "ls-files", "onnxprune"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(listed.stdout.split()) <= names
    assert {"onnxprune/demo/digits_resnet.onnx", "onnxprune/py.typed"} <= names
    assert not any(name.startswith(("tests/", "models/", "docs/")) for name in names)
    assert wheel.stat().st_size < 3e6
    page = next(name for name in names if name.endswith("share/man/man1/onnxprune.1"))
    text = zipfile.ZipFile(wheel).read(page).decode()
    assert ".SH PRUNE" in text and "\\-\\-target" in text and "\\-h, \\-\\-help" in text


def test_it_runs_elsewhere(wheel: Path, tmp_path: Path) -> None:
    """In a new environment that borrows the dependencies of this one, `onnxprune demo` succeeds."""
    _run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    tools = tmp_path / "venv" / BIN
    _run(tools / "python", "-m", "pip", "install", "-q", "--no-deps", wheel, cwd=tmp_path)
    where = _run(tools / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path)
    Path(where.strip(), "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    place = _run(tools / "python", "-c", "import onnxprune; print(onnxprune.__file__)", cwd=tmp_path)
    assert Path(place.strip()).is_relative_to(tmp_path)
    assert _run(tools / "onnxprune", "--version", cwd=tmp_path) == f"onnxprune {onnxprune.__version__}\n"
    assert "of the MACs removed, proved, repaired" in _run(tools / "onnxprune", "demo", cwd=tmp_path)
    assert (tmp_path / "onnxprune-demo" / "digits_small.onnx").exists()
