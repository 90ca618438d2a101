"""Attention as one operator: heads leave whole, or every head loses the same part of its width."""

from __future__ import annotations

import numpy as np

from onnxprune.channels.values import Mask
from onnxprune.operators.edit import RewriteNode
from onnxprune.operators.registry import rewrites, rule
from onnxprune.operators.traced import TraceNode


def structure_of(op: TraceNode) -> set[str]:
    """Return the names that stay: groups of queries, and the width of a head or the heads themselves."""
    return {"r", "h"} if op.attention == "width" else {"r", "d", "e"}


def score_bias(op: TraceNode, i: int, heads: str) -> str:
    """Return the spec of what is added to the scores, [batch, heads, queries, keys]: of each its own, or one for all.

    Args:
        op: the node.
        i: the input, which may have fewer axes, counted from the right.
        heads: the spec of the axis of heads.
    """
    rank = len(op.shape(i)) if op.has(i) else 0
    apart = rank > 2 and op.shape(i)[-3] > 1
    return " ".join(["b", heads if apart else "u", "x", "y"][4 - rank :]) if rank else ""


@rule("Attention")
def attention(op: TraceNode) -> None:
    """Queries meet keys, scores meet values, head by head; r query heads share one head of keys and values."""
    if len(op.shape(0)) == 4:
        heads = op.shape(1)[1]
        shared, width, v_width = op.shape(0)[1] // heads, op.shape(1)[3], op.shape(2)[3]
        q, k, v, y = "b (h r) s d", "b h t d", "b h t e", "b (h r) s e"
    else:
        heads = op.attr("kv_num_heads")
        shared, width, v_width = op.attr("q_num_heads") // heads, op.shape(1)[2] // heads, op.shape(2)[2] // heads
        q, k, v, y = "b s (h r d)", "b t (h d)", "b t (h e)", "b s (h r e)"
    op.align(
        f"{q}, {k}, {v}, {score_bias(op, 3, '(h r)')}, b h p d, b h p e -> {y}, b h z d, b h z e, b (h r) s z",
        structure=structure_of(op),
        h=heads,
        r=shared,
        d=width,
        e=v_width,
    )


@rewrites("Attention")
def attention_heads(edit: RewriteNode) -> None:
    """Count the heads that remain; scores go on being scaled by the width a head had."""
    four = len(edit.old_shape(0)) == 4
    old_width = edit.old_shape(0)[3] if four else edit.old_shape(0)[2] // edit.attr("q_num_heads")
    if not four:
        for i, name in ((0, "q_num_heads"), (1, "kv_num_heads")):
            edit.set_attr(name, heads_left(edit.mask(i, 2), edit.attr(name)))
    if edit.attr("scale") is None:
        edit.set_attr("scale", float(old_width**-0.5))


@rule("RotaryEmbedding", "com.microsoft:RotaryEmbedding")
def rotary_embedding(op: TraceNode) -> None:
    """Pairs of a head's width are rotated into each other: the width stays, heads may leave."""
    if len(op.shape(0)) == 4:
        op.give(op.pin_axes(op.x(0), [3], "OP204", "positions of a head's width are rotated into each other"))
    elif op.attr("num_heads", 0):
        op.align("b s (h d) -> b s (h d)", [op.x(0)], structure={"d"}, h=op.attr("num_heads"))
    else:
        op.give(op.pin_axes(op.x(0), [2], "OP204", "positions of a head's width are rotated into each other"))


@rewrites("RotaryEmbedding", "com.microsoft:RotaryEmbedding")
def rotary_heads(edit: RewriteNode) -> None:
    """Count the heads that remain."""
    if len(edit.old_shape(0)) == 3 and edit.attr("num_heads", 0):
        edit.set_attr("num_heads", heads_left(edit.mask(0, 2), edit.attr("num_heads")))


def heads_left(mask: Mask | None, heads: int) -> int:
    """Return how many heads remain of a mask over all heads' widths."""
    return heads if mask is None else int(np.count_nonzero(mask.reshape(heads, -1).any(axis=1)))
