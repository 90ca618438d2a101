"""Operators of detection and geometry: positions move, channels stay."""

from __future__ import annotations

from math import prod

from onnxprune.model.tape import Tensor
from onnxprune.operators.card import TWIN, describe, gradient, leave, traces, without
from onnxprune.operators.differentiated import GradientNode
from onnxprune.operators.traced import TraceNode

leave("what it keeps depends on values", "NonMaxSuppression NonZero")
leave("it needs the whole matrix", "Det")
leave("it transforms the axis as a whole", "DFT MelWeightMatrix STFT")
_SAMPLING = "com.microsoft:CropAndResize com.microsoft:GridSample GridSample MaxRoiPool RoiAlign"
without("gradient", "its sampling positions have no gradient rule", _SAMPLING)
without("gradient", "no gradient rule is written", "Col2Im MaxUnpool")
describe("NonMaxSuppression", sizing=(0, 1, 2, 3, 4))
describe("NonZero", sizing=(0,))
describe("CenterCropPad Col2Im Upsample", sizing=(1,))
describe("MaxUnpool", sizing=(2,))
describe("Resize", sizing=(2, 3))
describe("com.microsoft:CropAndResize", sizing=(3,))
without("gradient", TWIN, "com.microsoft:Trilu")


@traces(_SAMPLING)
def sample(op: TraceNode) -> None:
    """Positions are sampled at run time, the same in every channel."""
    for i in range(1, len(op.node.input)):
        op.const(i)  # reading it as a parameter pins it: it says where to sample
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


@traces("Trilu com.microsoft:Trilu")
def trilu(op: TraceNode) -> None:
    """Half of each matrix is cleared, by position."""
    rank = len(op.shape(0))
    op.give(op.pin_axes(op.x(0), [rank - 2, rank - 1], "OP204", "it clears entries by their position"))


@gradient("Trilu")
def trilu_gradient(op: GradientNode, dy: Tensor) -> Tensor:
    """Keep the same triangle."""
    k = [op.x(1)] if op.has(1) else []
    return dy.op("Trilu", *k, upper=op.attr("upper", 1))
