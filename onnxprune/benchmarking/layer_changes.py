"""Compare the layers of two models: where pruning saved time, and why it didn't elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from onnx import ModelProto

from onnxprune.benchmarking.isolated import has_layer_times, isolated
from onnxprune.benchmarking.layers import TimedLayer, layers
from onnxprune.benchmarking.profile import Kernel, Profile, profile
from onnxprune.benchmarking.session import Feeds
from onnxprune.benchmarking.settings import SessionSettings
from onnxprune.channels.values import Shape
from onnxprune.normalize import normalize
from onnxprune.shapes import concretize

_WORTH = 0.5  # pruning a layer paid off if its time fell by at least this part of the share that its MACs fell by
_LANES = 8  # channels that a vector unit computes at once, at least
_MOVES = ("MemcpyFromHost", "MemcpyToHost", "ReorderInput", "ReorderOutput", "Transpose")
_BLOCKED = "com.microsoft.nchwc"  # domain of operators on ONNX Runtime's blocked layout
_TINY = 10e-6  # seconds; below, launching a kernel takes most of its time


@dataclass(frozen=True, slots=True)
class LayerChange:
    """A layer before and after; times in seconds.

    Attributes:
        name: the contraction's node.
        op: its operator.
        shapes: sizes of its weight before and after.
        macs: its multiply-accumulates before and after.
        seconds: its time before and after, including the operators up to the next layer.
        paid: whether pruning paid off: its time fell by at least half the share that its MACs fell by. None where MACs
            didn't fall.
        reason: the likely reason why pruning didn't pay off; empty where it did.
        number: the layer's number in the original, from 1 in graph order.
    """

    name: str
    op: str
    shapes: tuple[Shape, Shape]
    macs: tuple[int, int]
    seconds: tuple[float, float]
    paid: bool | None
    reason: str = ""
    number: int = 0


@dataclass(frozen=True, slots=True)
class _Side:
    """A layer in one of the two models, and the kernels that run it."""

    number: int
    layer: TimedLayer
    kernels: Sequence[Kernel]

    @property
    def seconds(self) -> float:
        return sum(k.seconds for k in self.kernels)

    @property
    def moves(self) -> float:
        """Seconds spent on moving data to another layout or device."""
        return sum(k.seconds for k in self.kernels if k.op in _MOVES)

    @property
    def blocked(self) -> bool:
        return any(k.domain == _BLOCKED and k.op == "Conv" for k in self.kernels)


@dataclass(frozen=True, slots=True)
class _Roof:
    """Roofline estimate: the highest rates, per second, that any layer of the two models reaches.

    S. Williams, A. Waterman and D. Patterson, Roofline: an insightful visual performance model, CACM 52 (2009).
    """

    macs: float
    traffic: float

    @classmethod
    def of(cls, sides: Iterable[_Side]) -> _Roof:
        timed = [s for s in sides if s.seconds > _TINY] or [s for s in sides if s.seconds > 0]
        return cls(
            max((s.layer.macs / s.seconds for s in timed), default=1.0) or 1.0,
            max((s.layer.traffic / s.seconds for s in timed), default=1.0) or 1.0,
        )

    def memory_bound(self, layer: TimedLayer) -> bool:
        return layer.traffic / self.traffic > layer.macs / self.macs


Side = tuple[ModelProto, Feeds, Profile | None]
"""A model, an array for each of its inputs, and its profile, if it is known."""


def layer_changes(
    before: Side, after: Side, opening: SessionSettings, *, seconds: float = 0.25
) -> tuple[tuple[LayerChange, ...], bool]:
    """Profile two models, and compare their layers.

    Args:
        before: the original.
        after: the model to compare with it.
        opening: the session's settings.
        seconds: approximate time of a profile.

    Returns:
        The layers, and whether each was run by itself, because the provider's profiles have no times of layers.

    Raises:
        ModelError: ONNX Runtime can't run a model or a layer (OP122).
    """
    models = [(normalize(proto), feeds) for proto, feeds, _ in (before, after)]
    known = [
        found or profile(proto, feeds, opening, seconds=seconds)
        for (proto, feeds), (*_, found) in zip(models, (before, after), strict=True)
    ]
    if alone := not all(has_layer_times(found, opening) for found in known):
        known = [isolated(proto, feeds, opening) for proto, feeds in models]
    shaped = [
        layers(proto, concretize(proto, {name: array.shape for name, array in feeds.items()}, feeds))
        for proto, feeds in models
    ]
    return compare_layers(*zip(shaped, known, strict=True)), alone


def compare_layers(
    before: tuple[Sequence[TimedLayer], Profile], after: tuple[Sequence[TimedLayer], Profile]
) -> tuple[LayerChange, ...]:
    """Compare the layers of two models, matched by the names of their nodes.

    Args:
        before: layers and profile of the original.
        after: layers and profile of the pruned model.

    Returns:
        The layers that both models have, in the original's order.
    """
    old, new = _sides(*before), _sides(*after)
    roof = _Roof.of([*old.values(), *new.values()])
    return tuple(_change(old[name], new[name], roof) for name in old if name in new)


def _sides(layers: Sequence[TimedLayer], profile: Profile) -> dict[str, _Side]:
    kernels = profile.by_layer()
    return {layer.name: _Side(number, layer, kernels.get(number, [])) for number, layer in enumerate(layers)}


def _change(old: _Side, new: _Side, roof: _Roof) -> LayerChange:
    paid = None
    if new.layer.macs < old.layer.macs and old.seconds > 0:
        saved, hoped = (1 - a / b for a, b in ((new.seconds, old.seconds), (new.layer.macs, old.layer.macs)))
        paid = saved >= _WORTH * hoped
    reason = "" if paid is not False else next(text for holds, text in _REASONS if holds(old, new, roof))
    return LayerChange(
        name=old.layer.name,
        op=old.layer.op,
        shapes=(old.layer.channels, new.layer.channels),
        macs=(old.layer.macs, new.layer.macs),
        seconds=(old.seconds, new.seconds),
        paid=paid,
        reason=reason,
        number=old.number,
    )


def _channels(side: _Side) -> list[int]:
    """Return the numbers of output and input channels; only the former for a depthwise convolution."""
    return [n for n in side.layer.channels[:2] if n > 1]


def _odd(side: _Side) -> bool:
    return any(n % _LANES for n in _channels(side))


_REASONS: Sequence[tuple[Callable[[_Side, _Side, _Roof], bool], str]] = (
    (lambda old, new, roof: new.moves > old.moves + 0.05 * old.seconds, "a layout conversion was inserted"),
    (lambda old, new, roof: old.blocked and not new.blocked, "its channels no longer fit the blocked layout"),
    (lambda old, new, roof: min(_channels(new), default=_LANES) < _LANES, "too few channels are left"),
    (lambda old, new, roof: _odd(new) and not _odd(old), "its channels don't fill whole vectors"),
    (lambda old, new, roof: new.seconds < _TINY, "too short: launch overhead dominates"),
    (lambda old, new, roof: roof.memory_bound(new.layer), "memory-bound"),
    (lambda old, new, roof: True, "smaller layers use the hardware less efficiently"),
)
