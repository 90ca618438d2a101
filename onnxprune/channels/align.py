"""Align the axes of an operator's operands, by a spec that says which of them meet (see `notation`).

Every factor of every operand becomes a *term*: an id array whose dimensions have names. Terms are merged until each
name belongs to one of them, and the outputs take their ids from what remains.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from math import prod
from typing import Protocol

import numpy as np

from onnxprune.channels.ledger import Channels, Contraction
from onnxprune.channels.notation import Axis, name_axes, parse
from onnxprune.channels.values import Factor, Ids, Shape, Value
from onnxprune.settings.planning import Attention

_STAYS: Mapping[Attention, tuple[str, Attention]] = {
    "heads": ("the width of a head stays where whole heads leave", "width"),
    "width": ("whole heads stay where a part of each leaves", "heads"),
}
_POSITIONS = "runs along an axis that holds positions, not channels"


class Site(Protocol):
    """The node that a spec is applied at.

    Attributes:
        index: the node's index.
        channels: the ledger to write to.
        attention: whether whole heads or a part of each head leaves an attention; None for a node outside of any.
        policy: the same for all nodes.
    """

    index: int
    channels: Channels
    attention: Attention | None
    policy: Attention

    def pin(self, ids: Ids, code: str, reason: str, hint: str | None = None) -> None:
        """Pin ids in the name of the node."""

    def note(self, ids: Ids, reason: str) -> None:
        """Record that removing ids isn't the same as zeroing them, because of the node."""


@dataclass(slots=True, eq=False)
class _Term:
    names: tuple[str, ...]
    ids: Ids
    constant: bool = False  # whether it is on a weight


@dataclass(frozen=True, slots=True)
class _Job:
    """One application of a spec.

    Attributes:
        site: the node.
        operands: operands and the names of their axes.
        sizes: the size of every name, broadcasting done.
        structure: names that stay (conv groups, block sizes) unless they are alone on an axis.
        balanced: those of them along which each position may lose other channels, the same number everywhere.
        kept: the names of the outputs.
    """

    site: Site
    operands: Sequence[tuple[Value, Sequence[Axis]]]
    sizes: Mapping[str, int]
    structure: Collection[str]
    balanced: Collection[str]
    kept: Set[str]


def align(
    site: Site,
    spec: str,
    operands: Sequence[Value | None],
    outputs: Mapping[int, Shape],
    *,
    given: Mapping[str, int],
    structure: Collection[str] | None = None,
    approximate: Mapping[str, str] = {},
    balanced: Collection[str] = (),
    inputs: Sequence[tuple[int, int]] | None = None,
) -> dict[int, Value]:
    """Tie the ids of operands as a spec says, and return the outputs with theirs.

    Args:
        site: the node.
        spec: see `notation`; operands beyond those given are ignored.
        operands: the operands, None for one that isn't given.
        outputs: the shapes of the outputs that are wanted, by their place in the spec.
        given: sizes of names inside parentheses.
        structure: names that stay unless they are alone on an axis: by default those of known size.
        approximate: names over which statistics are taken, with the reason ("its mean is taken over these channels"); a
            starred name without its number means all its axes.
        balanced: structure along which each position may lose other channels, the same number everywhere.
        inputs: for a contraction, the node's input that each operand is, and that input's rank; it is recorded then.

    Returns:
        A value for every output that is wanted.
    """
    parsed = parse(spec)
    present = [i for i, (v, _) in enumerate(zip(operands, parsed.operands, strict=False)) if v is not None]
    named = [(v, name_axes(parsed.operands[i], len(v.shape))) for i in present if (v := operands[i]) is not None]
    out_axes = {i: name_axes(parsed.outputs[i], len(shape)) for i, shape in outputs.items()}
    kept = {name for axes in out_axes.values() for axis in axes for name in axis}
    job = _Job(site, named, _sizes(named, given), given if structure is None else structure, balanced, kept)
    terms = _terms(job)
    made = kept.union(given)
    if inputs is not None:
        _record(job, [inputs[i] for i in present])
    site.channels.summed += [t.ids.ravel() for t in terms if t.constant and not made.issuperset(t.names)]
    terms = _separate(job, _merge(job, _meet_positions(job, terms)))
    for term in terms if approximate else ():
        for name in term.names:
            if reason := approximate.get(name) or approximate.get(name.rstrip("0123456789")):
                site.note(term.ids, reason)
    terms = _contract(job, terms)
    return {
        i: Value(outputs[i], tuple(f for t in terms if (f := _place(t, axes, job.sizes)) is not None))
        for i, axes in out_axes.items()
    }


