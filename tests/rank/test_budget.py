"""Ranks chosen within a limit on the costs."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper

from onnxprune.cost.cost import cost
from onnxprune.errors import PlanError
from onnxprune.rank.budget import allowed_ranks, by_weights, spend
from onnxprune.rank.factors import find_split
from onnxprune.sensitivity import Curve, Point
from onnxprune.settings.planning import Constraints
from onnxprune.trace.pruned_graph import PrunedGraph
from tests.rank.support import deep
from tests.toolbox import analyze


class TestBudget:
    def test_the_least_error_within_the_limit(self) -> None:
        """Held against all combinations."""
        rng = np.random.default_rng(5)
        graph = analyze(deep())
        layers, _ = find_split(graph.proto, graph.shapes)
        ranks = allowed_ranks(graph, layers, Constraints(round_to=2, max_ratio=0.8))
        curves = [
            Curve(i, tuple(range(layers[i].full)), tuple(Point(layers[i].full - r, error) for r, error in pairs))
            for i, own in ranks.items()
            for pairs in [list(zip(own, np.sort(rng.uniform(0.01, 1, len(own))), strict=True))]
        ]
        errors = {c.group: [0.0, *(p.error for p in c.points)] for c in curves}
        whole = float(cost(PrunedGraph(graph)).macs)

        def total(choice: tuple[int, ...]) -> tuple[float, float]:
            saved = error = 0.0
            for (i, own), k in zip(ranks.items(), choice, strict=True):
                error += errors[i][k]
                saved += layers[i].cost.macs - layers[i].macs(own[k - 1]) if k else 0
            return error, whole - saved

        every = [total(choice) for choice in product(*(range(len(own) + 1) for own in ranks.values()))]
        for share in (0.9, 0.7, 0.5):
            chosen = spend(layers, ranks, curves, {"macs": (whole, share * whole)})
            by_name = {layers[i].layer.node.name: (i, own) for i, own in ranks.items()}
            picked = tuple(
                1 + list(own).index(chosen[name]) if name in chosen else 0 for name, (_, own) in by_name.items()
            )
            error, left = total(picked)
            assert left <= share * whole
            assert error <= 1.0001 * min(e for e, macs in every if macs <= left), "nothing as cheap is better"
        with pytest.raises(PlanError, match="can't bring macs"):
            spend(layers, ranks, curves, {"macs": (whole, 0.01 * whole)})

    def test_without_data_by_what_is_lost_of_the_weights(self) -> None:
        graph = analyze(deep())
        layers, _ = find_split(graph.proto, graph.shapes)
        ranks = allowed_ranks(graph, layers, Constraints(round_to=2))
        for curve in by_weights(graph.proto, layers, ranks):
            split = layers[curve.group]
            name = split.layer.weight
            weight = next(numpy_helper.to_array(t) for t in graph.proto.graph.initializer if t.name == name)
            sizes = np.linalg.svd(weight.reshape(len(weight), -1), compute_uv=False) ** 2
            for point in curve.points:
                rank = split.full - point.removed
                assert point.error == pytest.approx(sizes[rank:].sum() / sizes.sum(), abs=1e-6)

    def test_constraints_name_layers(self) -> None:
        graph = analyze(deep())
        layers, _ = find_split(graph.proto, graph.shapes)

        def names(**how: Any) -> set[str]:
            return {layers[i].layer.node.name for i in allowed_ranks(graph, layers, Constraints(**how))}

        assert names() == {"one", "two", "three", "head"}
        assert names(exclude=("two",)) == {"one", "three", "head"} and names(include=("two",)) == {"two"}
        with pytest.raises(PlanError, match="no node's name"):
            names(exclude=("nothing",))
