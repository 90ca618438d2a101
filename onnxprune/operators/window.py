"""Sliding windows of convolutions and pooling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxprune.model.tape import Shape, Tensor
from onnxprune.operators.node import Node


@dataclass(frozen=True, slots=True)
class Window:
    """The input positions of each output position, axis by axis.

    Attributes:
        kernel: the window's size.
        strides: the distance between windows.
        dilations: the distance between a window's positions.
        before: the padding at the start of each axis.
        size: the input's size.
        out: the output's size.
    """

    kernel: Shape
    strides: Shape
    dilations: Shape
    before: Shape
    size: Shape
    out: Shape

    @classmethod
    def of(cls, node: Node, size: Sequence[int], kernel: Sequence[int], out: Sequence[int]) -> Window:
        """Read a convolution's or a pool's attributes, automatic padding included."""
        strides, dilations = _steps(node, len(size))
        reach = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
        auto = node.attr("auto_pad", "NOTSET")
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            total = [max(s * (o - 1) + r - n, 0) for s, o, r, n in zip(strides, out, reach, size, strict=True)]
            before = [(t + (auto == "SAME_LOWER")) // 2 for t in total]
        else:
            before = [0] * len(size) if auto == "VALID" else list(node.attr("pads") or [0] * len(size))[: len(size)]
        return cls(tuple(kernel), strides, dilations, tuple(before), tuple(size), tuple(out))

    @classmethod
    def of_transposed(cls, node: Node, size: Sequence[int], kernel: Sequence[int], out: Sequence[int]) -> Window:
        """Read a transposed convolution's attributes, as the window of the convolution from its output to its input.

        Args:
            node: the transposed convolution.
            size: the size of its input.
            kernel: the window's size.
            out: the size of its output.
        """
        strides, dilations = _steps(node, len(size))
        extra = node.attr("output_padding") or [0] * len(size)
        auto = node.attr("auto_pad", "NOTSET")
        if auto == "NOTSET" and node.attr("output_shape") is None:
            before = tuple(node.attr("pads") or [0] * len(size))[: len(size)]
        else:
            spans = zip(strides, size, dilations, kernel, extra, out, strict=True)
            total = [max(s * (n - 1) + d * (k - 1) + 1 + e - o, 0) for s, n, d, k, e, o in spans]
            before = tuple(t // 2 if auto == "SAME_UPPER" else t - t // 2 for t in total)
        return cls(tuple(kernel), strides, dilations, before, tuple(out), tuple(size))

    @property
    def reach(self) -> Shape:
        """The number of positions that a window spans."""
        return tuple(d * (k - 1) + 1 for d, k in zip(self.dilations, self.kernel, strict=True))

    @property
    def after(self) -> Shape:
        """The padding at the end that windows reach into; negative for positions that they leave out."""
        spans = zip(self.strides, self.out, self.reach, self.size, self.before, strict=True)
        return tuple(s * (o - 1) + r - n - b for s, o, r, n, b in spans)

    @property
    def plain(self) -> bool:
        """Whether every output position depends on the same input position only."""
        ones = set(self.kernel) | set(self.strides)
        return ones == {1} and not any(self.before) and self.size == self.out

    def pad(self, x: Tensor, first: int = 2) -> Tensor:
        """Pad or cut a tensor to the span of the windows; its positions are on the axes from ``first`` on."""
        rest = [0] * (x.rank - first - len(self.size))
        lead = [0] * first
        padded = x.pad([*lead, *self.before, *rest], [*lead, *(max(a, 0) for a in self.after), *rest])
        axes = [first + i for i, a in enumerate(self.after) if a < 0]
        if not axes:
            return padded
        return padded.slice(axes, [0] * len(axes), [padded.shape[a] + self.after[a - first] for a in axes])

    def tap(self, padded: Tensor, position: Sequence[int], first: int = 2) -> Tensor:
        """Slice a padded tensor to what each window has at one of its positions."""
        starts = [d * p for d, p in zip(self.dilations, position, strict=True)]
        ends = [b + s * (o - 1) + 1 for b, s, o in zip(starts, self.strides, self.out, strict=True)]
        return padded.slice(list(range(first, first + len(starts))), starts, ends, list(self.strides))

    def spread(self, dy: Tensor, weight: Tensor, group: int) -> Tensor:
        """Distribute each output position over its window and sum: a transposed convolution."""
        return dy.op(
            "ConvTranspose",
            weight,
            group=group,
            strides=list(self.strides),
            dilations=list(self.dilations),
            pads=[*self.before, *(max(a, 0) for a in self.after)],
            output_padding=[max(-a, 0) for a in self.after],
        )


def _steps(node: Node, rank: int) -> tuple[Shape, Shape]:
    """Return the strides and dilations of a node, one for each axis of positions."""
    return tuple(node.attr("strides") or [1] * rank), tuple(node.attr("dilations") or [1] * rank)
