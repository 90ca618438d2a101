"""Attention as one operator: whole heads leave, or every head loses the same part of its width."""

from __future__ import annotations

from math import prod

import numpy as np

from onnxprune.channels.values import Mask, Shape, Value, take
from onnxprune.operators.card import FUSED, INTEGERS, describe, rewrites, traces
from onnxprune.operators.node import Node
from onnxprune.operators.rewritten import RewriteNode
from onnxprune.operators.traced import TraceNode


def _macs(node: Node, x: list[Shape], y: Shape) -> int:
    """Count the scores, then their product with the values; the outputs are as wide as the values of all heads."""
    queries, keys = prod(x[0]), x[1][-2]
    return queries * keys + prod(y) * keys


def _grouped_macs(node: Node, x: list[Shape], y: Shape) -> int:
    """As for an attention; queries, keys and values may come in one tensor."""
    keys = x[0][1] + (x[3][2] if len(x) > 3 and x[3] else 0)
    return 2 * prod(y) * keys


def _projected_macs(node: Node, x: list[Shape], y: Shape) -> int:
    """Count the projection, then the scores and their product with the values."""
    batch, steps, _ = x[0]
    return batch * steps * prod(x[1]) + 2 * prod(y) * steps


def structure_of(op: TraceNode) -> set[str]:
    """Return the names that stay: groups of queries, and the width of a head or the heads themselves."""
    return {"r", "h"} if op.attention == "width" else {"r", "d", "e"}


def score_bias(op: TraceNode, i: int, heads: str) -> str:
    """Return the spec of what is added to the scores, [batch, heads, queries, keys]: one for each head, or for all.

    Args:
        op: the node.
        i: the input, which may have fewer axes, counted from the right.
        heads: the spec of the axis of heads.
    """
    rank = len(op.shape(i)) if op.has(i) else 0
    apart = rank > 2 and op.shape(i)[-3] > 1
    return " ".join(["b", heads if apart else "u", "x", "y"][4 - rank :]) if rank else ""


_BIASED = "it multiplies activations, and adds a bias"
describe("Attention", attends=True, macs=_macs, states=((4, 1), (5, 2)), reasons={"linear": _BIASED})


@traces("Attention")
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
    """Set the number of heads that remain; scores are still scaled by the original width of a head."""
    four = len(edit.shape(0)) == 4
    old_width = edit.shape(0)[3] if four else edit.shape(0)[2] // edit.attr("q_num_heads")
    if not four:
        for i, name in ((0, "q_num_heads"), (1, "kv_num_heads")):
            edit.set_attr(name, heads_left(edit.mask(i, 2), edit.attr(name)))
    if edit.attr("scale") is None:
        edit.set_attr("scale", float(old_width**-0.5))


describe("com.microsoft:RotaryEmbedding", reasons={"gradient": FUSED})


@traces("RotaryEmbedding com.microsoft:RotaryEmbedding")
def rotary_embedding(op: TraceNode) -> None:
    """Pairs of a head's width are rotated into each other: the width stays, heads may leave."""
    heads, rank = op.attr("num_heads", 0), len(op.shape(0))
    if rank == 3 and heads:
        op.align("b s (h d) -> b s (h d)", [op.x(0)], structure={"d"}, h=heads)
    else:
        axis = 3 if rank == 4 else 2
        op.give(op.pin_axes(op.x(0), [axis], "OP204", "positions of a head's width are rotated into each other"))


@rewrites("RotaryEmbedding com.microsoft:RotaryEmbedding")
def rotary_heads(edit: RewriteNode) -> None:
    """Set the number of heads that remain."""
    if len(edit.shape(0)) == 3 and edit.attr("num_heads", 0):
        edit.set_attr("num_heads", heads_left(edit.mask(0, 2), edit.attr("num_heads")))


def heads_left(mask: Mask | None, heads: int) -> int:
    """Return the number of heads that a mask over all heads' widths keeps."""
    return heads if mask is None else int(np.count_nonzero(mask.reshape(heads, -1).any(axis=1)))


describe("com.microsoft:MultiHeadAttention", states=((6, 1), (7, 2)))
describe("com.microsoft:MultiHeadAttention", attends=True, macs=_macs, reasons={"linear": _BIASED, "gradient": FUSED})


