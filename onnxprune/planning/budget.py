"""How much to remove, and from where: ladders of allowed channel counts, an order of steps over all groups, a budget.

Every group has a *ladder*: the channel counts it may have, from all down to its floor, in multiples that run fast.
Going down one rung of one ladder is a *step*. An allocation puts all steps of all groups in one order, and a budget
takes the shortest run of them that meets the target, less what its last step made needless: one step less would miss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import ceil, gcd, lcm
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from onnxprune.channels.values import Ids, Mask
from onnxprune.cost.forecast import Forecast
from onnxprune.errors import PlanError
from onnxprune.settings.planning import Constraints, PlanSettings, Target
from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.groups import Group

Scores = Sequence[NDArray[np.float64]]

Multiples = Sequence[tuple[int, int]]

# What channel counts may be multiples of, the best first, each with how many of them a layer must have. ONNX Runtime's
# CPU provider convolves blocks of 16 channels with AVX-512 and of 8 or 16 elsewhere: other counts are padded, and where
# layers are concatenated or added their layout is changed first. Narrow networks win little time by coarse steps, and
# lose accuracy.
_WIDE: Multiples = ((16, 2), (8, 3), (4, 4), (2, 4), (1, 0))
_NARROW: Multiples = ((8, 4), (4, 4), (2, 4), (1, 0))
_WIDE_CHANNELS = 128  # of a network's widest layer

# So many steps are looked at for being needless once a target is met.
_GIVEN_BACK = 64


@dataclass(frozen=True, slots=True, eq=False)
class ReductionStep:
    """One rung down a group's ladder.

    Attributes:
        group: the group's index.
        units: the units that leave with it, shape (n,).
        share: which share of the group's units has left once it is taken.
        loss: mean importance of the units that leave; never smaller than an earlier step's of the group.
    """

    group: int
    units: Ids
    share: float
    loss: float


def choose(
    graph: ChannelGraph,
    scores: Scores,
    constraints: Constraints,
    *,
    ratio: float | None = None,
    target: Target | None = None,
    allocation: Literal["uniform", "global"] = "uniform",
) -> NDArray[np.bool_]:
    """Choose the units to remove.

    Args:
        graph: the traced model.
        scores: importance of the units of every group; NaN for those that must stay.
        constraints: limits.
        ratio: the share of channels to remove: of every group (uniform) or of all together (global).
        target: the limit to stay below.
        allocation: "uniform" removes the same share of every group, "global" the least important units of all.

    Returns:
        For every unit whether it leaves, shape (units,).

    Raises:
        PlanError: settings contradict each other (OP302) or are out of range (OP303), a pattern matches no node
            (OP304), nothing can be pruned (OP310), or the target is out of reach (OP301).
    """
    PlanSettings(ratio=ratio, target=target)  # checks them
    if ratio is None and target is None:
        raise PlanError("OP302", "neither a ratio nor a target says how much to remove")
    removed, ways = ways_down(graph, scores, constraints)
    steps = [step for way in ways.values() for step in way]
    if not steps and not removed.any() and ratio != 0:
        raise nothing_to_prune()
    free = [graph.groups[index] for index in ways]
    steps.sort(key=lambda s: (s.share, s.loss) if allocation == "uniform" else (s.loss, s.share))
    if ratio is not None:
        taken = _by_ratio(steps, ratio, allocation, sum(len(g.units) for g in free))
    else:
        assert target is not None
        taken = _by_target(graph, removed, steps, target)
    for step in taken:
        removed[step.units] = True
    return removed


def ways_down(
    graph: ChannelGraph, scores: Scores, constraints: Constraints
) -> tuple[Mask, dict[int, list[ReductionStep]]]:
    """Return what the constraints say of every group.

    Returns:
        For every unit whether it leaves in any case, shape (units,), and the steps of each group that an allocation may
        use, by its index.

    Raises:
        PlanError: a constraint is out of range (OP303), or a pattern matches no node (OP304).
    """
    fixed, free = eligible(graph, constraints)
    removed = np.zeros(len(graph.pinned), dtype=bool)
    counts = multiples(graph, constraints)
    for group, share in fixed:
        for step in _nearest(_steps(group, scores[group.index], constraints, counts), share):
            removed[step.units] = True
    return removed, {group.index: _steps(group, scores[group.index], constraints, counts) for group in free}


def nothing_to_prune() -> PlanError:
    """Return the error of a model that holds on to all that it has (OP310)."""
    hint = "the command `explain MODEL` shows what pins each layer"
    return PlanError("OP310", "nothing can be pruned under these settings", hint=hint)


def multiples(graph: ChannelGraph, constraints: Constraints) -> Multiples:
    """Return what channel counts may be multiples of, the best first, each with how many of them a layer must have."""
    if constraints.round_to is not None:
        return ((constraints.round_to, 0),)
    widest = max((len(group.sets) * min(group.widths) for group in graph.groups), default=0)
    return _WIDE if widest >= _WIDE_CHANNELS else _NARROW


def ladder(units: int, widths: Sequence[int], constraints: Constraints, multiples: Multiples) -> list[int]:
    """Return the counts that a group may be cut to, descending, without the full count.

    Args:
        units: how many units it has, or sets of units that leave together (`Group.sets`).
        widths: how many channels each is on the axes where it has some; on each, counts are rounded.
        constraints: limits.
        multiples: see `multiples`; the first that the group has enough of and that leaves a choice is taken.
    """
    floor = max(1, ceil(constraints.min_channels / min(widths)), ceil(units * (1 - constraints.max_ratio) - 1e-9))
    for channels, least in multiples:
        step = _units_in(channels, widths)
        if units >= least * step and (rungs := list(range((units - 1) // step * step, floor - 1, -step))):
            return rungs
    return []


def _units_in(channels: int, widths: Sequence[int]) -> int:
    """Return how many units make a multiple of so many channels on each axis."""
    return lcm(*(channels // gcd(channels, width) for width in widths))


def _steps(
    group: Group, scores: NDArray[np.float64], constraints: Constraints, multiples: Multiples
) -> list[ReductionStep]:
    if np.isnan(scores).any():
        return []
    total = len(group.sets)
    ends = total - np.array(ladder(total, group.widths, constraints, multiples), dtype=np.int64)
    if not len(ends):
        return []
    order = group.deal(scores)[: ends[-1]]
    starts = np.concatenate([[0], ends[:-1]])
    losses = np.maximum.accumulate(np.add.reduceat(scores[order].mean(axis=1), starts) / (ends - starts))
    units = group.units[order]
    return [
        ReductionStep(group.index, units[start:end].ravel(), end / total, loss)
        for start, end, loss in zip(starts.tolist(), ends.tolist(), losses.tolist(), strict=True)
    ]


def _nearest(steps: Iterable[ReductionStep], share: float) -> list[ReductionStep]:
    """Return the steps of one group that come nearest to a share."""
    taken, before = [], 0.0
    for step in steps:
        if (before + step.share) / 2 > share:
            break
        taken.append(step)
        before = step.share
    return taken


def _by_ratio(steps: list[ReductionStep], ratio: float, allocation: str, units: int) -> list[ReductionStep]:
    if allocation == "uniform":
        by_group: dict[int, list[ReductionStep]] = {}
        for step in steps:
            by_group.setdefault(step.group, []).append(step)
        return [s for own in by_group.values() for s in _nearest(own, ratio)]
    taken, gone = [], 0
    for step in steps:
        if gone + len(step.units) / 2 > ratio * units:
            break
        taken.append(step)
        gone += len(step.units)
    return taken


def _by_target(
    graph: ChannelGraph, removed: NDArray[np.bool_], steps: list[ReductionStep], target: Target
) -> list[ReductionStep]:
    forecast = Forecast(graph, target.counted)

    def after(taken: Sequence[ReductionStep]) -> int:
        gone = removed.copy()
        for step in taken:
            gone[step.units] = True
        return forecast(gone)

    before = forecast(np.zeros_like(removed))
    limit = target.value * before
    count = _first(len(steps), lambda n: after(steps[:n]) <= limit)
    if count is None:
        share = after(steps) / max(before, 1)
        cause = f"{target.quantity} can't be brought to {target.value:.3g} of the original"
        hint = f"{share:.3g} is the least with these constraints (`max_ratio`, `min_channels`, `exclude`, `round_to`)"
        raise PlanError("OP301", cause, hint=hint)
    return _give_back(steps[:count], lambda taken: after(taken) <= limit)


def _give_back(taken: list[ReductionStep], holds: Callable[[Sequence[ReductionStep]], bool]) -> list[ReductionStep]:
    """Undo steps that a last, large one has made needless: the latest first, and of each group its deepest."""
    kept_on: set[int] = set()
    for step in taken[: -_GIVEN_BACK - 1 : -1]:
        rest = [s for s in taken if s is not step]
        if step.group not in kept_on and holds(rest):
            taken = rest
        else:
            kept_on.add(step.group)
    return taken


def _first(high: int, holds: Callable[[int], bool]) -> int | None:
    """Return the smallest n in [0, high] for which a monotone condition holds, or None."""
    if not holds(high):
        return None
    low = 0
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low


def eligible(graph: ChannelGraph, constraints: Constraints) -> tuple[list[tuple[Group, float]], list[Group]]:
    """Sort out groups with a ratio of their own from those that the allocation may use."""
    names = [n.name for n in graph.proto.graph.node]
    for name, patterns in (
        ("include", constraints.include),
        ("exclude", constraints.exclude),
        ("ratio_for", [p for p, _ in constraints.ratio_for]),
    ):
        for pattern in patterns:
            if not any(fnmatchcase(n, pattern) for n in names):
                hint = "the command `inspect MODEL` lists the names"
                raise PlanError("OP304", f"no node's name matches {pattern!r}", where=name, hint=hint)
    fixed, free = [], []
    for group in graph.groups:
        if (constraints.exact_only and not group.exact) or _matches(group.nodes, constraints.exclude):
            continue
        own = [r for p, r in constraints.ratio_for if _matches(group.producers, [p])]
        if own:
            fixed.append((group, own[-1]))
        elif not constraints.include or _matches(group.producers, constraints.include):
            free.append(group)
    return fixed, free


def _matches(names: Iterable[str], patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(n, p) for p in patterns for n in names)