def _record(job: _Job, inputs: Sequence[tuple[int, int]]) -> None:
    """Record the axes that the node sums products over: those of names that two operands share, and of kernels."""
    holders = Counter(n for _, axes in job.operands for n in {name for axis in axes for name in axis})
    left = {n for n, count in holders.items() if n not in job.kept and (count > 1 or n.startswith("*k"))}
    summed, weights = [], []
    for (i, rank), (value, axes) in zip(inputs, job.operands, strict=True):
        if value.constant and any(n in left or n.startswith("*k") for axis in axes for n in axis):
            weights.append(i)
        if len(axes) > rank:  # the first axis was split into groups
            axes = [axes[0] + axes[1], *axes[2:]]
        for a, axis in enumerate(axes):
            if left.issuperset(axis):
                left.difference_update(axis)
                summed.append((i, a))
    job.site.channels.contractions[job.site.index] = Contraction(job.site.index, tuple(summed), tuple(weights))


def _sizes(operands: Sequence[tuple[Value, Sequence[Axis]]], given: Mapping[str, int]) -> dict[str, int]:
    sizes = dict(given)
    for value, axes in operands:
        for n, axis in zip(value.shape, axes, strict=True):
            if len(axis) == 1:
                (free,) = axis
            else:
                *_, free = sorted(axis, key=lambda name: name not in given)
                n //= prod(given[name] for name in axis if name != free)
            if free not in given:
                sizes[free] = max(sizes.get(free, 1), n)
    return sizes


def _terms(job: _Job) -> list[_Term]:
    """Name the dimensions of every factor; ids of a single position that is broadcast are pinned."""
    terms = []
    for value, axes in job.operands:
        for factor in value.factors:
            names = axes[factor.axes[0]]
            if len(factor.axes) == len(names) == 1 and len(factor.ids) > 1:  # fast path
                terms.append(_Term(names, factor.ids, value.constant))
                continue
            names = ()
            stretched: Shape = ()
            for a in factor.axes:
                names += axes[a]
                stretched += tuple(job.sizes[n] for n in axes[a]) if len(axes[a]) > 1 else (value.shape[a],)
            ids = factor.ids.reshape(stretched)
            if 1 not in stretched:
                terms.append(_Term(names, ids, value.constant))
                continue
            stays = [
                n > 1 or (ids.size == 1 and job.sizes[name] == 1) for name, n in zip(names, stretched, strict=True)
            ]
            if not any(stays):
                job.site.pin(ids, "OP214", "a single channel is spread over an axis")
                continue
            ids = ids[tuple(slice(None) if s else 0 for s in stays)]
            terms.append(_Term(tuple(n for n, s in zip(names, stays, strict=True) if s), ids, value.constant))
    return terms


def _meet_positions(job: _Job, terms: list[_Term]) -> list[_Term]:
    """Tie terms along names that have no ids on some operand: nothing can leave along these."""
    fixed: dict[str, str | None] = {}
    for value, axes in job.operands:
        for a, axis in enumerate(axes):
            if value.shape[a] > 1 and value.on(a) is None:
                for name in axis:
                    fixed[name] = fixed.get(name) or value.origin
    remaining = []
    for term in terms:
        met = [name for name in term.names if name in fixed]
        if not met or (met == [term.names[0]] != list(term.names) and met[0] in job.balanced):
            remaining.append(term)
        elif all(name in fixed or name in job.structure for name in term.names):
            origin = next((fixed[name] for name in met if fixed[name]), None)
            code, reason = ("OP201", f"meets {origin}") if origin else ("OP206", _POSITIONS)
            job.site.pin(term.ids, code, reason)
        else:
            remaining.append(_tie_along(job, term, met))
    return remaining


