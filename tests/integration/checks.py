"""What every network, however it was exported, has to stand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

import onnxprune as op
from onnxprune.model.file import load
from onnxprune.normalize import normalize
from onnxprune.planning.plan import apply_plan
from onnxprune.report.summary import summarize
from onnxprune.rewrite.masked import masked
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.settings.planning import Attention, Constraints, PlanSettings, Target
from onnxprune.trace import trace
from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.groups import Group
from onnxprune.trace.pruned_graph import PrunedGraph
from onnxprune.workflow.analysis import TracedModel
from onnxprune.workflow.pruning import prune
from tests.toolbox import assert_sound, largest_difference, run_once, swapped

Arrays = Mapping[str, NDArray[Any]]
Shapes = Mapping[str, tuple[int, ...]]

TOLERANCE = 1e-4
BUDGETS = {
    "macs": PlanSettings(target=Target("macs", 0.5)),
    "ratio": PlanSettings(ratio=0.5, constraints=Constraints(round_to=1)),
}


def analyzed(model: ModelProto, shapes: Shapes | None = None, attention: Attention = "heads") -> TracedModel:
    """Load and trace a model under an attention policy."""
    loaded = load(model)
    return TracedModel(loaded, trace(normalize(loaded.proto), shapes, attention=attention))


def unreached(graph: ChannelGraph) -> list[str]:
    """List the layers with weights that can't be made smaller, as "operator [weight shape]"."""
    layers = [layer for layer in summarize(graph).layers if layer.weighted and not layer.reached]
    reads = {node.name: node.input[1:] for node in graph.proto.graph.node}
    weights = [max((graph.shapes.shapes.get(n, ()) for n in reads[layer.cost.node]), key=len) for layer in layers]
    return [f"{layer.cost.op} {list(weight)}" for layer, weight in zip(layers, weights, strict=True)]


def footprints(graph: ChannelGraph) -> list[str]:
    """Describe the groups: units, "x", their width, and how many parameters the group holds; "~" if approximate.

    "16 by 4" are units that leave four at a time, one of each group of a convolution.
    """

    def size(group: Group) -> str:
        together = group.sets.shape[1]
        return f"{len(group.units)}" + (f" by {together}" if together > 1 else "")

    return sorted(
        f"{'' if g.group.exact else '~'}{size(g.group)} x {g.group.width}: {g.params}" for g in summarize(graph).groups
    )


def assert_no_rule_failed(graph: ChannelGraph) -> None:
    """No operator was unknown, none of unknown shape, and none didn't fit its own rule."""
    failed = [pin for _, pin in graph.reasons() if pin.code in ("OP203", "OP213", "OP215")]
    assert not failed, failed


def assert_prunes(
    analysis: TracedModel, budget: str, inputs: Arrays, elsewhere: Arrays | None, tolerance: float = TOLERANCE
) -> None:
    """Prune to half and prove it, also on inputs of other sizes; a plan that is off by one unit must be caught."""
    plan = op.plan(analysis, BUDGETS[budget])
    pruned = prune(analysis, plan, inputs=inputs, tolerance=tolerance)
    kept = apply_plan(analysis.graph, plan)
    assert kept.removed.any()
    assert plan.after["macs"] < 0.9 * plan.before["macs"]
    assert_sound(kept, pruned.proto)
    if elsewhere is not None:
        error = largest_difference(run_once(pruned.proto, elsewhere), run_once(masked(kept), elsewhere))
        assert error <= tolerance, f"at other sizes: {error}"
    assert_swap_is_caught(kept, inputs, tolerance)


def assert_swap_is_caught(kept: PrunedGraph, inputs: Arrays, tolerance: float = TOLERANCE, tries: int = 3) -> None:
    """Exchange one removed unit for another: the oracle sees it, unless neither has any influence on the outputs."""
    rng = np.random.default_rng(0)
    reference = run_once(masked(kept), inputs)
    caught = 0
    for _ in range(tries):
        other = swapped(kept, rng)
        assert other is not None
        if largest_difference(run_once(rewrite(other), inputs), reference) > tolerance:
            caught += 1
        else:
            same = largest_difference(run_once(masked(other), inputs), reference)
            assert same <= tolerance, "the oracle doesn't see that another unit is gone"
    assert caught, "no exchange changes the outputs"
