"""Shapes of all tensors in any state of the search, in no time: removed positions add up over groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.channels.values import Ids, Mask, Shape
from onnxprune.latency.rungs import Choice, State
from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.pruned_graph import PrunedGraph


class Sizes:
    """The shapes of some tensors of a traced model, as functions of a state.

    Where two groups meet on one axis, in a concatenation, what each removes adds up. That is exact for axes that hold
    channels side by side; of channels that were folded into one axis as a product it is an approximation, which costs
    nothing but precision of the prediction.
    """

    def __init__(self, graph: ChannelGraph, choices: Sequence[Choice], fixed: Mask, tensors: Iterable[str]) -> None:
        """Count once what each rung of each choice takes from every tensor."""
        nothing = PrunedGraph(graph, fixed)
        self._base = {name: nothing.shape(name) for name in tensors if _known(graph, name)}
        losses: dict[str, dict[int, dict[int, Ids]]] = {}  # by tensor, axis and choice, for every rung
        touched = _touched(graph, choices, self._base)
        for index, own in enumerate(choices):
            shapes: list[dict[str, Shape]] = []
            for units in own.removed:
                removed = fixed.copy()
                removed[units] = True
                kept = PrunedGraph(graph, removed)
                shapes.append({name: kept.shape(name) for name in touched[index]})
            for name in touched[index]:
                lost = np.array(self._base[name]) - np.array([shape[name] for shape in shapes])
                for axis in np.flatnonzero(lost.any(axis=0)).tolist():
                    losses.setdefault(name, {}).setdefault(axis, {})[index] = lost[:, axis]
        self._losses = {
            name: [_Loss.of(axis, by_choice) for axis, by_choice in axes.items()] for name, axes in losses.items()
        }

    def __contains__(self, tensor: str) -> bool:
        """Tell whether a tensor's shape is known."""
        return tensor in self._base

    def shape(self, tensor: str, state: State) -> Shape:
        """Return a tensor's shape in a state.

        Raises:
            KeyError: it isn't known.
        """
        shape = list(self._base[tensor])
        for loss in self._losses.get(tensor, ()):
            shape[loss.axis] = max(1, shape[loss.axis] - loss.at(state))
        return tuple(shape)

    def choices(self, tensor: str) -> set[int]:
        """Return the choices that a tensor's shape depends on."""
        return {index for loss in self._losses.get(tensor, ()) for index in loss.choices.tolist()}


@dataclass(frozen=True, slots=True, eq=False)
class _Loss:
    """What choices take from one axis of a tensor: a table of all rungs of all choices, laid end to end."""

    axis: int
    choices: Ids
    starts: Ids
    table: Ids

    @classmethod
    def of(cls, axis: int, by_choice: Mapping[int, Ids]) -> _Loss:
        ends = np.cumsum([0, *map(len, by_choice.values())])
        return cls(axis, np.array(list(by_choice)), ends[:-1], np.concatenate(list(by_choice.values())))

    def at(self, state: State) -> int:
        return int(self.table[self.starts + state[self.choices]].sum())


def _known(graph: ChannelGraph, tensor: str) -> bool:
    return tensor in graph.values or tensor in graph.shapes.shapes


def _touched(graph: ChannelGraph, choices: Sequence[Choice], tensors: Iterable[str]) -> list[list[str]]:
    """Return for every choice the tensors on which units of its group stand."""
    choice_of = np.full(len(graph.pinned), -1, dtype=np.int64)
    for index, own in enumerate(choices):
        choice_of[own.group.units] = index
    touched: list[list[str]] = [[] for _ in choices]
    for name in tensors:
        value = graph.values.get(name)
        met = {i for f in (value.factors if value else ()) for i in np.unique(choice_of[graph.unit_of[f.ids]]).tolist()}
        for index in met - {-1}:
            touched[index].append(name)
    return touched
