"""How much each residual block matters: by its weights, or by how much it changes what goes through it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import PlanError
from onnxprune.importance.weight_view import WeightView
from onnxprune.model.stream import Batches, Stream
from onnxprune.operators.contractions import contracts
from onnxprune.planning.residual_blocks import Block, find_blocks
from onnxprune.trace.graph import ChannelGraph


def choose_blocks(graph: ChannelGraph, count: int, batches: Batches | None = None) -> tuple[str, ...]:
    """Choose the residual blocks that matter least.

    Args:
        graph: the traced model.
        count: how many.
        batches: gives inputs to judge by; without, weights tell.

    Returns:
        The names of the blocks, in the model's order.

    Raises:
        PlanError: the count is negative (OP303), or the model has fewer blocks (OP315).
        ModelError: a weight isn't finite, or the model can't be run.
    """
    if count < 0:
        raise PlanError("OP303", f"{count} is out of range: must be at least 0", where="--remove-blocks")
    blocks = find_blocks(graph)
    if count > len(blocks):
        names = ", ".join(block.name for block in blocks) or "none"
        cause = f"{count} residual blocks can't be removed: the model has {len(blocks)}"
        raise PlanError("OP315", cause, hint=f"blocks that leave by rewiring: {names}")
    chosen = rank_blocks(graph, batches)[:count]
    return tuple(block.name for block in blocks if block.name in chosen)


def rank_blocks(graph: ChannelGraph, batches: Batches | None = None) -> tuple[str, ...]:
    """Return the names of all residual blocks, those that matter least first; see `score_blocks`.

    Raises:
        ModelError: a weight isn't finite, or the model can't be run on the inputs.
    """
    blocks = find_blocks(graph)
    scores = score_blocks(graph, blocks, batches)
    return tuple(blocks[i].name for i in np.argsort(scores, kind="stable").tolist())


def score_blocks(graph: ChannelGraph, blocks: tuple[Block, ...], batches: Batches | None = None) -> NDArray[np.float64]:
    """Score residual blocks, higher is more important, shape (blocks,).

    With inputs: one less the cosine between a block's input and its output, the mean over samples ("block influence",
    Men et al., ShortGPT, 2024). Without: the root mean square of its layers' weights, normalizations folded in.

    Raises:
        ModelError: a weight isn't finite, or the model can't be run on the inputs.
    """
    if batches is None:
        return _weight_norms(graph, blocks)
    sums = np.zeros(len(blocks))
    samples = 0
    stream = Stream(graph.proto, batches)
    for tensors in stream.tensors([name for b in blocks for name in (b.skip, b.output)]):
        before = [_rows(tensors[b.skip]) for b in blocks]
        after = [_rows(tensors[b.output]) for b in blocks]
        sums += [float((1 - _cosines(x, y)).sum()) for x, y in zip(before, after, strict=True)]
        samples += len(before[0]) if before else 0
    return sums / max(samples, 1)


def _weight_norms(graph: ChannelGraph, blocks: tuple[Block, ...]) -> NDArray[np.float64]:
    weights = WeightView(graph)
    nodes = {node.name: node for node in graph.proto.graph.node}
    scores = []
    for block in blocks:
        layers = {n for name in block.nodes if contracts(nodes[name]) for n in nodes[name].input}
        own = [n for n in block.weights if n in layers and len(graph.shapes.shapes[n]) > 1]
        total = sum(float(weights.power_sums(name, 0, 2).sum()) for name in own)
        scores.append(np.sqrt(total / max(1, sum(np.prod(graph.shapes.shapes[name]) for name in own))))
    return np.array(scores, dtype=np.float64)


def _rows(array: NDArray[np.generic]) -> NDArray[np.float64]:
    return array.reshape(len(array), -1).astype(np.float64)


def _cosines(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cosine between the rows of two arrays; of rows of zeros, which nothing changes, one."""
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    products = (x * y).sum(axis=1)
    return np.asarray(np.divide(products, norms, out=np.ones_like(norms), where=norms > 0))
