"""Logits of attentions with narrower heads, refitted: against NumPy's least squares, and in repaired networks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto

import onnxprune as op
from onnxprune.model.graph import extract
from onnxprune.model.metadata import SPARSE, write_notes
from onnxprune.model.session import run, session
from onnxprune.recover import recover
from onnxprune.recover.logits import Part, narrowed, refit
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.trace.pruned_graph import PrunedGraph
from tests.basis.heads import Attention, Form, batches
from tests.toolbox import analyze

Array = NDArray[np.float64]

HEADS, LEFT, RIGHT, WIDTH = 2, 5, 6, 3


def part(seed: int, samples: int, noise: float = 0.1) -> Part:
    """Return products of random queries and keys; the logits wanted have other matrices between, and noise."""
    rng = np.random.default_rng(seed)
    queries, keys = (rng.standard_normal((samples, HEADS, n, WIDTH)) for n in (LEFT, RIGHT))
    shares = rng.random((samples, HEADS, LEFT, RIGHT))
    shares /= shares.sum(axis=-1, keepdims=True)
    between = np.random.default_rng(0).standard_normal((HEADS, WIDTH, WIDTH))
    goal = queries @ between @ keys.swapaxes(-1, -2) + noise * rng.standard_normal(shares.shape)
    plain = Part(queries, keys, shares, goal)
    return Part(queries, keys, shares, plain.about_mean(goal))


def by_numpy(given: Part, head: int) -> Array:
    """Return the matrix of one head by least squares with a row for each pair of a query and a key."""
    rows, goals = [], []
    for q, k, a, goal in zip(*(getattr(given, n)[:, head] for n in ("left", "right", "shares", "goal")), strict=True):
        for i in range(LEFT):
            about = k - a[i] @ k
            root = np.sqrt(a[i])[:, None]
            rows.append(root * np.einsum("c,jd->jcd", q[i], about).reshape(RIGHT, -1))
            goals.append(root[:, 0] * goal[i])
    return np.linalg.lstsq(np.concatenate(rows), np.concatenate(goals))[0].reshape(WIDTH, WIDTH)


def test_the_matrices_are_those_of_least_squares() -> None:
    given = part(1, 40)
    found, (before, after) = refit([given], [part(2, 40)])
    for head in range(HEADS):
        np.testing.assert_allclose(found[head], by_numpy(given, head), atol=0.02)
        assert np.abs(found[head] - np.eye(WIDTH)).max() > 0.5
    assert after < 0.1 * before


def test_what_only_fits_the_samples_is_left_alone() -> None:
    """The negative control: logits of noise, so that whatever is fitted is wrong for others."""
    rng, given = np.random.default_rng(0), [part(seed, 2) for seed in (1, 2)]
    noise = [Part(p.left, p.right, p.shares, p.about_mean(p.logits(np.eye(WIDTH)[None]))) for p in given]
    noise = [Part(p.left, p.right, p.shares, p.goal + p.about_mean(rng.standard_normal(p.goal.shape))) for p in noise]
    found, (before, after) = refit(noise[:1], noise[1:])
    assert after <= before
    found, (before, after) = refit([given[0]], [])
    np.testing.assert_array_equal(found, np.broadcast_to(np.eye(WIDTH), found.shape))
    assert before == after


def halved(model: ModelProto) -> PrunedGraph:
    """Return an attention with half of the channels of queries and keys, the first ones of each head."""
    graph = analyze(model, attention="width")
    removed = np.zeros(graph.unit_count, dtype=bool)
    group = next(group for group in graph.groups if not group.exact)
    removed[group.units[: len(group.units) // 2]] = True
    return PrunedGraph(graph, removed)


def logits_error(model: ModelProto, original: ModelProto) -> float:
    """Return the error of the logits on other samples, their means for each query apart, by ONNX Runtime."""
    errors = []
    for batch in batches(6, seed=9):
        found, expected = (run(session(extract(m, ["logits_out0"])), batch)["logits_out0"] for m in (model, original))
        apart = found - expected
        errors.append((apart - apart.mean(axis=-1, keepdims=True)).var() / expected.var())
    return float(np.mean(errors))


@pytest.mark.parametrize(
    ("form", "bias"),
    [("matmul", True), ("matmul", False), ("einsum", True), ("packed", True), ("packed", False), ("split", True)],
)
def test_a_repair_refits_logits(form: Form, bias: bool) -> None:
    """Of queries and keys with three dimensions, any three of six channels are enough."""
    kept = halved(Attention(2, 6, form, bias, rank=3).model())
    before, after = rewrite(kept), rewrite(kept)
    repairs = {repair.node: repair for repair in recover(kept, after, lambda: batches(60))}
    assert repairs["logits"].after < 0.1 * repairs["logits"].before
    assert logits_error(after, kept.graph.proto) < 0.1 * logits_error(before, kept.graph.proto)
    assert logits_error(before, kept.graph.proto) > 0.1
    other = rewrite(kept)
    assert "logits" not in {repair.node for repair in recover(kept, other, lambda: batches(4), method="bn")}


def test_what_something_else_reads_or_needs_is_left_alone() -> None:
    kept = halved(Attention(2, 6).model())
    sparse = rewrite(kept)
    assert narrowed(kept, sparse)
    write_notes(sparse, {SPARSE: '{"key_w": "2:4"}'})
    assert not narrowed(kept, sparse)
    whole = PrunedGraph(analyze(Attention(2, 6).model(), attention="width"))
    assert not narrowed(whole, rewrite(whole))


@pytest.mark.slow
def test_a_repaired_file_is_verified_by_its_metadata() -> None:
    model: Any = Attention(2, 6).model()
    analysis = op.analyze(model, attention="width")
    plan = op.plan(analysis, axes=("channels", "basis"), ratio_for=[("query", 0.5)], data=lambda: batches(20))
    small = op.prune(model, plan)
    repairs = op.repair(small, lambda: batches(20))
    assert "logits" in {repair.node for repair in repairs}
    assert op.verify(model, small.proto).proved
