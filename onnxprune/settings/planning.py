"""How to plan: what leaves together, how much, and from where."""

from __future__ import annotations

from dataclasses import dataclass
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
    """A limit on a cost.

    Attributes:
        quantity: what is limited. A latency isn't counted but measured: see `onnxprune.latency`.
        value: the limit, as a share of the source model's cost.
    """

    _place: ClassVar[str] = "target"

    quantity: Limited
    value: Share = setting(above=0, at_most=1)

    def __str__(self) -> str:
        """Return it as the command line takes it: macs=0.5."""
        return f"{self.quantity}={self.value:g}"

    @property
    def counted(self) -> Quantity:
        """The quantity, where it is one that can be counted.

        Raises:
            PlanError: it is a latency, which `plan` measures (OP302).
        """
        if self.quantity == "latency":
            raise PlanError("OP302", "a latency is measured, not counted", where="target")
        return self.quantity


@dataclass(frozen=True, slots=True)
class Constraints(Settings):
    """Limits on what may leave a group.

    Attributes:
        min_channels: every layer keeps at least as many channels (or all, if it has fewer).
        max_ratio: the largest share of a group's units that may leave.
        round_to: channel counts are multiples of this; None for 16 or 8 where layers are wide enough, else less.
        include: patterns of node names; only groups whose channels such a node makes are pruned. Empty for all.
        exclude: patterns of node names whose weights stay as they are.
        ratio_for: (pattern, ratio) pairs that fix the share removed from the groups that a node makes.
        exact_only: leave out groups whose removal is an approximation.
    """

    min_channels: int = setting(1, "Smallest number of channels that every layer keeps.", at_least=1)
    max_ratio: Share = setting(0.9, "Largest share of a group that may leave.", at_least=0, below=1)
    round_to: int | None = setting(
        None,
        "Channel counts are multiples of this.",
        at_least=1,
        shown="16, or 8, where layers are wide enough",
    )
    include: tuple[str, ...] = setting(
        (), "Prune only what nodes with such names produce. Repeatable.", metavar="PATTERN"
    )
    exclude: tuple[str, ...] = setting(
        (), "Leave the weights of nodes with such names alone. Repeatable.", metavar="PATTERN"
    )
    exact_only: bool = setting(
        False, "Leave groups alone whose removal changes statistics (LayerNorm, means over channels)."
    )
    ratio_for: tuple[tuple[str, Share], ...] = setting(
        (), "Ratio for what nodes with such names produce. Repeatable.", at_least=0, below=1
    )


@dataclass(frozen=True, slots=True)
class PlanSettings(Settings):
    """How to plan.

    Attributes:
        ratio: share of the channels to remove; or
        target: a limit on a cost.
        criterion: what makes a channel important, see `onnxprune.importance`; None for "obs" with the allocation
            "reconstruction", else "l2".
        allocation: the same share of every group, the least important channels of all, or where the measured error of
            the outputs grows least for what is saved; None for "reconstruction" where there are data, else "uniform".
        constraints: limits on what may leave a group.
        seed: for random criteria and samples.
        remove_blocks: how many residual blocks to remove first, those that matter least; "auto" for the number that
            makes the error smallest (the allocation "reconstruction" only).
    """

    _rules: ClassVar = (
        Rule("ratio", ["target"], "both {first} and {other} say how much to remove", "give one of them"),
    )

    ratio: Share | None = setting(None, "Share of the channels to remove.", at_least=0, below=1)
    target: Target | None = setting(
        None,
        "Limit on a cost as a share of the model's: macs, params, size (bytes of weights) or memory (peak of "
        "activations), or latency, which is measured. Met from below.",
    )
    criterion: str | None = setting(
        None,
        "What makes a channel important: l1, l2, bn-scale, fpgm, lamp, random; with --data also obs (the error that is "
        "left after refitting), taylor, fisher, mean-abs, apoz, variance; or one of an installed package. The "
        "allocation reconstruction takes obs if nothing is said.",
        shown="l2",
    )
    allocation: Allocation | None = setting(
        None,
        "Take the same share of every group; the least important channels of all; or, with --data, what costs the "
        "least measured error of the outputs for what it saves, which is the default with --data.",
        shown="uniform",
    )
    constraints: Constraints = setting(Constraints)
    seed: int = setting(0, "Seed of everything random.", at_least=0)
    remove_blocks: int | Literal["auto"] = setting(
        0,
        "Remove this many residual blocks as a whole, those that change least what goes through them (with --data) or "
        "have the smallest weights; auto, with --data and a target, chooses the number that minimizes the predicted "
        "error. Channels leave what remains, until it meets the budget.",
        at_least=0,
        shown="",
    )


@dataclass(frozen=True, slots=True)
class Policies(Settings):
    """What leaves together.

    Attributes:
        attention: what leaves an attention: whole heads, or a part of each head's width.
        grouped: what leaves a grouped convolution: as many channels of every group, or whole groups.
    """

    attention: Attention | None = setting(
        None, "What leaves an attention: whole heads, or a part of every head's width.", shown="heads"
    )
    grouped: Grouped | None = setting(
        None,
        "What leaves a grouped convolution: as many channels of every group, or whole groups.",
        shown="channels",
    )


@dataclass(frozen=True, slots=True)
class LatencySettings(Settings):
    """Where a target on latency is measured.

    Attributes:
        provider: the execution provider; None for the CPU.
        threads: threads within an operator; None for ONNX Runtime's default.
    """

    provider: str | None = setting(
        None, "For --target latency: the execution provider that it is measured on.", metavar="NAME", shown="cpu"
    )
    threads: int | None = setting(
        None, "For --target latency: threads within an operator.", at_least=1, shown="all cores"
    )
