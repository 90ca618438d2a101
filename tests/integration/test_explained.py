"""`explain` on real models: whatever pins channels, the path of nodes to it is named, unless it is the node itself."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from onnxprune.model.file import load
from onnxprune.normalize import normalize
from onnxprune.report.coupling import Held, explain_node, pinning_node
from onnxprune.report.index import ALONE, Index
from onnxprune.trace import trace

LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"
SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "models"
FILES = [
    *(pytest.param(p, id=p.stem) for p in sorted(LIGHT.glob("light_*.onnx")) if p.stem != "light_vgg19"),
    *(pytest.param(p, id=p.stem, marks=pytest.mark.slow) for p in sorted(SHARED.glob("**/*.onnx"))),
]


@pytest.mark.parametrize("path", FILES)
def test_every_pin_has_its_path(path: Path) -> None:
    graph = trace(normalize(load(path).proto))
    index = Index(graph)
    weights, outputs = {w.name for w in index.weights}, {n.name: n.output for n in graph.proto.graph.node}
    held = 0
    for node in graph.proto.graph.node:
        for axis in explain_node(index, node) if weights.intersection(node.input) else ():
            for reason in axis.held:
                held += 1
                assert reason.path or _direct(index, reason, node.name, outputs), (node.name, reason)
                assert all(name in outputs for name in reason.path)
    assert held or not weights or not any(pin.code != "OP212" for _, pin in graph.reasons())


def _direct(index: Index, held: Held, node: str, outputs: dict[str, list[str]]) -> bool:
    """Whether the node pins its channels itself, is all that has them, or makes a graph output."""
    made = {f'graph output "{name}"' for name in outputs[node]}
    return held.pin.code == ALONE or held.pin.node in made or pinning_node(index, held.pin) == node
