"""`onnxprune prune --data`: repair of a real network from unlabeled inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxprune import load
from onnxprune.model.session import run, session
from tests.cli.support import DIGITS, document, invoke, refused


@pytest.fixture
def digits(tmp_path: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    """Write half of the test digits, unlabeled, for calibration; return the other half for evaluation."""
    with np.load(DIGITS.with_name("digits_test.npz"), allow_pickle=False) as data:
        images, labels = data["images"], data["labels"]
    np.savez(tmp_path / "calibration.npz", image=images[::2])
    return tmp_path / "calibration.npz", images[1::2], labels[1::2]


def prune(output: Path, *options: str) -> dict[str, Any]:
    return document("prune", DIGITS, "-o", output, "--target", "macs=0.3", *options)


def accuracy(path: Path, images: np.ndarray, labels: np.ndarray) -> float:
    logits = run(session(load(path).proto), {"image": images})["logits"]
    return float((logits.argmax(axis=1) == labels).mean())


def test_repair_recovers_accuracy(tmp_path: Path, digits: tuple[Path, np.ndarray, np.ndarray]) -> None:
    data, images, labels = digits
    assert prune(tmp_path / "bare.onnx")["repairs"] == []
    repairs = prune(tmp_path / "repaired.onnx", "--data", str(data), "--allocation", "uniform")["repairs"]
    assert len(repairs) > 10
    bare, repaired = (accuracy(tmp_path / f"{n}.onnx", images, labels) for n in ("bare", "repaired"))
    assert bare < 0.5 and repaired > 0.9
    shapes = [
        {t.name: tuple(t.dims) for t in load(tmp_path / f"{n}.onnx").proto.graph.initializer}
        for n in ("bare", "repaired")
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("option", [["--recover", "bn"], ["--limit", "5"], ["--preprocess", "scale=1/255"]])
def test_options_without_data(tmp_path: Path, option: list[str]) -> None:
    assert option[0] in refused("OP302", "prune", DIGITS, "-o", tmp_path / "x.onnx", "--ratio", "0.3", *option)
    assert not (tmp_path / "x.onnx").exists()


def test_missing_data(tmp_path: Path) -> None:
    missing, output = str(tmp_path / "no.npz"), tmp_path / "x.onnx"
    assert missing in refused("OP701", "prune", DIGITS, "-o", output, "--ratio", "0.3", "--data", missing)
    assert not output.exists()


def test_channels_are_removed_where_they_cost_least(
    tmp_path: Path, digits: tuple[Path, np.ndarray, np.ndarray]
) -> None:
    data, images, labels = digits
    settings = prune(tmp_path / "repaired.onnx", "--data", str(data))["settings"]
    assert (settings["allocation"], settings["criterion"]) == ("reconstruction", "obs")
    assert accuracy(tmp_path / "repaired.onnx", images, labels) > 0.9


def test_max_drop(tmp_path: Path, digits: tuple[Path, np.ndarray, np.ndarray]) -> None:
    """The drop bounds disagreement on unlabeled samples; a larger drop allows a smaller model."""
    data, images, labels = digits
    macs, dense = [], accuracy(DIGITS, images, labels)
    for drop in ("0.02", "0.2"):
        output = tmp_path / f"{drop}.onnx"
        found = document("prune", DIGITS, "-o", output, "--data", data, "--limit", "100", "--max-drop", drop)
        agreement = found["evaluation"]["scores"]["agreement"]["model"]["value"]
        assert agreement >= 1 - float(drop) and found["proved"]
        assert accuracy(output, images, labels) > dense - float(drop) - 0.05
        macs.append(found["cost"]["after"]["macs"] / found["cost"]["before"]["macs"])
    assert macs[1] < macs[0] < 0.6


@pytest.mark.parametrize("option", [["--ratio", "0.5"], ["--no-verify"], ["--recover", "none"], ["--plan", "p.json"]])
def test_a_drop_is_a_budget(tmp_path: Path, option: list[str]) -> None:
    output = tmp_path / "x.onnx"
    refused("OP302", "prune", DIGITS, "-o", output, "--data", "digits", "--max-drop", "1%", *option)


def test_what_is_assumed_is_said_once(tmp_path: Path) -> None:
    """Samples are opened for calibration, and again, all of them, for training."""
    options = ("--data", "random", "--limit", "16", "--target", "macs=0.5", "--finetune", "1", "--no-summary")
    said = invoke("prune", DIGITS, "-o", tmp_path / "x.onnx", *options).stderr
    assert said.count("the inputs are noise") == 1
