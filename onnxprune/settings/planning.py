"""How to plan: how much to remove, from where, and what is removed together."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, cast, get_args

from onnxprune.errors import PlanError
from onnxprune.errors.words import did_you_mean
from onnxprune.settings.declare import Rule, Settings, setting
from onnxprune.settings.types import Share, meant_percent

Allocation = Literal["uniform", "global", "reconstruction"]
Attention = Literal["heads", "width"]
Grouped = Literal["channels", "groups"]
Axis = Literal["channels", "resolution", "tokens", "rank", "basis"]
Quantity = Literal["macs", "params", "size", "memory"]
Limited = Literal["macs", "params", "size", "memory", "latency"]

QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)
BY_DEFAULT: tuple[Axis, ...] = ("channels", "resolution")
"""The axes that are allowed unless others are named."""

_SAVES: dict[Axis, tuple[Quantity, ...]] = {
    "channels": QUANTITIES,
    "resolution": ("macs", "memory"),
    "tokens": ("macs",),
    "rank": ("macs", "params", "size"),
}

_COUNTS = {"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_BYTES = {"B": 1.0, **{f"{p}B": f for p, f in _COUNTS.items()}, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}
_UNITS = {"macs": _COUNTS, "params": _COUNTS, "size": _BYTES, "memory": _BYTES, "latency": _SECONDS}
_EXAMPLES = {"macs": "100M", "params": "1.5M", "size": "2MB", "memory": "512KiB", "latency": "8ms"}
_TARGETS = (*_UNITS, "speedup")


@dataclass(frozen=True, slots=True)
class Target(Settings):
    """An upper limit on a cost.

    Examples:
        >>> Target("macs", 0.5) == Target.parse("macs=50%")
        True
        >>> Target.parse("latency=8ms")
        Target(quantity='latency', value=0.008, absolute=True)
        >>> str(Target.parse("speedup=2x"))
        'latency=0.5'
    """

    _place: ClassVar[str] = "target"

    quantity: Limited = setting(
        help="The cost: macs, params, size (bytes of weights), memory (peak of activations), or latency, which is "
        "measured (see `onnxprune.latency`)."
    )
    value: float = setting(
        help="The limit, as a share of the original model's cost; or an absolute one: a count, bytes, or seconds.",
        above=0,
    )
    absolute: bool = setting(False, "Whether the limit is absolute.")

    def __post_init__(self) -> None:
        """Check the fields, and that a share is at most 1.

        Raises:
            PlanError: a field isn't allowed (OP303).
        """
        Settings.__post_init__(self)
        if not self.absolute and self.value > 1:
            absolute = f"An absolute limit has a unit, such as {self.quantity}={_EXAMPLES[self.quantity]}"
            hint = " ".join([*meant_percent(self.value), absolute])
            raise PlanError("OP303", f"{self.value:g} is out of range: must be at most 1", where="target", hint=hint)

    def __str__(self) -> str:
        """Return the target as the command line takes it: macs=0.5, size=2MB."""
        return f"{self.quantity}={self.shown}"

    @property
    def text(self) -> str:
        """The limit for people: 50%, 2MB, 8ms."""
        return self.shown if self.absolute else f"{100 * self.value:.4g}%"

    @property
    def shown(self) -> str:
        """The limit: 0.5, 2MB, 8ms."""
        if not self.absolute:
            return f"{self.value:g}"
        if self.quantity == "latency":
            return f"{1e3 * self.value:.4g}ms"
        unit = "B" if _UNITS[self.quantity] is _BYTES else ""
        least = (1.0, "") if unit else (1e3, "k")  # a count without a unit would be a share
        scale, prefix = next(((10**n, p) for n, p in ((9, "G"), (6, "M"), (3, "k")) if self.value >= 10**n), least)
        return f"{self.value / scale:.6g}{prefix}{unit}"

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read a target: macs=50%, params=0.5, macs=100M, size=2MB, memory=512KiB, latency=8ms, speedup=1.5x.

        A speed-up is a limit on the latency: 1.5x is 1/1.5 of the original's.

        Raises:
            PlanError: the text isn't a target (OP303).
        """
        word, _, limit = (part.strip() for part in text.partition("="))
        if word not in _TARGETS:
            cause = f"{word!r} is not one of {', '.join(_TARGETS)}"
            raise PlanError("OP303", cause, where="target", hint=did_you_mean(word, _TARGETS))
        found = re.fullmatch(r"((?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*([^\s\d.]*)", limit)
        number, unit = (float(found[1]), found[2]) if found else (0.0, "?")
        if word == "speedup":
            if number < 1 or unit not in ("", "x"):
                cause = f"{limit!r} is not a speed-up"
                raise PlanError("OP303", cause, where="target", hint="write speedup=1.5x, for example")
            return cls("latency", 1 / number)
        quantity, units = cast(Limited, word), _UNITS[word]
        if unit not in ("", "%", *units):
            hint = f"write {word}=50%, or an absolute limit such as {word}={_EXAMPLES[word]}"
            raise PlanError("OP303", f"{limit!r} is not a limit of {word}", where="target", hint=hint)
        return cls(quantity, number * units[unit], True) if unit in units else cls(quantity, _share(number, unit))

    def limit(self, whole: float) -> float:
        """Return the limit in absolute terms.

        Args:
            whole: the original model's cost.
        """
        return self.value if self.absolute else self.value * whole

    def eased(self, whole: float, now: float | None = None) -> Target:
        """Return the limit half way to what a model costs now: absolute, in the digits that recipes hold.

        Args:
            whole: the original model's cost.
            now: the cost of the model; by default the original's.

        Examples:
            >>> Target.parse("macs=20%").eased(10e6).text
            '6M'
        """
        half = (self.limit(whole) + (whole if now is None else now)) / 2
        return Target.parse(str(replace(self, value=half, absolute=True)))

    @property
    def counted(self) -> Quantity:
        """The quantity, if it can be counted.

        Raises:
            PlanError: it is the latency, which `plan` measures (OP302).
        """
        if self.quantity == "latency":
            raise PlanError("OP302", "a latency is measured, not counted", where="target")
        return self.quantity


