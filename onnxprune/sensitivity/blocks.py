"""Choose the residual blocks to remove where channels make up the rest of a target, by the error that repair leaves."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

from onnxprune.cost.cost import cost
from onnxprune.errors import PlanError
from onnxprune.model.stream import Batches
from onnxprune.planning.residual_blocks import rank_blocks, without_blocks
from onnxprune.progress import Progress, silent
from onnxprune.recover import recover
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.sensitivity.allocation import spend
from onnxprune.sensitivity.curves import Curve, carried, share_out
from onnxprune.sensitivity.outputs import OutputError
from onnxprune.settings.planning import Constraints, Target
from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.pruned_graph import PrunedGraph

log = logging.getLogger(__name__)

_OUT_OF_REACH = float("inf")
_PATIENCE = 3  # numbers in a row that aren't better, after which no larger ones are tried


def spend_blocks(
    graph: ChannelGraph,
    targets: Sequence[Target],
    constraints: Constraints,
    batches: Batches,
    curves: Sequence[Curve],
    whole: Mapping[str, int] | None = None,
    *,
    seed: int = 0,
    progress: Progress = silent,
) -> PrunedGraph:
    """Choose the number of residual blocks that minimizes the output error at a target that channels make up.

    Blocks are removed one after the other, the least important first. Each time, channels are removed until the target
    is met, the network is repaired, and its error is measured on inputs held back: what counts is what the layers
    that remain can't make up for.

    Args:
        graph: the whole model, traced.
        targets: the limits, on costs that are counted.
        constraints: limits on the channels to remove.
        batches: returns inputs; every fourth batch is held back to measure errors on.
        curves: sensitivities of the groups of the whole model.
        whole: the costs that limits are shares of, see `choose`; those of the whole model by default.
        seed: of the repairs.
        progress: called for each network that is tried.

    Returns:
        The model without these blocks.

    Raises:
        PlanError: the target is out of reach, with blocks and without (OP301), nothing can be pruned (OP310), or the
            target is a latency (OP302).
        ModelError: a weight isn't finite, or the model can't be run.
    """
    whole = {**cost(PrunedGraph(graph)).totals(), **(whole or {})}
    fitted, held_back = share_out(batches)
    judge, ranked = OutputError(graph.proto, held_back, graph.front), rank_blocks(graph, batches)

    def error(reduced: PrunedGraph) -> float:
        own = curves_left(curves, graph, reduced.graph)
        kept = reduced.without(spend(reduced.graph, own, constraints, target=tuple(targets), whole=whole))
        proto = rewrite(kept)
        recover(kept, proto, fitted, seed=seed)
        return judge(proto)

    found, least, best, failure = PrunedGraph(graph), _OUT_OF_REACH, 0, None
    for count in range(len(ranked) + 1):
        progress("try blocks", count, len(ranked) + 1)
        reduced = without_blocks(graph, ranked[:count])
        left = cost(reduced).totals()
        if count and all(left[target.counted] < target.limit(whole[target.counted]) for target in targets):
            break  # it saves more than is asked for
        try:
            now = error(reduced)
        except PlanError as out_of_reach:
            failure, now = failure or out_of_reach, _OUT_OF_REACH
        log.debug("%s without %d blocks: %.4g", judge.measures, count, now)
        if now < least:
            found, least, best = reduced, now, count
        elif least < _OUT_OF_REACH and count - best == _PATIENCE:
            break
    if least == _OUT_OF_REACH and failure is not None:
        raise failure
    return found


def curves_left(curves: Iterable[Curve], before: ChannelGraph, after: ChannelGraph) -> list[Curve]:
    """Return the sensitivities of a network's groups that are left once blocks were removed from it.

    Args:
        curves: the sensitivities of the groups of the network.
        before: this network, traced.
        after: the same without some of its blocks.
    """
    if before is after:
        return list(curves)
    return [left for curve in curves for left in carried([curve], before, after) or ()]
