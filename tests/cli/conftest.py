"""A small model on disk, a plan for it, and a path for the result."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from onnxprune.benchmarking import speed
from tests.cli.support import invoke
from tests.report.network import network


@pytest.fixture(autouse=True)
def quick_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time the results of `prune` for a moment only."""
    monkeypatch.setattr(speed, "SECONDS", 0.01)
    monkeypatch.setattr(speed, "_REPEATS", 1)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(network(), path)
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.onnx"


@pytest.fixture
def plan(model: Path, tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    invoke("plan", model, "-o", path, "--ratio", "0.5", "-q")
    return path
