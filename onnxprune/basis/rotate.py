"""Change the basis of groups of channels: one orthogonal matrix along every weight axis that a group lies along."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from onnxprune.basis.folding import Edit
from onnxprune.basis.reflections import all_from_text
from onnxprune.errors import PlanError
from onnxprune.rewrite.arithmetic import cast_copy
from onnxprune.trace import retrace
from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.streams import Slot, Stream, find_streams

Bases = Mapping[str, Mapping[int, str]]
"""Orthogonal matrices as text, one for each head (see `reflections`), by initializer and axis: one of each group."""


@dataclass(frozen=True, slots=True)
class Rotated:
    """A model in other bases.

    Attributes:
        proto: the model.
        bases: the new basis of each group; column i is the direction that channel i stands for now.
        weights: the initializers that differ from the original's.
        folds: the number of nodes whose effect on single channels other weights took over; nodes differ, too, then.
    """

    proto: ModelProto
    bases: Bases
    weights: frozenset[str]
    folds: int = 0

    def __str__(self) -> str:
        """Return the number of groups."""
        count = sum(map(len, self.bases.values()))
        return f"{count} group{'s' if count > 1 else ''} of channels in another basis"


def rotate(graph: ChannelGraph, bases: Bases, *, exact: bool = False) -> Rotated:
    """Return a model that computes the same with groups of its channels in other bases.

    Args:
        graph: the traced model. It isn't changed.
        bases: the new bases.
        exact: whether to return a copy in float64, so that no product of weights is rounded to their type.

    Raises:
        PlanError: a basis isn't one of a group of channels (OP307) or no orthogonal matrix (OP305), or that of the
            group can't be changed (OP307).
    """
    proto = cast_copy(graph.proto, TensorProto.DOUBLE) if exact else graph.proto
    slots = [(tensor, axis) for tensor, axes in bases.items() for axis in axes]
    found = _streams(graph, slots)
    folds = [stream for stream in found if stream.folds]
    changed = set[str]()
    if folds:
        proto, changed = _without(folds, graph, proto)
        graph = retrace(proto, graph)
        found = _streams(graph, slots)
    edit = Edit(proto)
    for (tensor, axis), stream in zip(slots, found, strict=True):
        edit.multiply(stream.slots, _matrices(bases[tensor][axis], stream, (tensor, axis)))
    count = sum(len(stream.folds) for stream in folds)
    return Rotated(edit.model(), bases, frozenset({*changed, *edit.arrays}), count)


def folded(graph: ChannelGraph) -> ChannelGraph:
    """Return a traced model that computes the same, in which all streams have what they need to change their basis."""
    streams = [stream for stream in find_streams(graph)[0].values() if stream.folds]
    return retrace(_without(streams, graph, graph.proto)[0], graph) if streams else graph


def _without(streams: Sequence[Stream], graph: ChannelGraph, proto: ModelProto) -> tuple[ModelProto, set[str]]:
    """Return a model without what streams have to fold, and its weights that changed."""
    edit = Edit(proto)
    edit.fold(streams, graph.summed)
    return edit.model(), {*edit.arrays}


def used_bases(graph: ChannelGraph, bases: Bases, removed: Mapping[str, Mapping[int, Sequence[int]]]) -> Bases:
    """Return the bases of those groups that lose channels: the others may keep their own."""
    streams, _ = find_streams(graph)
    used: dict[str, dict[int, str]] = {}
    for stream in streams.values():
        tensor, axis = stream.key
        if axis in bases.get(tensor, {}) and any(removed.get(name, {}).get(along) for name, along in stream.slots):
            used.setdefault(tensor, {})[axis] = bases[tensor][axis]
    return used


def _streams(graph: ChannelGraph, slots: Sequence[Slot]) -> list[Stream]:
    """Return the stream that is named by each weight axis."""
    streams, fixed = find_streams(graph)
    by_key, found = {stream.key: stream for stream in streams.values()}, list[Stream]()
    for slot in slots:
        if slot not in by_key:
            why = next((fixed[g.index] for g in graph.groups if slot in g.slots and g.index in fixed), None)
            cause = f"the plan changes the basis of channels for which that isn't exact: {why}"
            other = "the plan changes a basis that the model doesn't have"
            raise PlanError("OP307", other if why is None else cause, where=f'"{slot[0]}" axis {slot[1]}')
        found.append(by_key[slot])
    return found


def _matrices(text: str, stream: Stream, slot: Slot) -> NDArray[np.float64]:
    where = f'"{slot[0]}" axis {slot[1]}'
    try:
        matrices = all_from_text(text)
    except ValueError as error:
        raise PlanError("OP305", f"the plan holds no basis ({error})", where=where) from error
    heads, size = matrices.shape[:2]
    if size != stream.size:
        cause = f"the plan holds a basis of {size} channels for a group of {stream.size}"
        raise PlanError("OP307", cause, where=where)
    if heads != stream.heads:
        raise PlanError("OP307", f"the plan holds bases of {heads} heads for a group of {stream.heads}", where=where)
    return matrices
