"""Sensitivities on file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onnxprune.errors import PlanError
from onnxprune.sensitivity import Curve, Point, Record, read_record
from tests.sensitivity.support import digits

GRAPH, SHA = digits().graph, digits().model.sha256
UNITS = len(GRAPH.groups[0].units)
RECORD = Record(SHA, {"criterion": "obs", "shares": [0.5]}).with_curve(
    Curve(0, tuple(reversed(range(UNITS))), (Point(4, 0.25), Point(8, float("inf"))))
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "sensitivity.json"
    file.write_text(RECORD.to_json(GRAPH))
    return file


def test_what_is_written_is_read(path: Path) -> None:
    assert read_record(path, SHA, GRAPH) == RECORD
    assert json.loads(path.read_text())["groups"][0]["name"] == GRAPH.groups[0].name


def test_another_model(path: Path) -> None:
    with pytest.raises(PlanError) as caught:
        read_record(path, "0" * 64, GRAPH)
    assert caught.value.code == "OP306"


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("OP313", {"format": 2}),
        ("OP313", {"groups": None}),
        ("OP313", {"groups": [{"group": 0, "order": [0], "points": []}]}),
        ("OP313", {"groups": [{"group": 0, "order": "x", "points": [[1, 2]]}]}),
        ("OP306", {"groups": [{"group": 0, "order": [0, 0], "points": [[1, 0.5]]}]}),
        ("OP306", {"groups": [{"group": 10**6, "order": [0], "points": [[1, 0.5]]}]}),
    ],
)
def test_files_that_hold_something_else(path: Path, code: str, change: dict[str, object]) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(PlanError) as caught:
        read_record(path, SHA, GRAPH)
    assert caught.value.code == code and str(path) == caught.value.where


@pytest.mark.parametrize("text", ["", "[]", "no JSON", "[" * 100_000])
def test_files_that_are_no_records(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(PlanError) as caught:
        read_record(path, SHA, GRAPH)
    assert caught.value.code == "OP313"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PlanError) as caught:
        read_record(tmp_path / "none.json", SHA, GRAPH)
    assert caught.value.code == "OP313"
