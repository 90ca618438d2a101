"""Attention as one operator: heads leave whole, or every head loses the same part of its width."""

from __future__ import annotations

import numpy as np

from onnxprune.edit import Edit
from onnxprune.trace.op import Op
from onnxprune.trace.registry import rewrites, rule
from onnxprune.trace.values import Mask


def _structure(op: Op) -> set[str]:
    """Return the names that stay: groups of queries, and the width of a head or the heads themselves."""
    return {"r", "h"} if op.attention == "width" else {"r", "d", "e"}


@rule("Attention")
def attention(op: Op) -> None:
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
        f"{q}, {k}, {v}, *m, b h p d, b h p e -> {y}, b h z d, b h z e, b (h r) s z",
        structure=_structure(op),
        h=heads,
        r=shared,
        d=width,
        e=v_width,
    )


@rewrites("Attention")
def attention_heads(edit: Edit) -> None:
    """Count the heads that remain; scores go on being scaled by the width a head had."""
    four = len(edit.old_shape(0)) == 4
    old_width = edit.old_shape(0)[3] if four else edit.old_shape(0)[2] // edit.attr("q_num_heads")
    if not four:
        for i, name in ((0, "q_num_heads"), (1, "kv_num_heads")):
            edit.set_attr(name, _heads(edit.mask(i, 2), edit.attr(name)))
    if edit.attr("scale") is None:
        edit.set_attr("scale", float(old_width**-0.5))


@rule("com.microsoft:MultiHeadAttention")
def multi_head_attention(op: Op) -> None:
    """As Attention, with the heads in one axis and a bias for queries, keys and values."""
    heads = op.attr("num_heads")
    if not op.has(1) or not op.has(2) or len(op.shape(1)) != 3 or len(op.node.input) > 4:
        op.give_up("OP211", "packed or cached keys and values are left alone")
        return
    d, e = op.shape(1)[2] // heads, op.shape(2)[2] // heads
    operands = [op.x(i) for i in range(3)]
    op.align("b s (h d), b t (h d), b t (h e) -> b s (h e)", operands, structure=_structure(op), h=heads, d=d, e=e)
    if op.has(3):
        op.give_up("OP211", "its bias joins queries, keys and values")


@rewrites("com.microsoft:MultiHeadAttention")
def multi_head_attention_heads(edit: Edit) -> None:
    """Count the heads that remain; scores go on being scaled by the width a head had."""
    heads = edit.attr("num_heads")
    edit.set_attr("num_heads", _heads(edit.mask(0, 2), heads))
    if not edit.attr("scale"):
        edit.set_attr("scale", float((edit.old_shape(0)[2] // heads) ** -0.5))


@rule("com.microsoft:Attention")
def packed_attention(op: Op) -> None:
    """Projection and attention in one: the weight's columns are queries, keys and values, head by head."""
    heads = op.attr("num_heads")
    if op.attr("qkv_hidden_sizes") or op.has(4) or len(op.node.output) > 1:
        op.give_up("OP211", "unequal widths and cached keys and values are left alone")
        return
    operands = [op.x(i) if op.has(i) else None for i in range(3)]
    op.align(
        "b s c, c (t h d), (t h d) -> b s (h d)",
        operands,
        structure={"t", *_structure(op)},
        t=3,
        h=heads,
        d=op.shape(1)[1] // (3 * heads),
    )


@rewrites("com.microsoft:Attention")
def packed_attention_heads(edit: Edit) -> None:
    """Count the heads that remain; scores go on being scaled by the width a head had."""
    heads = edit.attr("num_heads")
    mask = edit.out_mask(0, 2)
    edit.set_attr("num_heads", _heads(mask, heads))
    if not edit.attr("scale"):
        edit.set_attr("scale", float((edit.old_shape(1)[1] // (3 * heads)) ** -0.5))


@rule("RotaryEmbedding", "com.microsoft:RotaryEmbedding")
def rotary_embedding(op: Op) -> None:
    """Pairs of a head's width are rotated into each other: the width stays, heads may leave."""
    if len(op.shape(0)) == 4:
        op.give(op.pin_axes(op.x(0), [3], "OP204", "positions of a head's width are rotated into each other"))
    elif op.attr("num_heads", 0):
        op.align("b s (h d) -> b s (h d)", [op.x(0)], structure={"d"}, h=op.attr("num_heads"))
    else:
        op.give(op.pin_axes(op.x(0), [2], "OP204", "positions of a head's width are rotated into each other"))


@rewrites("RotaryEmbedding", "com.microsoft:RotaryEmbedding")
def rotary_heads(edit: Edit) -> None:
    """Count the heads that remain."""
    if len(edit.old_shape(0)) == 3 and edit.attr("num_heads", 0):
        edit.set_attr("num_heads", _heads(edit.mask(0, 2), edit.attr("num_heads")))


def _heads(mask: Mask | None, heads: int) -> int:
    """Return how many heads remain of a mask over all heads' widths."""
    return heads if mask is None else int(np.count_nonzero(mask.reshape(heads, -1).any(axis=1)))
