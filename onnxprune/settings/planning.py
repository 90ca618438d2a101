"""How to plan: how much to remove, from where, and what is removed together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

from onnxprune.errors import PlanError
from onnxprune.settings.declare import Rule, Settings, Share, setting

Allocation = Literal["uniform", "global", "reconstruction"]
Attention = Literal["heads", "width"]
Grouped = Literal["channels", "groups"]
Quantity = Literal["macs", "params", "size", "memory"]
Limited = Literal["macs", "params", "size", "memory", "latency"]

QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)


@dataclass(frozen=True, slots=True)
class Target(Settings):
    """An upper limit on a cost."""

    _place: ClassVar[str] = "target"

    quantity: Limited = setting(
        help="The cost: macs, params, size (bytes of weights), memory (peak of activations), or latency, which is "
        "measured (see `onnxprune.latency`)."
    )
    value: Share = setting(help="The limit, as a share of the original model's cost.", above=0, at_most=1)

    def __str__(self) -> str:
        """Return the target as the command line takes it: macs=0.5."""
        return f"{self.quantity}={self.value:g}"

    @property
    def counted(self) -> Quantity:
        """The quantity, if it can be counted.

        Raises:
            PlanError: it is the latency, which `plan` measures (OP302).
        """
        if self.quantity == "latency":
            raise PlanError("OP302", "a latency is measured, not counted", where="target")
        return self.quantity


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
        (), "Prune only channels that are produced by nodes whose names match this pattern.", metavar="PATTERN"
    )
    exclude: tuple[str, ...] = setting(
        (), "Don't change the weights of nodes whose names match this pattern.", metavar="PATTERN"
    )
    exact_only: bool = setting(
        False,
        "Skip groups whose removal is an approximation, because it changes statistics (LayerNormalization, means over "
        "channels).",
    )
    ratio_for: tuple[tuple[str, Share], ...] = setting(
        (), "Share to remove of the channels that nodes with matching names produce.", at_least=0, below=1
    )


@dataclass(frozen=True, slots=True)
class PlanSettings(Settings):
    """How to plan."""

    _rules: ClassVar = (
        Rule("ratio", ["target"], "both {first} and {other} say how much to remove", "give one of them"),
    )

    ratio: Share | None = setting(None, "Share of the channels to remove.", at_least=0, below=1)
    target: Target | None = setting(
        None,
        "Upper limit on a cost, as a share of the original's: macs, params, size (bytes of weights), memory (peak of "
        "activations), or latency, which is measured.",
    )
    criterion: str | None = setting(
        None,
        "Importance of a channel: l1, l2, bn-scale, fpgm, lamp, random; with `data` also obs (the error that remains "
        "after refitting), taylor, fisher, mean-abs, apoz, variance; or a criterion of an installed package.",
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
        "with the smallest weights. auto (with `data` and `target`) chooses the number that minimizes the predicted "
        "error. Channels are then removed until the budget is met.",
        at_least=0,
        shown="",
    )


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

    provider: str | None = setting(
        None, "For a latency target: the execution provider to measure on.", metavar="NAME", shown="cpu"
    )
    threads: int | None = setting(
        None,
        "Number of intra-operator threads of ONNX Runtime, also where a latency target is measured.",
        at_least=1,
        shown="all cores",
    )
