"""What a model's metadata says of its states, and its inputs made of those of the original.

Data for a model hold states of the original's size, or none. A pruned model takes the positions it kept, and zeros
stand for states that aren't there.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto
from onnx.helper import tensor_dtype_to_np_dtype

from onnxprune.model.metadata import read_note, write_notes

KEY = "onnxprune.states"
"""The metadata with the states, as JSON."""

_MOST = 2**26  # elements of a state of zeros


@dataclass(frozen=True, slots=True)
class StateInput:
    """An input that is a state.

    Attributes:
        name: the input.
        output: the output that returns the next state.
        before: its size along each axis in the original, None if it is dynamic.
        kept: the positions that remain, by axis.
        dtype: its element type.
    """

    name: str
    output: str
    before: tuple[int | None, ...]
    kept: Mapping[int, tuple[int, ...]]
    dtype: np.dtype


def state_inputs(model: ModelProto) -> dict[str, StateInput]:
    """Return the inputs that are states, as far as the metadata of a model say; malformed ones are ignored."""
    text = read_note(model, KEY) or "[]"
    types = {entry.name: entry.type.tensor_type for entry in model.graph.input}
    found = {}
    try:
        for state in json.loads(text):
            name, axes = str(state["input"]), dict(state["kept"])
            before = tuple(n if type(n) is int and n > 0 else None for n in state["before"])
            kept = {int(axis): tuple(map(int, places)) for axis, places in axes.items()}
            kind = types[name]
            fits = len(kind.shape.dim) == len(before) and all(
                kind.shape.dim[a].dim_value == len(places) and 0 <= min(places) <= max(places) < (before[a] or 0)
                for a, places in kept.items()
            )
            if fits:
                found[name] = StateInput(
                    name, str(state["output"]), before, kept, tensor_dtype_to_np_dtype(kind.elem_type)
                )
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return {}
    return found


def mark(model: ModelProto, pairs: Iterable[tuple[str, str]]) -> None:
    """Write into a model's metadata which inputs and outputs are states; nothing has left them yet."""
    declared = {entry.name: entry.type.tensor_type.shape.dim for entry in model.graph.input}
    sizes = {name: [d.dim_value or d.dim_param or "?" for d in dims] for name, dims in declared.items()}
    states = [{"input": start, "output": end, "before": sizes[start], "kept": {}} for start, end in pairs]
    write_notes(model, {KEY: json.dumps(states)})


def of_original(states: Mapping[str, StateInput]) -> dict[str, StateInput]:
    """Return a pruned model's states as they were in its original."""
    return {name: replace(state, kept={}) for name, state in states.items()}


def fitted(
    states: Mapping[str, StateInput], inputs: Mapping[str, NDArray[Any]], samples: int = 1
) -> dict[str, NDArray[Any]]:
    """Return inputs for a model: of states of the original's size the kept positions, and zeros for absent ones.

    Args:
        states: the model's states.
        inputs: the inputs of the original, perhaps without states.
        samples: the number of samples, the first dynamic axis of absent states; others have size zero.
    """
    feeds = dict(inputs)
    for name, state in states.items():
        if name not in feeds:
            free = chain([samples], repeat(0))  # samples come first; a cache that grows starts empty
            whole = [next(free) if n is None else n for n in state.before]
            shape = [len(state.kept.get(a, range(n))) for a, n in enumerate(whole)]
            if np.prod(shape, dtype=float) <= _MOST:
                feeds[name] = np.zeros(shape, state.dtype)
            continue
        feeds[name] = _cut(state, feeds[name])
    return feeds


def cut_outputs(states: Mapping[str, StateInput], outputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return the outputs of an original without the positions of states that a pruned model lost."""
    given = {state.output: state for state in states.values()}
    return {name: _cut(given[name], array) if name in given else array for name, array in outputs.items()}


def samples_first(states: Mapping[str, StateInput], outputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return outputs with those that are states last, and these with the axis of samples, the first dynamic one, first.

    The first output is the one that a model is judged by.
    """
    axes = {s.output: s.before.index(None) if None in s.before else 0 for s in states.values()}
    ordered = sorted(outputs.items(), key=lambda output: output[0] in axes)
    return {n: a if axes.get(n, a.ndim) >= a.ndim else np.moveaxis(a, axes[n], 0) for n, a in ordered}


def sized(model: ModelProto, states: Collection[str], inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return inputs with states, given by name, of the sizes that a model declares: cut, or filled up with zeros.

    This is enough to measure times.
    """
    feeds = dict(inputs)
    for entry in model.graph.input:
        array = feeds.get(entry.name)
        if array is not None and entry.name in states:
            declared = [d.dim_value for d in entry.type.tensor_type.shape.dim]
            shape = tuple(n if n > 0 else m for n, m in zip(declared, array.shape, strict=True))
            if shape != array.shape:
                part = tuple(map(slice, np.minimum(shape, array.shape)))
                feeds[entry.name] = np.zeros(shape, array.dtype)
                feeds[entry.name][part] = array[part]
    return feeds


def _cut(state: StateInput, array: NDArray[Any]) -> NDArray[Any]:
    for axis, places in state.kept.items():
        if axis < array.ndim and array.shape[axis] == state.before[axis]:
            array = np.take(array, places, axis)
    return array


def composed(old: Mapping[str, StateInput], name: str, kept: Mapping[int, Sequence[int]]) -> dict[int, tuple[int, ...]]:
    """Return which positions of the first original's state remain, if the model had lost some of them before."""
    before = old[name].kept if name in old else {}
    axes = {*before, *kept}
    whole = {a: before.get(a, kept.get(a, ())) for a in axes}
    return {
        a: tuple(whole[a][i] for i in kept[a]) if a in before and a in kept else tuple(whole[a]) for a in sorted(axes)
    }