Targets = Target | tuple[Target, ...]
"""A target, or several that must all hold."""


def all_targets(given: Targets | None) -> tuple[Target, ...]:
    """Return the targets of a setting: none, one, or several."""
    return given if isinstance(given, tuple) else () if given is None else (given,)


def _share(number: float, unit: str) -> float:
    return number / 100 if unit == "%" else number


def parse_size(given: str | int) -> tuple[int, ...]:
    """Read a size: 160 for all axes, or a height and a width such as 160x128.

    Raises:
        PlanError: the text is no size (OP303).
    """
    found = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", str(given))
    if found is None or not all(int(n) for n in found.groups("1")):
        hint = "write auto, 160, or a height and a width such as 160x128"
        raise PlanError("OP303", f"{given!r} is no size of an image", where="resolution", hint=hint)
    return tuple(int(n) for n in found.groups() if n)


@dataclass(frozen=True, slots=True)
class Constraints(Settings):
    """Limits on what may be removed from a group."""

    min_channels: int = setting(
        1, "Smallest number of channels that each layer keeps; layers that have fewer keep all.", at_least=1
    )
    max_ratio: Share = setting(0.9, "Largest share of a group's units to remove.", at_least=0, below=1)
    round_to: int | None = setting(
        None, "Make channel counts multiples of this.", at_least=1, shown="16 or 8 where layers are wide enough"
    )
    include: tuple[str, ...] = setting(
        (),
        "Prune only channels that are produced by nodes whose names match this pattern, or by this layer (L17).",
        metavar="PATTERN",
    )
    exclude: tuple[str, ...] = setting(
        (),
        "Don't change the weights of nodes whose names match this pattern, or of this layer (L17).",
        metavar="PATTERN",
    )
    exact_only: bool = setting(
        False,
        "Skip groups whose removal is an approximation, because it changes statistics (LayerNormalization, means over "
        "channels).",
    )
    ratio_for: tuple[tuple[str, Share], ...] = setting(
        (),
        "Share to remove of the channels that nodes with matching names, or a layer (L17=R), produce.",
        at_least=0,
        below=1,
    )


