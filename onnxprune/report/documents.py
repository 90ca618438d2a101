"""Reports as JSON documents for programs.

Every document has a field "version", which grows when a field is renamed, removed or changes its meaning, and a field
"report" that says what it is about. Numbers that JSON can't write (infinite, NaN) are null.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from math import isfinite
from typing import Any

from onnx import ModelProto

from onnxprune.channels.ledger import Pin
from onnxprune.errors import CodeInfo
from onnxprune.planning.plan import PrunePlan
from onnxprune.report.comparison import OutputDistance, inputs_of, outputs_of
from onnxprune.report.coupling import Axis, HeldAxis
from onnxprune.report.index import Reach
from onnxprune.report.layout import share
from onnxprune.report.operators import Operator
from onnxprune.report.summary import (
    GroupChange,
    GroupSummary,
    LayerSummary,
    ModelSummary,
    PinSummary,
    PlanSummary,
)
from onnxprune.rewrite.verify import Verification
from onnxprune.trace import Group

VERSION = 1

Document = Mapping[str, Any]


def document(report: str, **fields: Any) -> Document:
    """Make a document of fields."""
    return {"version": VERSION, "report": report, **fields}


def to_json(document: Document) -> str:
    """Write a document as JSON text."""
    return json.dumps(_plain(document), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def plan_fields(plan: PrunePlan, summary: PlanSummary) -> Document:
    """Describe a plan and what it does."""
    return {
        "model_sha256": plan.model,
        "plan_digest": plan.digest,
        "settings": plan.settings,
        "blocks": list(plan.blocks),
        "counted_at": summary.inputs,
        "cost": {"before": summary.before.totals(), "after": summary.after.totals()},
        "groups": [_group_change(change) for change in summary.groups],
    }


def model_fields(summary: ModelSummary) -> Document:
    """Describe a traced model."""
    return {
        "counted_at": summary.inputs,
        "cost": summary.cost.totals(),
        "prunable": {
            "params": summary.prunable,
            "share": share(summary.prunable, summary.cost.params),
            "weighted_layers": summary.weighted,
            "reached_layers": summary.reached,
        },
        "layers": [_layer(layer) for layer in summary.layers],
        "groups": [_group_summary(group) for group in summary.groups],
        "pins": pin_fields(summary.pins),
    }


def pin_fields(pins: Iterable[PinSummary]) -> list[Document]:
    """Describe reasons why channels can't leave."""
    return [asdict(pin) for pin in pins]


def verdict_fields(
    changes: Sequence[str],
    verification: Verification | None,
    distances: Sequence[OutputDistance] | None = None,
) -> Document:
    """Describe what a comparison of two models found.

    Args:
        changes: where their interfaces differ.
        verification: the oracle's verdict, if it was asked.
        distances: how far their outputs are apart, if that was all that could be told.
    """
    verdict = None
    if verification is not None:
        verdict = {**asdict(verification), "error": verification.error, "informative": verification.informative}
    return {
        "proved": verification is not None and verification.passed,
        "interface_changes": changes,
        "verification": verdict,
        "distances": None if distances is None else [asdict(d) for d in distances],
    }


def header_fields(proto: ModelProto) -> Document:
    """Describe what a model says of itself."""
    return {
        "ir_version": proto.ir_version,
        "opsets": {o.domain or "ai.onnx": o.version for o in proto.opset_import},
        "producer": f"{proto.producer_name} {proto.producer_version}".strip(),
        "nodes": len(proto.graph.node),
        "inputs": [asdict(port) for port in inputs_of(proto)],
        "outputs": [asdict(port) for port in outputs_of(proto)],
    }


def axis_fields(axes: Iterable[Axis]) -> list[Document]:
    """Describe the channels of a node."""
    return [
        {
            "role": axis.role,
            "places": [asdict(place) for place in axis.places],
            "size": axis.size,
            "coupled": [
                {
                    "channels": coupled.channels,
                    "group": _group(coupled.group),
                    "partners": [asdict(partner) for partner in coupled.partners],
                }
                for coupled in axis.coupled
            ],
            "held": [{"channels": held.channels, "pin": _pin(held.pin), "path": held.path} for held in axis.held],
        }
        for axis in axes
    ]


def held_fields(axes: Iterable[HeldAxis]) -> list[Document]:
    """Describe weights' axes that a reason pins."""
    return [
        {
            "nodes": axis.nodes,
            "place": asdict(axis.place),
            "channels": axis.channels,
            "size": axis.size,
            "pins": [_pin(pin) for pin in axis.pins],
        }
        for axis in axes
    ]


def code_fields(code: str, info: CodeInfo) -> Document:
    """Describe an entry of the catalog."""
    return {"code": code, **asdict(info)}


def operator_fields(operators: Sequence[Operator]) -> Document:
    """Describe what is known of operators."""
    states = [operator.state for operator in operators]
    return {
        "operators": [asdict(operator) for operator in operators],
        "counts": {state: states.count(state) for state in sorted(set(states))},
    }


def _layer(layer: LayerSummary) -> Document:
    return {
        **asdict(layer.cost),
        "weighted": layer.weighted,
        "reads": _reach(layer.reads),
        "makes": _reach(layer.makes),
    }


def _reach(reach: Reach) -> Document:
    return asdict(reach)


def _pin(pin: Pin) -> Document:
    return asdict(pin)


def _group(group: Group) -> Document:
    return {
        "index": group.index,
        "name": group.name,
        "units": len(group.units),
        "width": group.width,
        "exact": group.exact,
        "nodes": group.nodes,
        "producers": group.producers,
        "approximations": [asdict(note) for note in group.approximations],
    }


def _group_summary(summary: GroupSummary) -> Document:
    return {**_group(summary.group), "params": summary.params}


def _group_change(change: GroupChange) -> Document:
    group = change.group
    return {
        "index": group.index,
        "name": group.name,
        "units": len(group.units),
        "width": group.width,
        "exact": group.exact,
        "removed": change.removed,
        "kept": change.kept,
    }


def _plain(value: Any) -> Any:
    """Turn a value into what JSON can write."""
    match value:
        case Mapping():
            return {str(k): _plain(v) for k, v in value.items()}
        case list() | tuple():
            return [_plain(v) for v in value]
        case float():
            return value if isfinite(value) else None
    return value