@traces("com.microsoft:MultiHeadAttention")
def multi_head_attention(op: TraceNode) -> None:
    """As Attention, with the heads in one axis and a bias for queries, keys and values in a row."""
    heads = op.attr("num_heads")
    if not op.has(1) or not op.has(2) or len(op.shape(1)) == 5 or op.has(8):
        op.give_up("OP211", "packed keys and values, and caches that are written in place, are left alone")
        return
    k, v = (f"b h t {w}" if len(op.shape(i)) == 4 else f"b t (h {w})" for i, w in ((1, "d"), (2, "e")))
    d = op.shape(0)[2] // heads
    e = op.shape(2)[3] if len(op.shape(2)) == 4 else op.shape(2)[2] // heads
    bias = _pieces(op, 3, 0, [heads * d, heads * d, heads * e])
    op.const(4)  # reading it as a parameter pins it: it says which keys count
    if op.attention == "width":
        for i in (0, 1):
            op.approximate(op.x(i), [len(op.shape(i)) - 1], "it sums products of two activations over these channels")
    op.align(
        f"b s (h d), {k}, {v}, (h d), (h d), (h e), {score_bias(op, 5, 'h')}, b h p d, b h p e"
        " -> b s (h e), b h z d, b h z e",
        [*(op.x(i) for i in range(3)), *bias, *_optional(op, 5, 6, 7)],
        structure=structure_of(op),
        h=heads,
        d=d,
        e=e,
    )


