"""Sizes for symbolic dimensions: the usual ones, and others where those contradict the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from onnxprune.shapes.inputs import Dims
from onnxprune.shapes.walk import ShapeWalk

_TRIES = 48  # of sizes, and
_VISITS = 200_000  # of nodes during them, bound the search

_BATCH = (1, 2, 4, 8)
_CHANNELS = (3, 1, 4, 2)
_IMAGE = (224, 256, 32, 64, 640, 128, 416, 299, 28, 96, 160, 320, 512, 227, 384, 1024)
_VOLUME = (32, 16, 64, 112, 128, 96, 224)
_SEQUENCE = (16, 32, 64, 128, 256, 512, 1024, 2048, 16000)


class _Knob(NamedTuple):
    """Symbols that are given the same size, and the sizes to try."""

    names: list[str]
    sizes: tuple[int, ...]


def _knobs(inputs: Mapping[str, Dims], bound: Mapping[str, int]) -> list[_Knob]:
    """List what can be varied, with the usual size first; batch sizes come last."""
    seen = set(bound)
    batch: list[_Knob] = []
    others: list[_Knob] = []
    for dims in inputs.values():
        if dims and isinstance(dims[0], str) and dims[0] not in seen:
            seen.add(dims[0])
            batch.append(_Knob([dims[0]], _BATCH if len(dims) > 1 else (1, *_SEQUENCE)))
    for dims in inputs.values():
        spatial: dict[tuple[int, ...], list[str]] = {}
        for axis, size in enumerate(dims):
            if isinstance(size, str) and size not in seen:
                seen.add(size)
                usual = _usual_sizes(dims, axis)
                if usual in (_IMAGE, _VOLUME):
                    spatial.setdefault(usual, []).append(size)
                else:
                    others.append(_Knob([size], usual))
        others.extend(_Knob(names, usual) for usual, names in spatial.items())
    return others + batch


def _usual_sizes(dims: Dims, axis: int) -> tuple[int, ...]:
    """Give the sizes that an axis other than the leading one usually has, the likeliest first."""
    last = dims[-1]
    if len(dims) in (4, 5):
        channels = len(dims) - 1 if isinstance(last, int) and last <= 4 else 1
        if axis == channels:
            return _CHANNELS
        return _IMAGE if len(dims) == 4 else _VOLUME
    # A recurrent state, [layers, batch, size], against a sequence, [batch, steps, size]
    state = len(dims) == 3 and axis == 1 and dims[0] != 1 and isinstance(dims[0], int)
    return (*_BATCH, *_SEQUENCE) if state and isinstance(last, int) else _SEQUENCE


def search(base: ShapeWalk, inputs: Mapping[str, Dims], bound: Mapping[str, int]) -> tuple[ShapeWalk, dict[str, int]]:
    """Walk at the first sizes that meet no contradiction, at the usual ones if there are none.

    Where the walk meets one, symbols are varied one by one; what lets it get further is kept.

    Args:
        base: A walk whose inputs have no sizes yet.
        inputs: The dimensions of every input.
        bound: The sizes of symbols that are not free.

    Returns:
        The walk, and the size of every symbol.
    """
    knobs = _knobs(inputs, bound)

    def attempt(picks: Sequence[int]) -> tuple[ShapeWalk, dict[str, int]]:
        symbols = dict(bound)
        for knob, pick in zip(knobs, picks, strict=True):
            symbols.update(dict.fromkeys(knob.names, knob.sizes[pick]))
        sizes = {
            name: tuple(size if isinstance(size, int) else symbols[size] for size in dims)
            for name, dims in inputs.items()
        }
        walk = base.at(sizes)
        walk.run(stop=bool(knobs))
        return walk, symbols

    picks = [0] * len(knobs)
    usual = best = attempt(picks)
    tries = min(_TRIES, _VISITS // max(1, len(base.steps)))
    options = [(i, pick) for i, knob in enumerate(knobs) for pick in range(len(knob.sizes))]
    for i, pick in (options * 2)[:tries]:
        if best[0].conflict is None:
            return best
        if pick != picks[i]:
            trial = [*picks[:i], pick, *picks[i + 1 :]]
            walk, symbols = attempt(trial)
            if walk.conflict is None or walk.conflict.step > best[0].conflict.step:
                best, picks = (walk, symbols), trial
    if best[0].conflict is None:
        return best
    usual[0].run()  # past the contradiction
    return usual
