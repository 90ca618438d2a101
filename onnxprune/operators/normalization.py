"""Normalizations: per channel they are exact; where they take statistics over channels, removal is an approximation."""

from __future__ import annotations

from onnxprune.operators.edit import RewriteNode
from onnxprune.operators.registry import rewrites, rule
from onnxprune.operators.traced import TraceNode

_MOMENTS = "its mean and variance are taken over these channels"


@rule("BatchNormalization")
def batch_normalization(op: TraceNode) -> None:
    """Every channel by itself."""
    op.align("n c *s, c, c, c, c -> n c *s, c, c, c, c")


@rule("InstanceNormalization")
def instance_normalization(op: TraceNode) -> None:
    """Every channel by itself; statistics over positions."""
    op.align("n c *s, c, c -> n c *s", approximate={"*s": _MOMENTS})


@rule("LRN")
def lrn(op: TraceNode) -> None:
    """A sum over neighboring channels."""
    op.align("n c *s -> n c *s", approximate={"c": "it sums over neighboring channels"})


@rule("LpNormalization")
def lp_normalization(op: TraceNode) -> None:
    """A norm over the axis."""
    op.approximate(op.x(0), [op.axis(-1)], "its norm is taken over these channels")
    op.give(op.x(0))


@rule("MeanVarianceNormalization")
def mean_variance_normalization(op: TraceNode) -> None:
    """Mean and variance over the axes."""
    op.approximate(op.x(0), op.attr("axes", [0, 2, 3]), _MOMENTS)
    op.give(op.x(0))


@rule("GroupNormalization")
def group_normalization(op: TraceNode) -> None:
    """Groups stay; all drop as many of their channels. The scale is per group before opset 21."""
    per_channel = op.shape(1) != (op.attr("num_groups"),) or op.version >= 21
    scale = "(g c)" if per_channel else "g"
    op.align(
        f"n (g c) *s, {scale}, {scale} -> n (g c) *s",
        approximate={"c": _MOMENTS},
        balanced={"g"},
        g=op.attr("num_groups"),
    )


@rewrites("GroupNormalization")
def norm_groups(edit: RewriteNode) -> None:
    """Groups stay, unless they are channels or have a scale of their own: then they leave as a whole."""
    groups, channels = edit.attr("num_groups"), edit.old_shape(0)[1]
    if channels == groups:
        edit.set_attr("num_groups", edit.new_shape(0)[1])
    elif edit.old_shape(1) == (groups,):
        edit.set_attr("num_groups", edit.new_shape(1)[0])


@rule("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
def layer_normalization(op: TraceNode) -> None:
    """Mean and variance over the last axes."""
    axis = op.axis(-1)
    before = " ".join(f"b{chr(97 + i)}" for i in range(axis))
    op.align(f"{before} *c, *c, *c -> {before} *c, {before} *m, {before} *v", approximate={"*c": _MOMENTS})
