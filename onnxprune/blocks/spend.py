"""How many residual blocks a budget asks for: depth before width."""

from __future__ import annotations

from onnxprune.blocks.removal import without_blocks
from onnxprune.blocks.score import rank_blocks
from onnxprune.budget import Quantity
from onnxprune.cost import cost
from onnxprune.kept import nothing
from onnxprune.recover.stream import Batches
from onnxprune.trace.graph import ChannelGraph


def blocks_within(
    graph: ChannelGraph, quantity: Quantity, share: float, batches: Batches | None = None
) -> tuple[str, ...]:
    """Choose residual blocks, those that matter least first, until one more would take the model below a target.

    What is missing to the target is left to channels.

    Args:
        graph: the traced model, whole.
        quantity: what is limited.
        share: the limit, as a share of the model's cost.
        batches: gives inputs to judge blocks by; without, weights tell.

    Returns:
        The names of the blocks, in the order in which they were chosen.

    Raises:
        ModelError: a weight isn't finite, or the model can't be run.
    """
    limit = share * getattr(cost(nothing(graph)), quantity)
    chosen: tuple[str, ...] = ()
    for name in rank_blocks(graph, batches):
        left = cost(nothing(without_blocks(graph, [*chosen, name])))
        if getattr(left, quantity) < limit:
            break
        chosen = (*chosen, name)
    return chosen
