"""`onnxprune prune --data`: repair of a real network from unlabeled inputs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from onnxprune import load
from onnxprune.cli import cli
from onnxprune.model.session import run, session

MODELS = Path(__file__).parents[2] / "models"
MODEL = MODELS / "digits_resnet.onnx"


@pytest.fixture
def digits(tmp_path: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    """Write half of the test digits, without labels, to calibrate with; return the other half to judge by."""
    with np.load(MODELS / "digits_test.npz", allow_pickle=False) as data:
        images, labels = data["images"], data["labels"]
    np.savez(tmp_path / "calibration.npz", image=images[::2])
    return tmp_path / "calibration.npz", images[1::2], labels[1::2]


def prune(output: Path, *options: str) -> dict[str, object]:
    arguments = ["prune", str(MODEL), "-o", str(output), "--target", "macs=0.3", "--format", "json", *options]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    document: dict[str, object] = json.loads(result.stdout)
    return document


def accuracy(path: Path, images: np.ndarray, labels: np.ndarray) -> float:
    logits = run(session(load(path).proto), {"image": images})["logits"]
    return float((logits.argmax(axis=1) == labels).mean())


def test_what_pruning_lost_is_won_back(tmp_path: Path, digits: tuple[Path, np.ndarray, np.ndarray]) -> None:
    data, images, labels = digits
    assert prune(tmp_path / "bare.onnx")["repairs"] == []
    repairs = prune(tmp_path / "repaired.onnx", "--data", str(data), "--allocation", "uniform")["repairs"]
    assert isinstance(repairs, list) and len(repairs) > 10
    bare, repaired = (accuracy(tmp_path / f"{n}.onnx", images, labels) for n in ("bare", "repaired"))
    assert bare < 0.5 and repaired > 0.9
    shapes = [
        {t.name: tuple(t.dims) for t in load(tmp_path / f"{n}.onnx").proto.graph.initializer}
        for n in ("bare", "repaired")
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("option", [["--recover", "bn"], ["--limit", "5"], ["--preprocess", "scale=1/255"]])
def test_options_without_data(tmp_path: Path, option: list[str]) -> None:
    result = CliRunner().invoke(cli, ["prune", str(MODEL), "-o", str(tmp_path / "x.onnx"), "--ratio", "0.3", *option])
    assert result.exit_code == 2
    assert "OP302" in result.stderr and option[0] in result.stderr
    assert not (tmp_path / "x.onnx").exists()


def test_data_that_is_not_there(tmp_path: Path) -> None:
    missing = str(tmp_path / "no.npz")
    result = CliRunner().invoke(
        cli, ["prune", str(MODEL), "-o", str(tmp_path / "x.onnx"), "--ratio", "0.3", "--data", missing]
    )
    assert result.exit_code == 2 and "OP7" in result.stderr and missing in result.stderr
    assert not (tmp_path / "x.onnx").exists()


def test_channels_are_taken_where_they_cost_least(tmp_path: Path, digits: tuple[Path, np.ndarray, np.ndarray]) -> None:
    data, images, labels = digits
    settings = prune(tmp_path / "repaired.onnx", "--data", str(data))["settings"]
    assert isinstance(settings, dict)
    assert (settings["allocation"], settings["criterion"]) == ("reconstruction", "obs")
    assert accuracy(tmp_path / "repaired.onnx", images, labels) > 0.9


def test_as_far_as_a_drop_allows(tmp_path: Path, digits: tuple[Path, np.ndarray, np.ndarray]) -> None:
    """The drop that is allowed bounds disagreement on samples without labels; more is removed where more is allowed."""
    data, images, labels = digits
    arguments = ["prune", str(MODEL), "--data", str(data), "--format", "json", "--limit", "100"]
    macs, dense = [], accuracy(MODEL, images, labels)
    for drop in ("0.02", "0.2"):
        output = tmp_path / f"{drop}.onnx"
        result = CliRunner().invoke(cli, [*arguments, "-o", str(output), "--max-drop", drop])
        assert result.exit_code == 0, result.output
        document = json.loads(result.stdout)
        (agreement,) = (s["model"]["value"] for s in document["evaluation"]["scores"] if s["metric"] == "agreement")
        assert agreement >= 1 - float(drop) and document["proved"]
        assert accuracy(output, images, labels) > dense - float(drop) - 0.05
        macs.append(document["cost"]["after"]["macs"] / document["cost"]["before"]["macs"])
    assert macs[1] < macs[0] < 0.6


@pytest.mark.parametrize("option", [["--ratio", "0.5"], ["--no-verify"], ["--recover", "none"], ["--plan", "p.json"]])
def test_a_drop_is_a_budget(tmp_path: Path, option: list[str]) -> None:
    arguments = ["prune", str(MODEL), "-o", str(tmp_path / "x.onnx"), "--data", "digits", "--max-drop", "1%", *option]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2 and "OP302" in result.stderr
