"""The shape of JSON documents is a promise: a change of these keys needs a new version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import onnxprune as op
from onnxprune.errors import CATALOG
from onnxprune.planning.plan import apply_plan
from onnxprune.report.coupling import explain_node, held_by
from onnxprune.report.documents import document, fields, to_json
from onnxprune.report.index import Index
from onnxprune.report.operators import operators
from onnxprune.report.summary import summarize, summarize_plan
from onnxprune.rewrite.comparison import Comparison, OutputDistance, header_of
from onnxprune.rewrite.verify import OutputCheck, Verification
from tests.report.network import network
from tests.toolbox import analyze

GROUP = {"index": 0, "name": "", "units": 0, "width": 0, "exact": False}
WHOLE_GROUP = GROUP | {"nodes": [""], "producers": [""], "approximations": []}
PIN = {"code": "", "node": "", "reason": "", "hint": None}
PLACE = {"tensor": "", "axes": [0]}
COST = {"params": 0, "macs": 0, "size": 0, "memory": 0}
REACH = {"groups": [0], "pins": [""]}


def through_json(result: Any) -> Any:
    return json.loads(to_json(document("test", result=result)))["result"]


def shape(value: Any) -> Any:
    """Reduce a document to its keys and the kinds of its values; lists to what their elements have in common."""
    match value:
        case dict():
            return {key: shape(v) for key, v in value.items()}
        case []:
            return []
        case list():
            return [shape(value[0])]
        case None:
            return None
    return type(value)()


def test_head() -> None:
    text = to_json(document("test", a=1, b=Path("x")))
    assert json.loads(text) == {"version": 3, "report": "test", "a": 1, "b": "x"}


def test_what_json_can_not_write_is_an_error() -> None:
    with pytest.raises(TypeError):
        to_json(document("test", a=object()))


def test_model() -> None:
    found = shape(through_json(summarize(analyze(network()))))
    assert found == {
        "counted_at": {"image": [0]},
        "cost": COST,
        "prunable": {"params": 0, "share": 0.0, "weighted_layers": 0, "reached_layers": 0},
        "layers": [
            {"number": 0, "node": "", "op": "", "weight": [0], "output": [0], "params": 0, "macs": 0, "weighted": False}
            | {"reads": {"groups": [], "pins": [""]}, "makes": {"groups": [0], "pins": []}}
        ],
        "groups": [WHOLE_GROUP | {"params": 0}],
        "states": [],
        "pins": [{"code": "", "layers": [""], "by": [""], "held": 0, "locked": 0}],
    }


def test_header() -> None:
    found = through_json(header_of(network()))
    assert found["inputs"] == [{"name": "image", "type": "float32", "dims": ["N", 3, 8, 8]}]
    assert found["opsets"] == {"ai.onnx": 17}
    assert list(found) == ["ir_version", "opsets", "producer", "nodes", "inputs", "outputs"]


def test_plan() -> None:
    analysis = op.analyze(network())
    plan = op.plan(analysis, op.PlanSettings(ratio=0.5))
    found = through_json({**fields(plan), **fields(summarize_plan(apply_plan(analysis.graph, plan)))})
    assert found["settings"]["ratio"] == 0.5
    assert found["cost"]["after"]["params"] < found["cost"]["before"]["params"]
    del found["settings"]
    assert shape(found) == {
        "model_sha256": "",
        "blocks": [],
        "plan_digest": "",
        "counted_at": {"image": [0]},
        "cost": {"before": COST, "after": COST},
        "groups": [GROUP | {"removed": 0, "kept": 0}],
        "layers": [{"number": 0, "name": "", "op": "", "shapes": [[0]], "params": [0], "macs": [0]}],
        "states": [],
        "resolution": {},
        "tokens": {},
        "ranks": {},
        "bases": {},
    }


def test_comparison() -> None:
    verification = Verification(True, 1e-4, (OutputCheck("y", 1e-7, float("inf")),), seed=0)
    found = through_json(Comparison(verification=verification))
    assert found == {
        "proved": True,
        "agree": None,
        "interface_changes": [],
        "notes": [],
        "verification": {
            "passed": True,
            "tolerance": 1e-4,
            "outputs": [{"name": "y", "error": 1e-7, "change": None}],
            "seed": 0,
            "steps": 1,
            "arithmetic": "stored",
            "unproved": [],
            "notes": [],
            "error": 1e-7,
            "informative": True,
        },
        "weights": None,
        "distances": None,
    }
    found = through_json(Comparison(distances=(OutputDistance("y", 0.5, None, True),)))
    assert found["proved"] is False and found["agree"] is False and found["verification"] is None
    assert found["distances"] == [{"name": "y", "difference": 0.5, "cosine": None, "sound": True}]


def test_explanations() -> None:
    graph = analyze(network())
    index = Index(graph)
    node = next(n for n in graph.proto.graph.node if n.name == "head")
    made, given = through_json(explain_node(index, node))
    keys = ["role", "places", "size", "coupled", "held"]
    assert list(made) == list(given) == keys
    assert shape(made["held"]) == [{"channels": 0, "pin": PIN, "path": [""]}]
    (coupled,) = given["coupled"]
    assert coupled["partners"][0] == {"node": "left", "path": []}
    assert shape(coupled["group"]) == WHOLE_GROUP
    held = through_json(list(held_by(index, "OP202")))
    assert shape(held) == [{"nodes": [""], "place": PLACE, "channels": 0, "size": 0, "pins": [PIN]}]


def test_codes_and_operators() -> None:
    assert list(through_json(CATALOG["OP204"])) == ["title", "explanation"]
    assert list(through_json(operators())[0]) == [
        *("name", "state", "family", "note", "rewrites", "counted", "trained", "repaired", "untrained", "unrepaired"),
    ]
