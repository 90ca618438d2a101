"""Budgets spent where they cost least."""

from __future__ import annotations

import numpy as np
import pytest

import onnxprune as op
from onnxprune.cost.cost import cost
from onnxprune.importance import score
from onnxprune.planning.budget import choose
from onnxprune.planning.plan import apply_plan
from onnxprune.recover import recover
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.sensitivity import Curve, Point, slopes, spend
from onnxprune.sensitivity.allocation import errors_of
from onnxprune.settings.planning import Constraints, PlanSettings, Target
from onnxprune.trace.pruned_graph import PrunedGraph
from onnxprune.workflow.planning import sensitivities
from tests.sensitivity.support import batches, digits, images
from tests.toolbox import run_once

GRAPH = digits().graph


def curve(*points: tuple[int, float], units: int = 16, group: int = 0) -> Curve:
    return Curve(group, tuple(range(units)), tuple(Point(n, e) for n, e in points))


def test_errors_go_through_the_points_and_follow_a_power_between_them() -> None:
    errors = errors_of(curve((4, 0.16), (8, 0.64)))
    assert np.allclose(errors, 0.01 * np.arange(17) ** 2)


def test_slopes_add_up_and_never_fall() -> None:
    bumpy = curve((4, 0.3), (8, 0.31), (12, 2.0))
    found = slopes(bumpy)
    assert (np.diff(found) > 0).all()
    errors = errors_of(bumpy)
    assert (np.cumsum(found) <= errors[1:] + 1e-9).all()
    assert found[:8].sum() == pytest.approx(0.31, rel=1e-6)
    assert np.isfinite(slopes(curve((4, float("inf"))))).all()


@pytest.mark.parametrize("quantity", ["macs", "params", "memory"])
def test_the_target_is_met(quantity: str) -> None:
    flat = [curve((len(g.units) // 2, 0.1), units=len(g.units), group=g.index) for g in GRAPH.groups]
    removed = spend(GRAPH, flat, Constraints(), target=Target(quantity, 0.6))  # type: ignore[arg-type]
    after, before = (getattr(cost(k), quantity) for k in (PrunedGraph(GRAPH, removed), PrunedGraph(GRAPH)))
    assert 0.4 * before < after <= 0.6 * before


def test_what_costs_nothing_goes_first() -> None:
    """One group's removal is free: it is emptied before any other is touched, and stays where it is dear."""
    for cheap, error in ((True, 1e-9), (False, 1e6)):
        found = [
            curve((len(g.units) // 2, error if g.index == 5 else 1.0), units=len(g.units), group=g.index)
            for g in GRAPH.groups
        ]
        removed = spend(GRAPH, found, Constraints(), ratio=0.1)
        gone = [int(removed[g.units].sum()) for g in GRAPH.groups]
        assert (gone[5] == sum(gone)) == cheap and (gone[5] > 0) == cheap


def test_groups_without_a_curve_stay_whole() -> None:
    found = [curve((4, 0.1), units=len(g.units), group=g.index) for g in GRAPH.groups[:3]]
    removed = spend(GRAPH, found, Constraints(), ratio=0.1)
    assert removed.any() and not any(removed[g.units].any() for g in GRAPH.groups[3:])


def test_a_trained_network_loses_less_than_with_equal_shares() -> None:
    """A third of the MACs remains; errors of the repaired networks are taken on images that nothing was fitted to."""
    dense = run_once(GRAPH.proto, {"image": images()[1::2]})["logits"]
    settings = PlanSettings(target=Target("macs", 0.35), criterion="obs", allocation="reconstruction")
    curves = sensitivities(digits(), settings, batches())
    chosen = {
        "reconstruction": apply_plan(GRAPH, op.plan(digits(), settings, sensitivity=curves)),
        "uniform": PrunedGraph(GRAPH, choose(GRAPH, score(GRAPH), Constraints(), target=settings.target)),
    }
    errors = {}
    for name, kept in chosen.items():
        model = rewrite(kept)
        recover(kept, model, batches())
        errors[name] = float(((run_once(model, {"image": images()[1::2]})["logits"] - dense) ** 2).mean())
    assert errors["reconstruction"] < 0.85 * errors["uniform"]
