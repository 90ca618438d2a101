"""The decoder that `benchmarks.decoder` prunes, in small: written to files, pruned to 75 % of its size, proved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxprune as op
from models.builders.decoder import Decoder, write_decoder
from onnxprune.model.file import load, save
from onnxprune.settings.planning import Constraints, PlanSettings, Target
from onnxprune.trace.graph import ChannelGraph
from onnxprune.workflow.analysis import analyze
from onnxprune.workflow.pruning import prune
from tests.toolbox import run_once

SIZES = Decoder(layers=2, width=64, heads=8, shared=2, inner=96, words=50)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    target = tmp_path / "decoder.onnx"
    write_decoder(target, SIZES)
    return target


def groups(graph: ChannelGraph) -> dict[str, tuple[int, int]]:
    return {g.name: (len(g.units), g.width) for g in graph.groups}


def test_it_is_what_it_says(path: Path) -> None:
    proto = load(path).proto
    onnx.checker.check_model(proto, full_check=True)
    weights = [
        t for t in proto.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) and t.dims[0] > 9
    ]
    assert sum(int(np.prod(t.dims)) for t in weights) == SIZES.params
    assert Decoder().params > 1e9


def test_it_is_causal(path: Path) -> None:
    """What comes later changes nothing of what was before; what came before does."""
    model = load(path).proto
    ids = np.arange(12).reshape(1, 12)
    changed = ids.copy()
    changed[0, 6] = 33
    a, b = (run_once(model, {"ids": i})["logits"] for i in (ids, changed))
    np.testing.assert_allclose(a[:, :6], b[:, :6], atol=1e-5)
    assert np.abs(a[:, 6:] - b[:, 6:]).max(axis=(0, 2)).min() > 1e-3


def test_heads_perceptrons_and_residual_width_leave(path: Path) -> None:
    """A head of keys and values leaves with its four queries: 16 times 2 for each, and what the output reads."""
    found = groups(analyze(path).graph)
    assert found["layer0.gate.out/MatMul"] == (96, 1)
    assert found["layer0.q.out/MatMul"][0] == 2
    assert 64 in {units for units, _ in found.values()}
    assert len(found) == 1 + 2 * SIZES.layers


def test_pruned_from_file_to_file(path: Path, tmp_path: Path) -> None:
    analysis = analyze(path)
    plan = op.plan(analysis, PlanSettings(target=Target("params", 0.75), constraints=Constraints(round_to=1)))
    assert 0.7 < plan.after["params"] / plan.before["params"] <= 0.75
    ids = {"ids": np.random.default_rng(0).integers(0, SIZES.words, (2, 9))}
    pruned = prune(analysis, plan, inputs=ids)
    assert pruned.verification is not None
    assert pruned.verification.error < 1e-4 < pruned.verification.outputs[0].change
    target = tmp_path / "pruned.onnx"
    save(pruned.proto, target, external=True)
    longer = {"ids": np.random.default_rng(1).integers(0, SIZES.words, (1, 21))}
    expected, found = (run_once(m, longer)["logits"] for m in (pruned.proto, load(target).proto))
    np.testing.assert_array_equal(found, expected)
