"""How many residual blocks a budget is best spent on, before channels make up the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from onnxprune.cost.cost import cost
from onnxprune.errors import PlanError
from onnxprune.model.stream import Batches
from onnxprune.planning.budget import Constraints, Target
from onnxprune.planning.residual_blocks import without_blocks
from onnxprune.planning.residual_scores import rank_blocks
from onnxprune.rewrite.masked import masked
from onnxprune.sensitivity.allocation import predicted_error, spend
from onnxprune.sensitivity.curves import Curve, share_out
from onnxprune.sensitivity.outputs import OutputError
from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.pruned_graph import nothing


def spend_blocks(
    graph: ChannelGraph,
    target: Target,
    constraints: Constraints,
    batches: Batches,
    sensitivities: Callable[[ChannelGraph], Sequence[Curve]],
) -> tuple[ChannelGraph, Sequence[Curve]]:
    """Remove as many residual blocks as make the outputs' error least, channels making up the rest to a target.

    Blocks leave one after the other, those that matter least first. Their joint error is measured, that of the channels
    predicted from sensitivities, and both are of one kind and add up. This ends with the first block that doesn't pay.

    Args:
        graph: the traced model, whole.
        target: the limit, on a cost that is counted.
        constraints: limits on what may leave of the channels.
        batches: gives inputs to judge by.
        sensitivities: measures those of a graph's groups.

    Returns:
        The dependencies of what remains, and the sensitivities of its groups.

    Raises:
        PlanError: the target is out of reach, with blocks and without (OP301), nothing can be pruned (OP310), or the
            target is a latency (OP302).
        ModelError: a weight isn't finite, or the model can't be run.
    """
    limit = target.value * getattr(cost(nothing(graph)), target.counted)
    judge = OutputError(graph.proto, share_out(batches)[1])
    best: tuple[float, ChannelGraph, Sequence[Curve]] | None = None
    ranked, failure = rank_blocks(graph, batches), None
    for count in range(len(ranked) + 1):
        reduced = without_blocks(graph, ranked[:count])
        error = judge(masked(nothing(reduced))) if count else 0.0
        too_much = getattr(cost(nothing(reduced)), target.counted) < limit
        if too_much or (best is not None and error >= best[0]):
            break
        curves = sensitivities(reduced)
        try:
            removed = spend(reduced, curves, constraints, target=rest_of(target, reduced))
        except PlanError as out_of_reach:
            failure = failure or out_of_reach
            continue
        error += predicted_error(reduced, {curve.group: curve for curve in curves}, removed)
        if best is not None and error >= best[0]:
            break
        best = error, reduced, curves
    if best is None:
        assert failure is not None
        raise failure
    return best[1:]


def rest_of(target: Target | None, graph: ChannelGraph) -> Target | None:
    """Turn a share of a model's cost into one of what is left of it without some residual blocks."""
    if target is None or target.quantity == "latency":
        return target
    whole, left = (getattr(cost(nothing(g)), target.quantity) for g in (graph.original, graph))
    return replace(target, value=min(1.0, target.value * whole / max(left, 1)))