@dataclass(frozen=True, slots=True)
class PlanSettings(Settings):
    """How to plan."""

    _rules: ClassVar = (
        Rule("ratio", ["target"], "both {first} and {other} say how much to remove", "give one of them"),
    )

    ratio: Share | None = setting(None, "Share of the channels to remove.", at_least=0, below=1)
    target: Targets | None = setting(
        None,
        "Upper limit on a cost: macs, params, size (bytes of weights), memory (peak of activations), or latency, which "
        "is measured. A limit is a share of the original's cost (50%) or absolute (macs=100M, size=2MB, latency=8ms); "
        "speedup=1.5x limits the latency. Of several, all hold.",
        metavar="COST=LIMIT",
        least=1,
        read=Target.parse,
    )
    criterion: str | None = setting(
        None,
        "Importance of a channel: l1, l2, bn-scale, fpgm, lamp, random; with `data` also obs (the error that remains "
        "after refitting), taylor, fisher, mean-abs, apoz, variance; a criterion of an installed package; or a Python "
        "function module:function.",
        shown="l2, or obs with the allocation reconstruction",
    )
    allocation: Allocation | None = setting(
        None,
        "Remove the same share of every group (uniform), the least important channels of the whole model (global), or, "
        "with `data`, the channels that add the least measured output error for the cost they save (reconstruction).",
        shown="uniform, or reconstruction with `data`",
    )
    constraints: Constraints = setting(Constraints, "Limits on what may be removed from a group.")
    seed: int = setting(0, "Random seed.", at_least=0)
    remove_blocks: int | Literal["auto"] = setting(
        0,
        "First remove this many whole residual blocks: those that change their input least (with `data`), or those "
        "with the smallest weights. auto (with `data` and `target`) tries numbers, and takes the one with which the "
        "repaired network's error on inputs held back is least. Channels are then removed until the budget is met.",
        at_least=0,
        shown="",
    )
    resolution: str | int | None = setting(
        None,
        "Resize the image input inside the model to this height and width (160, or 160x128), or a sequence to this "
        "number of frames; inputs and outputs of the file stay as they are. Then channels are removed until the budget "
        "is met. auto (with `data` and a `target` on macs, memory or latency) tries sizes together with channels, and "
        "takes what changes held-back outputs least.",
        metavar="auto|N|HxW",
        shown="auto where it applies, see `axes`",
    )
    axes: tuple[Axis, ...] = setting(
        (),
        "How the model may be made smaller, such as channels,rank. channels removes channels; basis lets it remove "
        "combinations of channels, where only linear operators touch them (needs `data` and the criterion obs); "
        "resolution makes images smaller or sequences shorter; tokens lets blocks of a vision transformer compute with "
        "means of neighboring patches; with rank, a layer may become two with few channels between. Without "
        "`data`, rank alone is chosen by the weights. With resolution alone, a `target` is met by the largest image "
        "that fits it.",
        shown="channels; also resolution with `data`, a `target` on macs, memory or latency alone (or `max_drop`), and "
        "images of at least 32 pixels or sequences of 32 frames",
    )

    def __post_init__(self) -> None:
        """Check the fields, and that the axes allow what is asked for.

        Raises:
            PlanError: a field isn't allowed (OP303), or two contradict each other (OP302).
        """
        Settings.__post_init__(self)
        if self.resolution not in (None, "auto"):
            parse_size(self.resolution)
        if "resolution" not in self.allowed and self.resolution is not None:
            raise PlanError("OP302", "`resolution` is set, and `axes` doesn't name it", hint="drop one")
        if "basis" in self.axes and "channels" not in self.axes:
            cause = "`axes` names basis without channels, and another basis saves nothing by itself"
            raise PlanError("OP302", cause, hint="let `axes` name channels, too")
        if "channels" not in self.allowed:
            alone = " and ".join(self.allowed)
            if self.ratio is not None or self.remove_blocks or self.constraints.ratio_for:
                cause = f"`axes` allows {alone} only, and channels or blocks are to be removed"
                raise PlanError("OP302", cause, hint="drop one")
            saved = [q for q in QUANTITIES if any(q in _SAVES[axis] for axis in self.allowed)]
            if not {t.quantity for t in self.targets} <= set(saved):
                cause = f"with {alone} alone, a `target` limits {' or '.join(saved)}: no time is measured"
                raise PlanError("OP302", cause, hint="let `axes` name channels, too")

    @property
    def allowed(self) -> tuple[Axis, ...]:
        """The axes along which the model may be made smaller."""
        return self.axes or BY_DEFAULT

    @property
    def size(self) -> tuple[int, ...] | None:
        """The resolution, if it is a size: one number for all axes, or a height and a width."""
        return None if self.resolution in (None, "auto") else parse_size(self.resolution)

    @property
    def targets(self) -> tuple[Target, ...]:
        """All targets."""
        return all_targets(self.target)

    @property
    def counted(self) -> tuple[Target, ...]:
        """The targets whose costs are counted."""
        return tuple(t for t in self.targets if t.quantity != "latency")

    @property
    def timed(self) -> tuple[Target, ...]:
        """The targets of the latency."""
        return tuple(t for t in self.targets if t.quantity == "latency")


@dataclass(frozen=True, slots=True)
class Policies(Settings):
    """What is removed together."""

    attention: Attention | None = setting(
        None, "What to remove from attention: whole heads, or part of the width of every head.", shown="heads"
    )
    grouped: Grouped | None = setting(
        None,
        "What to remove from grouped convolutions: the same number of channels of every group, or whole groups.",
        shown="channels",
    )
    resize_outputs: bool = setting(
        False,
        "Where images are resized inside, enlarge outputs that are maps of them to the size that they had: masks, "
        "depth, scores for each frame. Values that are positions, such as boxes, don't fit any longer.",
    )
    resize_states: bool = setting(
        False,
        "Let channels of states leave: inputs and outputs that are the same state (of a recurrent layer, a cache of "
        "keys and values or of a streaming convolution) shrink together. They are paired by name and use.",
    )
    state: tuple[tuple[str, str], ...] = setting(
        (), "Let channels of this state leave: its input and its output.", metavar="IN=OUT"
    )
    kv_uniform: bool = setting(
        False,
        "Keep caches of keys and values alike in all layers: the same heads leave everywhere. Always so if the model "
        "has a genai_config.json beside it, because onnxruntime-genai knows one number of heads.",
    )

    def settled(self) -> Policies:
        """Return the policies with defaults filled in."""
        return replace(self, attention=self.attention or "heads", grouped=self.grouped or "channels")


@dataclass(frozen=True, slots=True)
class LatencySettings(Settings):
    """Where models are run, and a latency target is measured."""

    provider: str | None = setting(None, "Execution provider to measure latency on.", metavar="NAME", shown="cpu")
    threads: int | None = setting(
        None,
        "Number of intra-operator threads of ONNX Runtime, also where latency is measured.",
        at_least=1,
        shown="all cores",
    )
    cache: bool = setting(
        True, "For a latency target: use the times of layers that were measured before, and keep those measured now."
    )
