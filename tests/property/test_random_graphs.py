"""Random graphs, random removals: what the rewriter makes must be what the masked original computes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from onnxprune.planning.residual_blocks import find_blocks, without_blocks
from onnxprune.rewrite.masked import masked
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.rewrite.verify import verify
from onnxprune.trace.pruned_graph import PrunedGraph
from tests.property.builder import BLOCKS
from tests.property.nets import Sample, samples
from tests.toolbox import (
    analyze,
    assert_proved,
    inputs_of,
    largest_difference,
    removal,
    run_once,
    swapped,
    zeroed,
)

TOLERANCE = 1e-4
FAST = settings(max_examples=6)


def examine(sample: Sample, seed: int) -> Counter[str]:
    """Prune a model at random and prove the result; return what could be checked."""
    seen: Counter[str] = Counter(models=1)
    rng = np.random.default_rng(seed)
    graph = analyze(sample.model, sample.shapes, "width" if seed % 2 else "heads")
    blocks, whole = find_blocks(graph), PrunedGraph(graph)
    if blocks and rng.random() < 0.5:
        whole = without_blocks(graph, [blocks[rng.integers(len(blocks))].name])
        graph = whole.graph
        seen["shortened"] += 1
    groups = [g for g in graph.groups if rng.random() < 0.9]
    kept = whole.without(removal(groups, graph, rng).removed)
    pruned = assert_proved(kept, tolerance=TOLERANCE)
    if not kept.removed.any():
        return seen
    seen["pruned"] += 1
    inputs = inputs_of(graph)
    if all(g.exact for g in groups) and not kept.blocks:
        bare = run_once(zeroed(kept), inputs)
        if all(np.isfinite(v).all() for v in bare.values()):
            seen["zeroed"] += 1
            assert largest_difference(run_once(pruned, inputs), bare) <= TOLERANCE
    other = swapped(kept, rng)
    if other is not None:
        wrong = rewrite(other)
        seen["controls"] += 1
        if not verify(kept, wrong, inputs, tolerance=TOLERANCE).passed:
            seen["caught"] += 1
        else:
            assert _same(kept, other), "the oracle doesn't see that another channel is gone"
    return seen


def _same(kept: PrunedGraph, other: PrunedGraph) -> bool:
    """Tell whether two removals can't be told apart by the outputs, because a channel is dead or saturated."""
    inputs = inputs_of(kept.graph)
    return largest_difference(run_once(masked(other), inputs), run_once(masked(kept), inputs)) <= TOLERANCE


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_block(name: str) -> None:
    """Each kind of block by itself, so that a failure says where to look, and none goes untested."""
    used: Counter[str] = Counter()

    @FAST
    @given(samples(first=name), st.integers(0, 2**16))
    def inner(sample: Sample, seed: int) -> None:
        used.update(sample.blocks)
        examine(sample, seed)

    inner()
    assert used[name], "the block never fitted"


@pytest.mark.parametrize("name", ["residual", "inverted_residual"])
def test_shortened(name: str) -> None:
    """Residual blocks leave before channels do: the random networks don't often have one."""
    total: Counter[str] = Counter()

    @settings(FAST, max_examples=12)
    @given(samples(first=name), st.integers(0, 2**16))
    def inner(sample: Sample, seed: int) -> None:
        total.update(examine(sample, seed))

    inner()
    assert total["shortened"] > 0.1 * total["models"], total


def test_graphs() -> None:
    _run(settings(max_examples=150))


@pytest.mark.slow
def test_many_graphs() -> None:
    _run(settings(max_examples=1500, derandomize=False))


def _run(how: settings) -> None:
    total: Counter[str] = Counter()

    @settings(how, suppress_health_check=list(HealthCheck))
    @given(samples(), st.integers(0, 2**16))
    def inner(sample: Sample, seed: int) -> None:
        total.update(examine(sample, seed))

    inner()
    # Neither the removals nor the negative controls may be empty.
    assert total["pruned"] > 0.7 * total["models"], total
    assert total["zeroed"] > 0.3 * total["models"], total
    assert total["caught"] > 0.8 * total["controls"], total
