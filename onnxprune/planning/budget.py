"""How much to remove, and from where.

Every group has a list of allowed channel counts, descending, in multiples that run fast. A *step* reduces one group to
its next count. An allocation sorts the steps of all groups, and a budget takes the shortest prefix that meets the
target. Steps that the last one made unnecessary are then undone: one step less would miss the target.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from math import ceil, gcd, lcm
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from onnxprune.channels.values import Ids, Mask
from onnxprune.cost.forecast import Forecast
from onnxprune.errors import PlanError
from onnxprune.operators.contractions import layer_of_number
from onnxprune.settings.planning import Constraints, PlanSettings, Target, Targets
from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.groups import Group

Scores = Sequence[NDArray[np.float64]]

Multiples = Sequence[tuple[int, int]]

# Multiples for channel counts, the best first, each with the number of multiples that a layer must have. ONNX Runtime's
# CPU provider convolves blocks of 16 channels with AVX-512, and of 8 or 16 elsewhere: other counts are padded, and need
# a change of layout before layers are concatenated or added. In narrow networks, coarse steps cost accuracy, and steps
# finer than 8 save no time: at half its MACs, the digits network is 0.94 times as fast as the whole one if layers of
# 16 to 31 channels get multiples of 4, and 1.06 times with multiples of 8; a ResNet-20 of 16 to 64 channels is 1.18 and
# 1.28 times as fast (AVX-512, one thread, the fastest of many interleaved runs).
_WIDE: Multiples = ((16, 2), (8, 3), (4, 4), (2, 4), (1, 0))
_NARROW: Multiples = ((8, 2), (4, 4), (2, 4), (1, 0))
_WHOLE = 16  # multiples from which a layer's only choice is enough; for smaller ones, half of it is another
_WIDE_CHANNELS = 128  # of a network's widest layer

_UNDO = 64  # number of most recent steps considered for undoing


@dataclass(frozen=True, slots=True, eq=False)
class ReductionStep:
    """The reduction of a group to its next allowed channel count.

    Attributes:
        group: the group's index.
        units: the units that it removes, shape (n,).
        share: the share of the group's units removed after it.
        loss: mean importance of the removed units; never smaller than that of an earlier step of the group.
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
    target: Targets | None = None,
    allocation: Literal["uniform", "global"] = "uniform",
    whole: Mapping[str, int] | None = None,
) -> NDArray[np.bool_]:
    """Choose the units to remove.

    Args:
        graph: the traced model.
        scores: importance of the units of every group; NaN for those that must stay.
        constraints: limits on what may be removed.
        ratio: share of the channels to remove, of every group (uniform) or of the whole model (global).
        target: upper limit on a cost, or several.
        allocation: "uniform" removes the same share of every group, "global" the least important units of the model.
        whole: the costs that limits are shares of, by quantity; the traced model's by default.

    Returns:
        Mask of the removed units, shape (units,).

    Raises:
        PlanError: settings contradict each other (OP302) or are out of range (OP303), a pattern matches no node
            (OP304), nothing can be pruned (OP310), or the target can't be reached (OP301).
    """
    targets = PlanSettings(ratio=ratio, target=target).targets
    if ratio is None and not targets:
        raise PlanError("OP302", "neither `ratio` nor `target` says how much to remove")
    removed, candidates = candidate_steps(graph, scores, constraints)
    steps = [step for own in candidates.values() for step in own]
    limits = Limits(graph, targets, whole)
    if not steps and not removed.any() and ratio != 0 and not (targets and limits.hold(removed)):
        raise nothing_to_prune()
    free = [graph.groups[index] for index in candidates]
    steps.sort(key=lambda s: (s.share, s.loss) if allocation == "uniform" else (s.loss, s.share))
    if ratio is not None:
        taken = _by_ratio(steps, ratio, allocation, sum(len(g.units) for g in free))
    else:
        taken = _by_target(removed, steps, limits)
    for step in taken:
        removed[step.units] = True
    return removed


class Limits:
    """Upper limits on costs of a traced model, all of which must hold."""

    def __init__(self, graph: ChannelGraph, targets: Iterable[Target], whole: Mapping[str, int] | None = None) -> None:
        """Prepare the costs.

        Args:
            graph: the traced model.
            targets: the limits.
            whole: the costs that limits are shares of, by quantity; the traced model's by default.

        Raises:
            PlanError: a limit is on the latency (OP302).
        """
        nothing = np.zeros(graph.unit_count, dtype=bool)
        self._limits = [(target, Forecast(graph, target.counted)) for target in targets]
        self._whole = [(whole or {}).get(t.quantity) or cost(nothing) for t, cost in self._limits]

    def hold(self, removed: Mask) -> bool:
        """Whether all limits hold without some units, shape (units,)."""
        pairs = zip(self._limits, self._whole, strict=True)
        return all(cost(removed) <= target.limit(whole) for (target, cost), whole in pairs)

    def require(self, removed: Mask) -> None:
        """Raise an error if a limit doesn't hold without all units that may be removed.

        Raises:
            PlanError: it doesn't (OP301).
        """
        for (target, cost), whole in zip(self._limits, self._whole, strict=True):
            least = cost(removed)
            if least > target.limit(whole):
                shown = replace(target, value=least).text if target.absolute else f"{100 * least / max(whole, 1):.3g}%"
                of = "" if target.absolute else " of the original"
                cause = f"{target.quantity} can't be brought to {target.text}{of}"
                constraints = "(`max_ratio`, `min_channels`, `exclude`, `round_to`)"
                raise PlanError("OP301", cause, hint=f"{shown} is the least with these constraints {constraints}")


