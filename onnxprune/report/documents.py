"""Reports as JSON documents for programs.

Every document has a field "version", which grows when a field is renamed, removed or changes its meaning, and a field
"report", which names the command. Results are written by `fields`, at any depth. Infinite numbers and NaN are null.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from onnxprune.cost.cost import Cost
from onnxprune.evaluation.score import Evaluation
from onnxprune.planning.plan import PrunePlan
from onnxprune.report.layout import share
from onnxprune.report.summary import GroupChange, GroupSummary, LayerSummary, ModelSummary, PlanSummary
from onnxprune.rewrite.comparison import Comparison
from onnxprune.rewrite.verify import Verification
from onnxprune.rewrite.weights import WeightCheck
from onnxprune.trace import Group
from onnxprune.version import REPORTS
from onnxprune.workflow.gates import Gate
from onnxprune.workflow.outcome import Outcome

Document = Mapping[str, Any]


def document(report: str, **content: Any) -> Document:
    """Return the document of a report.

    Args:
        report: the command's name.
        content: its fields: what JSON can write, paths, and results.
    """
    return {"version": REPORTS, "report": report, **content}


def to_json(document: Document) -> str:
    """Write a document as JSON text."""
    return json.dumps(plain(document), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def pick(result: Any, *names: str) -> dict[str, Any]:
    """Return some attributes of a result by name."""
    return {name: getattr(result, name) for name in names}


def fields(result: Any) -> dict[str, Any]:
    """Return what a document contains of a result: the fields of its dataclass unless another rule is given here."""
    match result:
        case Cost():
            return {**result.totals(), **(pick(result, "once") if result.once else {})}
        case Group():
            return {**_group(result), **pick(result, "nodes", "producers", "approximations")}
        case GroupSummary():
            return {**fields(result.group), "params": result.params}
        case GroupChange():
            return {**_group(result.group), **pick(result, "removed", "kept")}
        case LayerSummary():
            return {"number": result.number, **fields(result.cost), **pick(result, "weighted", "reads", "makes")}
        case ModelSummary():
            prunable = {
                "params": result.prunable,
                "share": share(result.prunable, result.cost.params),
                "weighted_layers": result.weighted,
                "reached_layers": result.reached,
            }
            lists = pick(result, "layers", "groups", "states", "pins")
            return {"counted_at": result.inputs, "cost": result.cost, "prunable": prunable, **lists}
        case PrunePlan():
            return {
                "model_sha256": result.model,
                "plan_digest": result.digest,
                **pick(result, "settings", "blocks", "resolution", "tokens", "ranks"),
                "bases": {name: sorted(axes) for name, axes in result.bases.items()},
            }
        case PlanSummary():
            return {
                "counted_at": result.inputs,
                "cost": pick(result, "before", "after"),
                **pick(result, "groups", "layers", "states"),
            }
        case Comparison():
            some = (name for name in ("broken", "links") if getattr(result, name))
            found = pick(result, "verification", "weights", "distances", "notes", *some)
            return {"proved": result.proved, "agree": result.agree, "interface_changes": result.changes, **found}
        case Gate():
            return {**_all(result), **pick(result, "held", "decided")}
        case Outcome():
            return {**_all(result), **pick(result, "overfitted")}
        case Evaluation():
            return _all(result) | {"scores": {score.key: score for score in result.scores}}
        case WeightCheck():
            return {"passed": result.passed, **_all(result)}
        case Verification():
            return {**_all(result), **pick(result, "error", "informative")}
    return _all(result)


def _all(result: Any) -> dict[str, Any]:
    return pick(result, *(field.name for field in dataclasses.fields(result)))


def _group(group: Group) -> dict[str, Any]:
    return {**pick(group, "index", "name"), "units": len(group.units), **pick(group, "width", "exact")}


def plain(value: Any) -> Any:
    """Return a value as JSON can write it."""
    match value:
        case Mapping():
            return {str(k): plain(v) for k, v in value.items()}
        case list() | tuple():
            return [plain(v) for v in value]
        case float():
            return value if isfinite(value) else None
        case Path():
            return str(value)
    return plain(fields(value)) if dataclasses.is_dataclass(value) else value