@rewrites("com.microsoft:MultiHeadAttention")
def multi_head_attention_heads(edit: RewriteNode) -> None:
    """Set the number of heads that remain; scores are still scaled by the original width of a head."""
    heads = edit.attr("num_heads")
    edit.set_attr("num_heads", heads_left(edit.mask(0, 2), heads))
    _keep_scale(edit, edit.shape(0)[2] // heads)


describe("com.microsoft:GroupQueryAttention", states=((3, 1), (4, 2)))
describe("com.microsoft:GroupQueryAttention", attends=True, macs=_grouped_macs, reasons={"gradient": FUSED})


@traces("com.microsoft:GroupQueryAttention")
def group_query_attention(op: TraceNode) -> None:
    """Several heads of queries share one of keys and values, which may all come in one tensor."""
    heads, queries = op.attr("kv_num_heads"), op.attr("num_heads")
    packed = not op.has(1)
    d = op.shape(0)[2] // (queries + 2 * heads if packed else queries)
    if op.attention == "width":
        for value in filter(None, _optional(op, 0, 1, 2)):
            op.pin_axes(value, [2], "OP211", "it takes heads of certain widths only", "set `attention` to heads")
        op.give(op.positions())
        return
    if any(op.has(i) for i in range(12, 16)):
        op.give_up("OP211", "quantized caches and norms of queries and keys are left alone")
        return
    for i in range(5, 10):  # reading lengths and rotations as parameters pins them
        op.const(i)
    op.align(
        f"b s (h r d), b t (h d), b t (h d), b h p d, b h p d, {score_bias(op, 10, '(h r)')}, (h r)"
        " -> b s (h r d), b h z d, b h z d",
        [
            *(_pieces(op, 0, 2, [queries * d, heads * d, heads * d]) if packed else [op.x(i) for i in range(3)]),
            *_optional(op, 3, 4, 10, 11),
        ],
        structure=structure_of(op),
        h=heads,
        r=queries // heads,
        d=d,
    )


@rewrites("com.microsoft:GroupQueryAttention")
def group_query_heads(edit: RewriteNode) -> None:
    """Set the number of heads that remain; scores are still scaled by the original width of a head."""
    heads, queries, mask = edit.attr("kv_num_heads"), edit.attr("num_heads"), edit.out_mask(0, 2)
    left = heads_left(mask, queries)
    edit.set_attr("num_heads", left)
    edit.set_attr("kv_num_heads", left * heads // queries)
    _keep_scale(edit, edit.shape(0)[2] // (queries if edit.has(1) else queries + 2 * heads))


describe("com.microsoft:Attention", weights=(1, 2), states=((4, 1),))
describe(
    "com.microsoft:Attention",
    reasons={"linear": "its weight projects queries, keys and values in one", "gradient": FUSED},
)
describe("com.microsoft:QAttention", zero_points=((1, 7, -1),), reasons=INTEGERS)
describe("com.microsoft:Attention com.microsoft:QAttention", factors=(0, 1), attends=True, macs=_projected_macs)


@traces("com.microsoft:Attention")
def packed_attention(op: TraceNode) -> None:
    """Projection and attention in one: the weight's columns are queries, keys and values, head by head."""
    _project_and_attend(op, vectors=(2,), mask=3, past=4, bias=5)


@traces("com.microsoft:QAttention")
def quantized_attention(op: TraceNode) -> None:
    """As Attention of this domain, the scale and zero point of the weight one for all or one for each column.

    Queries, keys and values have the same width.
    """
    _project_and_attend(op, vectors=(2, 4, 7), mask=5, past=8, bias=9, width="d")


def _project_and_attend(
    op: TraceNode, *, vectors: tuple[int, ...], mask: int, past: int, bias: int, width: str = "e"
) -> None:
    """Apply the spec of a projection and an attention.

    Args:
        op: the node.
        vectors: the inputs that have a number for each of the weight's columns, or one for all.
        mask: the input that says which keys count.
        past: the cached keys and values.
        bias: the input that is added to the scores.
        width: the name of the width of a head's values: d if it is that of queries and keys.
    """
    if op.attr("do_rotary", 0) or op.has(bias + 1):
        op.give_up("OP211", "rotated positions, and caches that are written in place, are left alone")
        return
    heads, widths = op.attr("num_heads"), _widths(op.attr("qkv_hidden_sizes"), op.shape(1)[1])
    given = [i for i in vectors if op.has(i) and op.shape(i) == (sum(widths),)]
    op.const(mask)
    op.align(
        f"b s c, c (h d), c (h d), c (h {width}),{f' (h d), (h d), (h {width}),' * len(given)}"
        f" {score_bias(op, bias, 'h')}, t b h p d -> b s (h {width}), t b h z d",
        [
            op.x(0),
            *_pieces(op, 1, 1, widths),
            *(piece for i in given for piece in _pieces(op, i, 0, widths)),
            *_optional(op, bias, past),
        ],
        structure={"t", *structure_of(op)},
        t=2,
        h=heads,
        d=widths[0] // heads,
        e=widths[2] // heads,
    )


@rewrites("com.microsoft:Attention com.microsoft:QAttention")
def packed_attention_heads(edit: RewriteNode) -> None:
    """Set the number of heads that remain, and the widths of queries, keys and values if they differ."""
    heads, columns, mask = edit.attr("num_heads"), edit.shape(1)[1], edit.mask(1, 1)
    before = _widths(edit.attr("qkv_hidden_sizes"), columns)
    parts = np.split(np.ones(columns, bool) if mask is None else mask, np.cumsum(before)[:-1])
    widths = [int(np.count_nonzero(part)) for part in parts]
    if edit.attr("qkv_hidden_sizes") or len(set(widths)) > 1:
        edit.set_attr("qkv_hidden_sizes", widths)
    edit.set_attr("num_heads", heads_left(parts[0], heads))
    _keep_scale(edit, before[0] // heads)


def _widths(given: list[int] | None, columns: int) -> list[int]:
    """Return the widths of queries, keys and values."""
    return list(given) if given else [columns // 3] * 3


def _keep_scale(edit: RewriteNode, width: int) -> None:
    """Scale scores by the original width of a head, as before."""
    if not edit.attr("scale"):
        edit.set_attr("scale", float(width**-0.5))


def _pieces(op: TraceNode, i: int, axis: int, sizes: list[int]) -> list[Value | None]:
    """Split an optional input along an axis into pieces of given sizes."""
    if not op.has(i):
        return [None] * len(sizes)
    places = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    return [op.piece(take(op.x(i), axis, part), axis) for part in places]


def _optional(op: TraceNode, *places: int) -> list[Value | None]:
    return [op.x(i) if op.has(i) else None for i in places]
