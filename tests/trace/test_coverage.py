"""Coverage of the architectures that come with onnx: how much of each can be pruned, against a stored snapshot.

A coupling too many, or a pin too many, shows here first. After a change that is meant, look at the difference, then
write the snapshot anew: ``pytest tests/trace/test_coverage.py --update -n0``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune.cost.cost import cost
from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.pruned_graph import PrunedGraph
from tests.toolbox import analyze

LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"
MODELS = sorted(path.stem for path in LIGHT.glob("light_*.onnx"))
SNAPSHOT = Path(__file__).with_name("coverage.json")


def coverage(graph: ChannelGraph) -> dict[str, Any]:
    """Count groups, and the layers and parameters that they reach."""
    whole = cost(PrunedGraph(graph))
    layers = {layer.node for layer in whole.layers}
    reached = {n for g in graph.groups for n in g.nodes} & layers
    makers = {n for g in graph.groups for n in g.producers} & layers
    weights = {layer.node: layer.params for layer in whole.layers}
    touched = {tensor for g in graph.groups for tensor, _ in g.slots}
    params = {t.name: int(np.prod(t.dims)) for t in graph.proto.graph.initializer if t.data_type == 1}
    return {
        "groups": len(graph.groups),
        "exact groups": sum(g.exact for g in graph.groups),
        "units": sum(len(g.units) for g in graph.groups),
        "layers": len(layers),
        "layers reached": len(reached),
        "layers whose outputs can leave": len(makers),
        "share of layer parameters reached": round(sum(weights[n] for n in reached) / sum(weights.values()), 4),
        "share of parameters reached": round(sum(params.get(t, 0) for t in touched) / sum(params.values()), 4),
    }


@pytest.mark.parametrize("name", MODELS)
def test_snapshot(name: str, update: bool) -> None:
    found = json.loads(json.dumps(coverage(analyze(onnx.load(LIGHT / f"{name}.onnx")))))
    stored = json.loads(SNAPSHOT.read_text()) if SNAPSHOT.exists() else {}
    if update:
        stored[name] = found
        SNAPSHOT.write_text(_json(stored))
    assert found == stored[name]


def test_snapshot_is_complete() -> None:
    assert len(MODELS) == 9
    assert sorted(json.loads(SNAPSHOT.read_text())) == MODELS


def _json(stored: dict[str, Any]) -> str:
    """Write each figure on its own line, for readable diffs."""
    models = []
    for name, figures in sorted(stored.items()):
        lines = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in figures.items())
        models.append(f" {json.dumps(name)}: {{\n{lines}\n }}")
    return "{\n" + ",\n".join(models) + "\n}\n"
