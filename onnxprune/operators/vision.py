"""Operators of detection and geometry: positions move, channels stay."""

from __future__ import annotations

from math import prod

import numpy as np

from onnxprune.model.tape import Tensor
from onnxprune.operators.card import gradient, leave, rewrites, traces, without
from onnxprune.operators.differentiated import GradientNode
from onnxprune.operators.rewritten import RewriteNode
from onnxprune.operators.traced import TraceNode


@traces("GridSample", "MaxRoiPool", "RoiAlign", "com.microsoft:CropAndResize", "com.microsoft:GridSample")
def sample(op: TraceNode) -> None:
    """Positions are sampled at run time, in every channel the same."""
    for i in range(1, len(op.node.input)):
        op.const(i)  # says where to sample, so nothing of it can leave
    op.align("n c *s -> m c *t", [op.x(0)])


@traces("MaxUnpool")
def max_unpool(op: TraceNode) -> None:
    """Indices count through all channels."""
    op.give_up("OP204", "its indices count through all channels")


@traces("Col2Im")
def col2im(op: TraceNode) -> None:
    """The positions of a block lie in the channel axis and leave with their channel."""
    block = op.const(2)
    if block is None:
        op.give_up("OP205", "its block is only known at run time")
        return
    op.align("n (c k) l -> n c *t", [op.x(0)], k=prod(int(b) for b in block))


@traces("CenterCropPad")
def center_crop_pad(op: TraceNode) -> None:
    """An axis whose size stays keeps its ids; the others are cut or padded."""
    names = [f"a{chr(97 + i)}" for i in range(len(op.shape(0)))]
    same = [m == n for m, n in zip(op.shape(0), op.out_shape(), strict=True)]
    target = [n if s else "z" + n for n, s in zip(names, same, strict=True)]
    op.align(f"{' '.join(names)} -> {' '.join(target)}", [op.x(0)])


@rewrites("CenterCropPad")
def center_crop_pad_target(edit: RewriteNode) -> None:
    """The sizes that remain."""
    target = edit.param(1, "")
    if target is not None:
        axes = edit.attr("axes") or range(len(edit.shape(0)))
        edit.set_param(1, "", np.array([edit.new_out_shape(0)[a] for a in axes], dtype=target.dtype), is_shape=True)


@traces("Trilu", "com.microsoft:Trilu")
def trilu(op: TraceNode) -> None:
    """Half of each matrix is cleared, by position."""
    rank = len(op.shape(0))
    op.give(op.pin_axes(op.x(0), [rank - 2, rank - 1], "OP204", "it clears entries by their position"))


@gradient("Trilu")
def trilu_gradient(op: GradientNode, dy: Tensor) -> Tensor:
    """Keep the same triangle."""
    k = [op.x(1)] if op.has(1) else []
    return dy.op("Trilu", *k, upper=op.attr("upper", 1))


leave("what it keeps depends on values", "NonMaxSuppression", "NonZero")


leave("it needs the whole matrix", "Det")


leave("it transforms the axis as a whole", "DFT", "MelWeightMatrix", "STFT")


_CONTRIB = ("com.microsoft:CropAndResize", "com.microsoft:GridSample")
without("gradient", "its sampling positions have no gradient rule", "GridSample", "MaxRoiPool", "RoiAlign", *_CONTRIB)
without("gradient", "no gradient rule is written", "Col2Im", "MaxUnpool")
without("gradient", "no gradient rule is written: its twin of the standard can be trained", "com.microsoft:Trilu")
