"""`onnxprune sensitivity`: measured, saved, resumed, plotted, and used by `plan` and `prune`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.cli.support import DIGITS, document, invoke, refused

MODELS, MODEL = DIGITS.parent, DIGITS


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a hundred test digits, with labels."""
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    with np.load(MODELS / "digits_test.npz", allow_pickle=False) as arrays:
        np.savez(path, image=arrays["images"][:128], labels=arrays["labels"][:128])
    return path


@pytest.fixture(scope="module")
def record(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("record") / "sensitivity.json"
    invoke("sensitivity", MODEL, "--data", data, "-o", path, "-q")
    return path


def test_a_table(data: Path) -> None:
    found = invoke("sensitivity", MODEL, "--data", data, "--share", "50%", "--criterion", "l1").stdout
    assert "/stem/conv/Conv" in found and "-50%" in found and "8 groups" in found


def test_an_interrupted_run_resumes(data: Path, record: Path, tmp_path: Path) -> None:
    whole = json.loads(record.read_text())
    part = tmp_path / "part.json"
    part.write_text(json.dumps({**whole, "groups": whole["groups"][2:]}))
    result = invoke("sensitivity", MODEL, "--data", data, "-o", part, "--format", "json")
    assert json.loads(result.stdout)["measured"] == 2 and "has 6 groups" in result.stderr
    assert [g["group"] for g in json.loads(part.read_text())["groups"]] == [g["group"] for g in whole["groups"]]
    assert "OP313" in refused("OP313", "sensitivity", MODEL, "--data", data, "-o", part, "--seed", 1)
    invoke("sensitivity", MODEL, "--data", data, "-o", part, "--seed", 1, "--force", "--share", "50%", "-q")


def test_a_metric_that_takes_labels(data: Path) -> None:
    arguments = ("sensitivity", MODEL, "--data", data, "--metric", "top1", "--share", "1", "--include", "/stem*")
    (group,) = document(*arguments)["groups"]
    ((_, lost),) = group["points"]
    assert lost > 0.2


@pytest.mark.dev
def test_a_plot(data: Path, record: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot = tmp_path / "curves.png"
    copy = tmp_path / "record.json"
    copy.write_bytes(record.read_bytes())
    invoke("sensitivity", MODEL, "--data", data, "-o", copy, "--plot", plot)
    assert plot.read_bytes().startswith(b"\x89PNG")
    refused("OP116", "sensitivity", MODEL, "--data", data, "--plot", plot)


def test_plans_from_what_was_measured(data: Path, record: Path, tmp_path: Path) -> None:
    """A record gives the same plan as data do, and another one than uniform shares."""
    plans = {}
    for name, options in {
        "record": ["--sensitivity", record],
        "data": ["--data", data],
        "uniform": ["--allocation", "uniform"],
    }.items():
        invoke("plan", MODEL, "-o", tmp_path / name, "--target", "macs=0.5", *options, "-q")
        plans[name] = json.loads((tmp_path / name).read_text())
    assert plans["record"]["settings"]["allocation"] == "reconstruction"
    assert plans["record"]["removed"] == plans["data"]["removed"] != plans["uniform"]["removed"]
    refused("OP306", "plan", MODELS / "digits_cnn_dynamo.onnx", "-o", "-", "--ratio", "0.5", "--sensitivity", record)


def test_criteria_that_need_data(data: Path, tmp_path: Path) -> None:
    arguments = ("plan", MODEL, "-o", tmp_path / "plan.json", "--ratio", "0.5")
    assert "--data" in refused("OP312", *arguments, "--criterion", "apoz")
    assert "--data" in refused("OP312", *arguments, "--allocation", "reconstruction")
    invoke(*arguments, "--criterion", "apoz", "--allocation", "uniform", "--data", data)


def test_inputs_are_needed() -> None:
    refused("OP602", "sensitivity", MODEL)
    refused("OP303", "sensitivity", MODEL, "--data", "digits", "--share", "0")
