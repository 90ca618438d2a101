"""The notebook runs, and what it says of its figures holds."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

from tests.docs.examples import ROOT

NOTEBOOK = ROOT / "docs" / "guides" / "notebook.ipynb"

nbformat = pytest.importorskip("nbformat", reason="needs the `dev` extra")


def test_it_is_valid_and_has_no_outputs() -> None:
    """Outputs would grow old in the repository: who reads it runs it."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in notebook.cells)


@pytest.mark.slow
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = pytest.importorskip("nbclient", reason="needs the `dev` extra")
    pytest.importorskip("ipykernel", reason="needs the `dev` extra")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    (tmp_path / "models").symlink_to(ROOT / "models")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert any("<table" in output.get("data", {}).get("text/html", "") for output in outputs)
    shown = (output.get("data", {}).get("text/plain", "") for output in outputs)
    curves = ast.literal_eval(next(text for text in shown if text.startswith("{'l2'")))
    # "Repair matters far more than the criterion."
    assert min(curves["random, repaired"]) > 80 > 40 > min(curves["l2"])