def _merge(job: _Job, terms: list[_Term]) -> list[_Term]:
    """Tie terms that share names; the one with fewer names stands for both.

    Two terms that share only some of their names are first reduced to the names they share. Terms that an attention's
    policy pins are left out, also outside of an attention where a term meets weights that hold its names apart, such as
    (heads, width): only one of them can lose positions.
    """
    merged: list[_Term] = []
    stay: list[_Term] = []
    for term in sorted(terms, key=lambda t: len(t.names)):
        covered = False
        apart = {o.names for o in merged if set(o.names) < set(term.names) and not set(o.names).issubset(job.structure)}
        attention = job.site.policy if len(apart) > 1 else job.site.attention
        for i, other in enumerate(merged):
            shared = {name for name in other.names if name in term.names}
            if not shared:
                continue
            if other.names == term.names and len(shared) == 1:  # fast path
                job.site.channels.tie(other.ids, term.ids, job.site.index)
                covered = True
                continue
            if shared.issubset(job.structure) and shared < set(other.names):
                continue  # structure alone doesn't couple: groups of inputs and of outputs
            if shared == set(other.names) and _stays(attention, term.names, shared):
                reason, instead = _STAYS[attention or "heads"]
                job.site.pin(other.ids, "OP211", reason, f"set `attention` to {instead}")
                term = _tie_along(job, term, shared)
                stay.append(other)
                continue
            if shared < set(other.names) and attention == "width":
                merged[i] = _tie_along(job, other, shared)
                term = _tie_along(job, term, shared)
                continue
            if shared < set(other.names):
                other = merged[i] = _tie_along(job, other, set(other.names) - shared)
                term = _tie_along(job, term, set(term.names) - shared)
            order = sorted(range(len(shared)), key=lambda d: term.names.index(other.names[d]))
            shape = [job.sizes[n] if n in shared else 1 for n in term.names]
            job.site.channels.tie(other.ids.transpose(order).reshape(shape), term.ids, job.site.index)
            covered = True
        if not covered:
            merged.append(term)
    return [term for term in merged if term not in stay]


def _stays(attention: Attention | None, names: Sequence[str], shared: Collection[str]) -> bool:
    """Whether names shared with a term over heads and their width, in this order, are the half that must not leave."""
    first, last = names[0] in shared, names[-1] in shared
    return (attention == "heads" and not first) or (attention == "width" and not last)


def _separate(job: _Job, terms: list[_Term]) -> list[_Term]:
    """Reduce terms over several names to those along which channels can leave.

    Structure stays: every group drops the same positions, or the same number where it is balanced. Of an attention's
    queries and keys one name is contracted, the width of a head, and one is not: either is tied, so that the other can
    leave.
    """
    separated = []
    for term in terms:
        structure = [n for n in term.names if n in job.structure]
        if len(term.names) == 2 and term.names[0] in job.balanced:
            job.site.channels.balances.append((term.ids, job.site.index))
            separated.append(term)
            continue
        if structure and len(structure) < len(term.names):
            term = _tie_along(job, term, structure)
        contracted = [n for n in term.names if n not in job.kept]
        if contracted and len(contracted) < len(term.names):
            kept = [n for n in term.names if n in job.kept]
            term = _tie_along(job, term, kept if job.site.policy == "width" else contracted)
        separated.append(term)
    return separated


def _contract(job: _Job, terms: list[_Term]) -> list[_Term]:
    """Remove the terms that the output doesn't have.

    Over an axis of two operands the operator sums products, so a zero in one of them removes the term: exact where one
    is a weight. On an axis of one operand it mixes positions, which pins them.
    """
    remaining = []
    for term in terms:
        if not job.kept.isdisjoint(n for n in term.names if n not in job.balanced or len(term.names) == 1):
            remaining.append(term)
            continue
        holders = [v for v, axes in job.operands if any(n in term.names for a in axes for n in a)]
        if len(holders) < 2 and all(n.startswith("*k") for n in term.names):
            job.site.pin(term.ids, "OP212", "holds the positions of a kernel")
        elif len(holders) < 2:
            job.site.pin(term.ids, "OP204", "the operator mixes neighboring positions of the axis")
        elif not any(v.constant for v in holders):
            job.site.note(term.ids, "it sums products of two activations over these channels")
    return remaining


def _tie_along(job: _Job, term: _Term, names: Collection[str]) -> _Term:
    """Tie a term's ids along some dimensions, which leaves one id for all positions along them."""
    first = term.ids[tuple(slice(0, 1) if n in names else slice(None) for n in term.names)]
    job.site.channels.tie(term.ids, first, job.site.index)
    dims = tuple(i for i, n in enumerate(term.names) if n in names)
    return _Term(tuple(n for n in term.names if n not in names), first.squeeze(dims))


def _place(term: _Term, axes: Sequence[Axis], sizes: Mapping[str, int]) -> Factor | None:
    """Return a term on the output axes with its names, broadcast over the other names of these axes."""
    if len(term.names) == 1 and term.names in axes:  # fast path: channels on their own axis
        return Factor((axes.index(term.names),), term.ids)
    touched = [a for a, axis in enumerate(axes) if any(n in term.names for n in axis)]
    if not touched:
        return None
    names = [n for a in touched for n in axes[a]]
    mine = [n for n in names if n in term.names]
    ids = term.ids.transpose([term.names.index(n) for n in mine])
    if len(mine) < len(names):
        ids = ids.reshape([sizes[n] if n in mine else 1 for n in names])
        ids = np.broadcast_to(ids, [sizes[n] for n in names])
    return Factor(tuple(touched), ids.reshape([prod(sizes[n] for n in axes[a]) for a in touched]))
