"""Sensitivities on file: written while they are measured, so that a stopped run can be resumed; used by plans."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, isfinite
from pathlib import Path
from typing import Any

from onnxprune.errors import PlanError
from onnxprune.sensitivity.curves import Curve, Point
from onnxprune.trace.graph import ChannelGraph

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Record:
    """The curves of a model.

    Attributes:
        model: sha256 of the model, hexadecimal.
        settings: how the curves were measured.
        curves: the curves by the index of their group.
    """

    model: str
    settings: Mapping[str, Any]
    curves: Mapping[int, Curve] = field(default_factory=dict)

    def with_curve(self, curve: Curve) -> Record:
        """Return the record with another curve."""
        return Record(self.model, self.settings, {**self.curves, curve.group: curve})

    def document(self, graph: ChannelGraph) -> dict[str, Any]:
        """Return the record as a JSON document, with the names of groups for readers."""
        return {
            "format": FORMAT,
            "model_sha256": self.model,
            "settings": dict(self.settings),
            "groups": [entry_of(curve, graph) for _, curve in sorted(self.curves.items())],
        }

    def to_json(self, graph: ChannelGraph) -> str:
        """Return the record as JSON text."""
        return json.dumps(self.document(graph), indent=1) + "\n"


def entry_of(curve: Curve, graph: ChannelGraph) -> dict[str, Any]:
    """Return a curve as JSON can hold it."""
    return {
        "group": curve.group,
        "name": graph.groups[curve.group].name,
        "order": list(curve.order),
        "points": [[p.removed, p.error if isfinite(p.error) else None] for p in curve.points],
    }


def resume(path: Path, record: Record, graph: ChannelGraph) -> Record:
    """Read the part of a measurement that a file holds already.

    Args:
        path: the file.
        record: the measurement.
        graph: the traced model.

    Raises:
        PlanError: the file can't be read, or was measured with other settings (OP313), or on another model (OP306).
    """
    found = read_record(path, record.model, graph)
    if found.settings != record.settings:
        cause = "the file holds sensitivities that were measured with other settings"
        raise PlanError("OP313", cause, where=str(path), hint="pass `force` to overwrite it")
    return found


def read_record(path: Path, model: str, graph: ChannelGraph) -> Record:
    """Read the sensitivities of a model.

    Args:
        path: the file.
        model: sha256 of the model.
        graph: the traced model.

    Raises:
        PlanError: the file can't be read or holds something else (OP313), or belongs to another model (OP306).
    """
    hint = "measure it with the command `sensitivity`"
    try:
        document = json.loads(path.read_bytes())
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']!r} isn't {FORMAT}")
        curves = [curve_of(entry) for entry in document["groups"]]
        record = Record(str(document["model_sha256"]), dict(document["settings"]), {c.group: c for c in curves})
    except OSError as error:
        raise PlanError("OP313", f"can't be read: {error.strerror}", where=str(path), hint=hint) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        cause = f"not a record of sensitivities ({type(error).__name__}: {error})"
        raise PlanError("OP313", cause, where=str(path), hint=hint) from error
    if record.model != model or not all(_fits(curve, graph) for curve in record.curves.values()):
        raise PlanError("OP306", "the sensitivities were measured on another model", where=str(path), hint=hint)
    return record


def curve_of(entry: Mapping[str, Any]) -> Curve:
    """Return the curve of an entry; it raises what Python does if it isn't one."""
    points = [Point(int(removed), inf if error is None else float(error)) for removed, error in entry["points"]]
    if not points or any(p.removed < 1 for p in points):
        raise ValueError("a group has no points")
    return Curve(int(entry["group"]), tuple(map(int, entry["order"])), tuple(points))


def _fits(curve: Curve, graph: ChannelGraph) -> bool:
    if not 0 <= curve.group < len(graph.groups):
        return False
    return sorted(curve.order) == list(range(len(graph.groups[curve.group].units)))
