"""Operators that act on positions, channel by channel."""

from __future__ import annotations

import numpy as np

from onnxprune.operators.edit import RewriteNode
from onnxprune.operators.registry import rewrites, rule
from onnxprune.operators.traced import TraceNode


@rule("AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool")
def pool(op: TraceNode) -> None:
    """Positions are mixed within a channel."""
    op.align("n c *s -> n c *t")


@rule("Crop", "ImageScaler")
def image(op: TraceNode) -> None:
    """Experimental operators of early exporters: positions are cut, or an input image is scaled."""
    if op.node.op_type == "ImageScaler":
        op.pin_axes(op.x(0), [1], "OP209", "it has a number for each channel of an image")
    op.align("n c *s -> n c *t")


@rule("MaxPool")
def max_pool(op: TraceNode) -> None:
    """As the other pools; a second output counts positions through all channels."""
    if len(op.node.output) > 1 and op.node.output[1]:
        reason = "its indices count through all channels"
        op.pin_axes(op.x(0), [1], "OP204", reason)
    op.align("n c *s -> n c *t, n c *t")


@rule("Resize", "Upsample")
def resize(op: TraceNode) -> None:
    """An axis whose size stays keeps its ids; on the others positions are mixed."""
    before, after = op.shape(0), op.out_shape()
    same = [m == n for m, n in zip(before, after, strict=True)]
    source = " ".join(f"a{chr(97 + i)}" for i in range(len(before)))
    target = " ".join(f"{'a' if s else 'z'}{chr(97 + i)}" for i, s in enumerate(same))
    op.align(f"{source} -> {target}", [op.x(0)])


@rewrites("Resize")
def resize_sizes(edit: RewriteNode) -> None:
    """The sizes that remain."""
    sizes = edit.param(3, "sizes")
    if sizes is not None and sizes.size:
        axes = edit.attr("axes") or range(len(edit.old_shape(0)))
        edit.set_param(3, "sizes", np.array([edit.new_out_shape(0)[a] for a in axes], dtype=sizes.dtype), is_shape=True)


@rule("DepthToSpace")
def depth_to_space(op: TraceNode) -> None:
    """The block's positions of a channel leave together."""
    block = op.attr("blocksize") ** 2
    channels = "c b" if op.attr("mode", "DCR") == "CRD" else "b c"
    op.align(f"n ({channels}) *s -> n c *t", b=block)


@rule("SpaceToDepth")
def space_to_depth(op: TraceNode) -> None:
    """A channel becomes a block of channels that leave together."""
    op.align("n c *s -> n (b c) *t", b=op.attr("blocksize") ** 2)
