from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

from onnxprune.cli import cli
from tests.data.support import encode, model, picture, zipped


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two models, labeled vectors and images."""
    rng = np.random.default_rng(0)
    onnx.save(model("float[N,7] x", outputs="float[N,7] y", body="y = Abs(x)"), tmp_path / "small.onnx")
    onnx.save(model("float[N,7] x", outputs="float[N,7] y", body="y = Identity(x)"), tmp_path / "model.onnx")
    pool = "y = GlobalAveragePool(x)"
    onnx.save(model("float[N,3,8,8] x", outputs="float[N,3,1,1] y", body=pool), tmp_path / "image.onnx")
    x = rng.standard_normal((60, 7)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, labels=x.argmax(axis=1))
    zipped(tmp_path / "images.zip", {f"{i % 3}/{i}.png": encode(picture(i, 9, 9)) for i in range(9)})
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "def batches():\n    yield np.eye(7, dtype=np.float32), np.arange(7)\n"
        "def sure(outputs, labels):\n    return outputs['y'].max(axis=1)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["evaluate", *arguments])


def test_table_with_intervals_and_changes(place: Path) -> None:
    result = run("small.onnx", "--against", "model.onnx", "--data", "data.npz")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "evaluation  on 60 samples, 95% intervals"
    for title in ("top-1", "agreement", "KL divergence, nats", "mean squared error", "cosine of outputs"):
        assert any(line.strip().startswith(title) for line in lines)
    (top1,) = (line for line in lines if "top-1" in line)
    assert "100.0 %" in top1 and "pt" in top1 and " to " in top1


def test_document_for_programs(place: Path) -> None:
    arguments = ("small.onnx", "--against", "model.onnx", "--data", "data.npz", "--limit", "40", "--format", "json")
    first, again = run(*arguments), run(*arguments)
    assert first.stdout == again.stdout
    document = json.loads(first.stdout)
    assert document["version"] == 3 and document["report"] == "evaluate" and document["samples"] == 40
    scores = document["scores"]
    assert scores["top1"]["original"]["value"] == 1
    assert scores["top1"]["difference"]["low"] < scores["top1"]["difference"]["value"] < 0
    assert run(*arguments, "--seed", "1").stdout != first.stdout


@pytest.mark.parametrize("name", ["cpu", "CPU", "CPUExecutionProvider"])
def test_providers_have_short_names(place: Path, name: str) -> None:
    result = run("model.onnx", "--data", "data.npz", "--format", "json", "--provider", name)
    assert json.loads(result.stdout)["providers"] == ["CPUExecutionProvider"]


def test_what_is_assumed_goes_to_stderr(place: Path) -> None:
    result = run("image.onnx", "--data", "images.zip")
    assert result.exit_code == 0, result.output
    assert "note: labels are those of 3 folders, their names: 0, 1, 2" in result.stderr
    assert "warning: the preprocessing is a guess, --preprocess 'channels=" in result.stderr
    assert "guess" not in result.stdout
    said = run("image.onnx", "--data", "images.zip", "--preprocess", "resize=8x8 scale=1 labels=none", "-q")
    assert said.exit_code == 2 and "OP711" in said.stderr and "note" not in said.stderr


def test_modules_of_the_working_folder_are_found(place: Path) -> None:
    result = run(
        "model.onnx", "--data", "mine:batches", "--metric", "mine:sure", "--metric", "top1", "--format", "json"
    )
    assert result.exit_code == 0, result.output
    scores = {name: score["model"]["value"] for name, score in json.loads(result.stdout)["scores"].items()}
    assert scores == {"mine:sure": 1, "top1": 1}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--data", "none.npz"], "OP701"),
        (["--data", "data.npz", "--preprocess", "resise=3"], "OP709"),
        (["--data", "data.npz", "--metric", "top2"], "OP711"),
        (["--data", "data.npz", "--provider", "NoProvider"], "OP608"),
        (["--data", "data.npz", "--limit", "0"], "OP303"),
        (["--data", "data.npz", "--against", "none.onnx"], "OP101"),
        (["--data", "images.zip"], "OP706"),
        ([], "OP602"),
    ],
)
def test_mistakes_have_codes_and_a_status(place: Path, arguments: list[str], code: str) -> None:
    result = run("model.onnx", *arguments)
    assert result.exit_code == 2 and f"[{code}]" in result.stderr and not result.stdout


def test_suspicious_labels_are_warned_of(place: Path) -> None:
    with np.load("data.npz") as arrays:
        np.savez("shifted.npz", x=arrays["x"], labels=np.maximum(arrays["labels"] - 1, 0))
    assert "warning: labels look shifted" in run("model.onnx", "--data", "shifted.npz").stderr
