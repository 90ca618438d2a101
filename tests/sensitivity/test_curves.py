"""What removing a group's units costs, measured on a trained network."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto

from onnxprune.importance import views
from onnxprune.recover import recover
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.sensitivity import Curve, OutputError, few, measure, share_out
from onnxprune.sensitivity.curves import ablated
from onnxprune.settings.planning import Constraints, PlanSettings
from onnxprune.trace.pruned_graph import PrunedGraph
from onnxprune.workflow.planning import sensitivities
from tests.sensitivity.support import batches, digits, images
from tests.toolbox import run_once

GRAPH = digits().graph
SETTINGS = PlanSettings(ratio=0.0, criterion="obs", allocation="reconstruction")


@pytest.fixture(scope="module")
def curves() -> list[Curve]:
    return sensitivities(digits(), SETTINGS, batches())


def logits(model: ModelProto) -> np.ndarray:
    return np.asarray(run_once(model, {"image": images()[1::2]})["logits"])


def test_every_group_is_measured(curves: list[Curve]) -> None:
    assert sorted(c.group for c in curves) == [g.index for g in GRAPH.groups]
    for curve in curves:
        units = len(GRAPH.groups[curve.group].units)
        assert sorted(curve.order) == list(range(units))
        removed = [p.removed for p in curve.points]
        assert removed == sorted(set(removed)) and removed[0] > 0 and removed[-1] < units
        assert curve.points[-1].error > curve.points[0].error >= 0


@pytest.mark.parametrize("refitted", [True, False])
def test_a_lesion_is_the_pruned_network(refitted: bool) -> None:
    """Without refitting it computes what the rewritten network computes; with it, the error is smaller."""
    view = next(iter(views(GRAPH, batches=batches(), groups=GRAPH.groups[4:5])))
    group, gone = view.group, range(len(view.group.units) // 2)
    removed = np.zeros(GRAPH.unit_count, dtype=bool)
    removed[group.units[list(gone)]] = True
    pruned = logits(rewrite(PrunedGraph(GRAPH, removed)))
    found = logits(ablated(GRAPH, group, gone, view.activations if refitted else ()))
    if not refitted:
        assert np.allclose(found, pruned, atol=1e-3)
        return
    dense = logits(GRAPH.proto)
    assert ((found - dense) ** 2).sum() < 0.5 * ((pruned - dense) ** 2).sum()


def test_the_error_foretells_that_of_the_repaired_network(curves: list[Curve]) -> None:
    """Groups are ranked much as by pruning and repairing them for real."""
    dense, measured, real = logits(GRAPH.proto), [], []
    for curve in curves:
        point, group = curve.points[1], GRAPH.groups[curve.group]
        removed = np.zeros(GRAPH.unit_count, dtype=bool)
        removed[group.units[list(curve.order[: point.removed])]] = True
        kept = PrunedGraph(GRAPH, removed)
        model = rewrite(kept)
        recover(kept, model, batches())
        measured.append(point.error)
        real.append(float(((logits(model) - dense) ** 2).sum() / ((dense - dense.mean()) ** 2).sum()))
    ranks = [np.argsort(np.argsort(values)) for values in (measured, real)]
    assert np.corrcoef(*ranks)[0, 1] > 0.7
    assert np.corrcoef(ranks[0], np.random.default_rng(0).permutation(ranks[1]))[0, 1] < 0.7


def test_what_is_known_is_not_measured_again(curves: list[Curve]) -> None:
    fitted, held = share_out(batches())
    known = {c.group: c for c in curves[:-1]}
    (again,) = measure(GRAPH, fitted, OutputError(GRAPH.proto, few(held)), known=known)
    assert (again.group, again.order) == (curves[-1].group, curves[-1].order)  # and comes out the same
    assert [p.error for p in again.points] == pytest.approx([p.error for p in curves[-1].points], rel=1e-3)


def test_guards_are_kept() -> None:
    constraints = Constraints(max_ratio=0.5, exclude=("*stage3*",), round_to=8)
    found = sensitivities(digits(), PlanSettings(ratio=0.0, criterion="l2", constraints=constraints), batches())
    names = {GRAPH.groups[c.group].name for c in found}
    assert names and not any("stage3" in name for name in names)
    for curve in found:
        assert all(2 * p.removed <= len(curve.order) for p in curve.points)
        assert all((len(curve.order) - p.removed) % 8 == 0 for p in curve.points)


def test_inputs_are_shared_out_without_overlap() -> None:
    whole = list(batches(size=10)())
    fitted, held = (list(part()) for part in share_out(batches(size=10)))
    assert len(fitted) + len(held) == len(whole) and len(held) == -(-len(whole) // 4)
    assert not {id(b) for b in fitted} & {id(b) for b in held}
    alone = share_out(batches(size=1000))
    assert [len(list(part())) for part in alone] == [1, 1]