def candidate_steps(
    graph: ChannelGraph, scores: Scores, constraints: Constraints
) -> tuple[Mask, dict[int, list[ReductionStep]]]:
    """Return the removals that the constraints require, and those that they allow.

    Returns:
        Mask of the units removed by fixed ratios, shape (units,), and the allowed steps of each other group, by index.

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
    """Return the error for a model in which nothing can be removed (OP310)."""
    hint = "the command `explain MODEL` shows what pins each layer"
    return PlanError("OP310", "nothing can be pruned under these settings", hint=hint)


def multiples(graph: ChannelGraph, constraints: Constraints) -> Multiples:
    """Return the multiples for channel counts, the best first, each with the number of them that a layer must have."""
    if constraints.round_to is not None:
        return ((constraints.round_to, 0),)
    widest = max((len(group.sets) * min(group.widths) for group in graph.groups), default=0)
    return _WIDE if widest >= _WIDE_CHANNELS else _NARROW


def allowed_counts(units: int, widths: Sequence[int], constraints: Constraints, multiples: Multiples) -> list[int]:
    """Return the counts that a group may be reduced to, descending, without the full count.

    Args:
        units: number of units, or of sets of units that are removed together (`Group.sets`).
        widths: number of channels of a unit on each of its axes; counts are rounded on all of them.
        constraints: limits on what may be removed.
        multiples: see `multiples`; the first that the group has enough of and that leaves a choice is used.
    """
    floor = max(1, ceil(constraints.min_channels / min(widths)), ceil(units * (1 - constraints.max_ratio) - 1e-9))
    for channels, least in multiples:
        step = _units_in(channels, widths)
        if units >= least * step and (counts := list(range((units - 1) // step * step, floor - 1, -step))):
            half = step // 2 if step % 2 == 0 and counts == [step] and least > 0 and channels < _WHOLE else 0
            return [*counts, *([half] if half >= floor else [])]
    return []


def _units_in(channels: int, widths: Sequence[int]) -> int:
    """Return the smallest number of units whose channels are a multiple of `channels` on each axis."""
    return lcm(*(channels // gcd(channels, width) for width in widths))


def _steps(
    group: Group, scores: NDArray[np.float64], constraints: Constraints, multiples: Multiples
) -> list[ReductionStep]:
    if np.isnan(scores).any():
        return []
    total = len(group.sets)
    ends = total - np.array(allowed_counts(total, group.widths, constraints, multiples), dtype=np.int64)
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
    """Return the first steps of a group, up to the share nearest to the given one."""
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


def _by_target(removed: Mask, steps: list[ReductionStep], limits: Limits) -> list[ReductionStep]:
    def after(taken: Sequence[ReductionStep]) -> Mask:
        gone = removed.copy()
        for step in taken:
            gone[step.units] = True
        return gone

    limits.require(after(steps))
    count = bisect_left(range(len(steps)), True, key=lambda n: limits.hold(after(steps[:n])))
    return _without_unnecessary(steps[:count], lambda taken: limits.hold(after(taken)))


def _without_unnecessary(
    taken: list[ReductionStep], holds: Callable[[Sequence[ReductionStep]], bool]
) -> list[ReductionStep]:
    """Undo steps that a large last step made unnecessary: the most recent first, and the deepest of each group."""
    finished: set[int] = set()
    for step in taken[: -_UNDO - 1 : -1]:
        rest = [s for s in taken if s is not step]
        if step.group not in finished and holds(rest):
            taken = rest
        else:
            finished.add(step.group)
    return taken


def with_names(constraints: Constraints, graph: ChannelGraph) -> Constraints:
    """Return constraints whose layer numbers, such as L17, are replaced by patterns of the layers' names.

    Numbers change when residual blocks are removed, names don't.
    """

    def pattern(text: str) -> str:
        name = layer_of_number(text, graph.proto)
        return text if name is None else re.sub(r"([*?[])", r"[\1]", name)

    return replace(
        constraints,
        include=tuple(map(pattern, constraints.include)),
        exclude=tuple(map(pattern, constraints.exclude)),
        ratio_for=tuple((pattern(text), ratio) for text, ratio in constraints.ratio_for),
    )


def check_patterns(setting: str, patterns: Sequence[str], names: Sequence[str]) -> None:
    """Check that each pattern of a setting matches a node's name.

    Raises:
        PlanError: one matches none (OP304).
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            hint = "the command `inspect MODEL` lists the names and the numbers of layers"
            raise PlanError("OP304", f"no node's name matches {pattern!r}", where=setting, hint=hint)


def eligible(graph: ChannelGraph, constraints: Constraints) -> tuple[list[tuple[Group, float]], list[Group]]:
    """Return the groups with a fixed ratio, with it, and the groups that the allocation may use."""
    names = [n.name for n in graph.proto.graph.node]
    for name, patterns in (
        ("include", constraints.include),
        ("exclude", constraints.exclude),
        ("ratio_for", [p for p, _ in constraints.ratio_for]),
    ):
        check_patterns(name, patterns, names)
    fixed, free = [], []
    for group in graph.groups:
        if (constraints.exact_only and not group.exact) or matches(group.nodes, constraints.exclude):
            continue
        own = [r for p, r in constraints.ratio_for if matches(group.producers, [p])]
        if own:
            fixed.append((group, own[-1]))
        elif not constraints.include or matches(group.producers, constraints.include):
            free.append(group)
    return fixed, free


def matches(names: Iterable[str], patterns: Iterable[str]) -> bool:
    """Whether one of some names matches one of some patterns."""
    return any(fnmatchcase(n, p) for p in patterns for n in names)
