"""Two layers in place of one, repaired as one: reduced-rank regression."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

from onnxprune.recover import recover
from onnxprune.recover.lstsq import Moments
from onnxprune.recover.pairs import of_rank
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.trace.pruned_graph import PrunedGraph
from tests.rank.support import factored
from tests.toolbox import Net, analyze, run_once

RNG = np.random.default_rng(0)


class TestRegression:
    def test_best_of_its_rank(self) -> None:
        """No other weights of the rank have a smaller error: those of a general optimizer, started there, have not."""
        rng = np.random.default_rng(3)
        mixed = rng.standard_normal((400, 6)) * np.logspace(0, -1.5, 6)
        goal = mixed / np.logspace(0, -1, 6) @ rng.standard_normal((6, 5)) + 0.1 * rng.standard_normal((400, 5)) + 1
        moments = Moments()
        moments.add(mixed[:, None], goal)
        full = moments.solve(np.zeros((1, 5, 7)), 1e-12)
        found = of_rank(full, 2, moments)
        assert np.linalg.matrix_rank(found[0, :, :-1], tol=1e-8) == 2
        centered, targets = mixed - mixed.mean(0), goal - goal.mean(0)
        fitted = centered @ np.linalg.lstsq(centered, targets, rcond=None)[0]
        _, _, directions = np.linalg.svd(fitted, full_matrices=False)
        best = np.square(targets - fitted @ directions[:2].T @ directions[:2]).sum() / 400
        assert moments.error(found) == pytest.approx(best, rel=1e-6)
        u, s, v = np.linalg.svd(full[0, :, :-1])  # the nearest weights aren't the nearest outputs
        by_weight = np.concatenate([(u[:, :2] * s[:2]) @ v[:2], full[0, :, -1:]], axis=1)[None]
        assert moments.error(by_weight) > 1.1 * best

    def test_outputs_that_count_more_are_nearer(self) -> None:
        """Differences are counted behind a normalization: held against the SVD of outputs that are scaled."""
        rng = np.random.default_rng(6)
        x, scale = rng.standard_normal((300, 5)), np.array([10.0, 1.0, 0.1, -3.0])
        moments = Moments()
        moments.add(x[:, None], x @ rng.standard_normal((5, 4)))
        full = moments.solve(np.zeros((1, 4, 6)), 1e-12)
        outputs = (x - x.mean(0)) @ full[0, :, :-1].T * scale

        def left(**how: Any) -> float:
            near = of_rank(full, 2, moments, **how)[0, :, :-1]
            return float(np.square(outputs - (x - x.mean(0)) @ near.T * scale).sum())

        best = np.square(np.linalg.svd(outputs, compute_uv=False)[2:]).sum()
        assert left(scale=scale) == pytest.approx(best, rel=1e-6)
        assert left() > 1.5 * best

    def test_without_an_intercept_outputs_are_not_centered(self) -> None:
        rng = np.random.default_rng(4)
        x = rng.standard_normal((300, 5)) + 2.0
        moments = Moments()
        moments.add(x[:, None], x @ rng.standard_normal((5, 4)), intercept=False)
        full = moments.solve(np.zeros((1, 4, 6)), 1e-12)
        found = of_rank(full, 1, moments)
        outputs = x @ full[0, :, :-1].T
        sizes = np.linalg.svd(outputs, compute_uv=False)
        assert moments.error(found) == pytest.approx(np.square(sizes[1:]).sum() / 300, rel=1e-6)
        assert (found[0, :, -1] == 0).all()

    def test_a_pair_is_repaired_as_one(self) -> None:
        """The error on the samples is that of reduced-rank regression to the original's outputs, by NumPy on them."""
        net = Net()
        net.output(net.op("Gemm", net.input((8, 10), "x"), net.weight(10, 8), net.weight(8), name="wide"))
        model = net.model()
        graph = analyze(model)
        _, after = factored(graph, {"wide": 2})
        mix = RNG.standard_normal((10, 10)) * np.logspace(0, -2, 10)
        given_ = [{"x": (RNG.standard_normal((8, 10)) @ mix).astype(np.float32)} for _ in range(40)]
        proto = rewrite(PrunedGraph(after))
        before = [run_once(model, batch)[model.graph.output[0].name] for batch in given_]

        def error(candidate: ModelProto) -> float:
            now = [run_once(candidate, batch)[model.graph.output[0].name] for batch in given_]
            return float(np.square(np.concatenate(now) - np.concatenate(before)).mean())

        start = error(proto)
        (done,) = recover(PrunedGraph(after), proto, lambda: iter(given_), teacher=graph.proto)
        targets = np.concatenate(before)
        sizes = np.linalg.svd(targets - targets.mean(0), compute_uv=False)
        best = float(np.square(sizes[2:]).sum() / targets.size)
        assert done.node == "wide" and done.after < done.before
        assert best <= error(proto) <= 1.2 * best < start / 1.5
        shapes = [t.dims for t in proto.graph.initializer if t.name.startswith("const")]
        assert [list(s) for s in shapes if 2 in s] == [[10, 2], [2, 8]]
