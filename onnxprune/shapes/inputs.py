"""The sizes of a model's inputs: as declared, as the user gives them, and a search for those of symbolic dimensions."""

from __future__ import annotations

import operator
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from math import inf
from numbers import Integral
from typing import Any, NamedTuple, cast

from numpy.typing import NDArray
from onnx import GraphProto, TensorProto

from onnxprune.errors import ModelError, UsageError
from onnxprune.errors.words import did_you_mean
from onnxprune.shapes.known import Shape, is_tensor
from onnxprune.shapes.walk import Conflict, ShapeWalk

Dims = tuple[int | str, ...]  # sizes, and the names of symbolic dimensions

# Limits of the search: walks, and visits of nodes during all of them.
_TRIES = 48
_STRAINED_TRIES = 16  # if only bodies have contradictions
_VISITS = 200_000

_BATCH = (1, 2, 4, 8)
_CHANNELS = (3, 1, 4, 2)
_IMAGE = (224, 256, 32, 64, 640, 128, 416, 299, 28, 96, 160, 320, 512, 227, 384, 1024)
_VOLUME = (32, 16, 64, 112, 128, 96, 224)
_SEQUENCE = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 16000)
_LENGTH = re.compile(r"seq|len|time|past|frame|token|text|step|total|position", re.IGNORECASE)
_BAKED = 16  # sizes from the graph's own constants that are tried

_WHOLE = (TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL)  # no images
_NAMELESS = {"", "?", "None", "-1"}  # what exporters write for "unknown"


def declared_inputs(graph: GraphProto) -> dict[str, Dims | None]:
    """Return the declared dimensions of the inputs that aren't initializers; None for one without any.

    Raises:
        ModelError: An input has an axis of size zero (OP111).
    """
    given = {tensor.name for tensor in graph.initializer}
    given.update(sparse.values.name for sparse in graph.sparse_initializer)
    inputs: dict[str, Dims | None] = {}
    for entry in graph.input:
        if entry.name in given or not is_tensor(entry.type):
            continue
        kind = entry.type.tensor_type
        inputs[entry.name] = None
        if kind.HasField("shape"):
            inputs[entry.name] = tuple(
                dim.dim_value
                if dim.HasField("dim_value") and dim.dim_value >= 0
                else f"{entry.name}[{axis}]"
                if dim.dim_param in _NAMELESS
                else dim.dim_param
                for axis, dim in enumerate(kind.shape.dim)
            )
        if 0 in (inputs[entry.name] or ()):
            raise ModelError(
                "OP111",
                f'input "{entry.name}" has an axis of size zero',
                where=f"declared shape {shape_text(inputs[entry.name])}",
                hint="export the model with this axis symbolic or with its real size",
            )
    return inputs


def bind(
    declared: Mapping[str, Dims | None], given: Mapping[str, Sequence[int] | int], *, empty: bool = False
) -> tuple[dict[str, Dims], dict[str, int]]:
    """Combine the declared dimensions of inputs with the shapes of inputs and sizes of symbols that the user gives.

    Returns:
        Every input's dimensions, the user's where given, and the sizes of symbols that follow from these.

    Raises:
        ModelError: An input has neither a declared nor a given shape (OP124).
        UsageError: A given shape doesn't fit (OP603).
    """
    known = {symbol: None for shape in declared.values() for symbol in shape or () if isinstance(symbol, str)}
    symbols: dict[str, int] = {}
    shapes: dict[str, Sequence[int]] = {}
    for name, value in given.items():
        symbolic = isinstance(value, Integral)
        names = known if symbolic else declared
        if name not in names:
            what = "symbolic size" if symbolic else "input"
            hint = did_you_mean(name, names, '"') or f"{what}s: {', '.join(names) or 'none'}"
            raise UsageError("OP603", f'the model has no {what} "{name}"', hint=hint)
        if not symbolic:
            shapes[name] = cast("Sequence[int]", value)
        elif cast(int, value) < 1:
            raise UsageError("OP603", "sizes are positive", where=f"input_shapes {name}={value}")
        else:
            symbols[name] = int(cast(int, value))
    dims: dict[str, Dims] = {}
    for name, shape in declared.items():
        if name in shapes:
            dims[name] = _fit(name, shape, shapes[name], symbols, least=0 if empty else 1)
        elif shape is None:
            raise ModelError(
                "OP124",
                f'input "{name}" has no declared shape',
                hint=f"give it with `input_shapes`, for example {name}:1,3,224,224",
            )
        else:
            dims[name] = shape
    return dims, symbols


def sizes_in(
    arrays: Mapping[str, NDArray[Any]], graph: GraphProto, given: Mapping[str, Sequence[int] | int]
) -> dict[str, Sequence[int] | int]:
    """Return the sizes that arrays for a graph's inputs have, in the form that `bind` takes, where none are given.

    Empty axes, such as that of an empty cache, say nothing.
    """
    declared = declared_inputs(graph)
    settled = {symbol for name, dims in declared.items() if name in given for symbol in dims or ()} | set(given)
    found: dict[str, Sequence[int] | int] = {}
    for name, dims in declared.items():
        if name not in arrays or name in given:
            continue
        shape = arrays[name].shape
        if dims is None and 0 not in shape:
            found[name] = shape
        for symbol, size in zip(dims or (), shape, strict=False):
            if isinstance(symbol, str) and symbol not in settled and size:
                found.setdefault(symbol, size)
    return found


def _fit(name: str, shape: Dims | None, given: Sequence[int], symbols: dict[str, int], *, least: int) -> Shape:
    """Check the shape given for an input, and store the sizes of symbols that follow from it."""
    where = f"input_shapes {name}:{shape_text(given)}"
    declared = None if shape is None else f'"{name}" is declared as {shape_text(shape)}'

    def misfit(cause: str) -> UsageError:
        return UsageError("OP603", cause, where=where, hint=declared)

    try:
        sizes = tuple(operator.index(size) for size in given)
    except TypeError:
        raise misfit("sizes are whole numbers") from None
    if any(size < least for size in sizes):
        raise misfit("sizes are positive")
    if shape is None:
        return sizes
    if len(sizes) != len(shape):
        raise misfit(f"{len(sizes)} sizes for {len(shape)} axes")
    for axis, (want, size) in enumerate(zip(shape, sizes, strict=True)):
        fixed = want if isinstance(want, int) else symbols.setdefault(want, size)
        if fixed != size:
            why = "by the model" if isinstance(want, int) else f'by another "{want}"'
            raise misfit(f"axis {axis} is fixed at {fixed} {why}, not {size}")
    return sizes


def shape_text(shape: Iterable[object] | None) -> str:
    """Return a shape as text, the way the command line takes it."""
    return "" if shape is None else ",".join(map(str, shape))


class _FreeSize(NamedTuple):
    """Symbols that get the same size, and the sizes to try."""

    names: list[str]
    sizes: tuple[int, ...]


def _free_sizes(base: ShapeWalk, inputs: Mapping[str, Dims], bound: Mapping[str, int]) -> list[_FreeSize]:
    """Return the sizes that can be varied, the usual value first; batch sizes come last."""
    seen = {*bound, *_sums(inputs)}
    batch: list[_FreeSize] = []
    others: list[_FreeSize] = []
    baked = _baked(base)
    for dims in inputs.values():
        if dims and isinstance(dims[0], str) and dims[0] not in seen:
            seen.add(dims[0])
            batch.append(_FreeSize([dims[0]], _BATCH if len(dims) > 1 else (1, *_SEQUENCE)))
    whole = {e.name for e in base.proto.graph.input if e.type.tensor_type.elem_type in _WHOLE}
    lengths = {size for name, dims in inputs.items() for size in dims[1:] if len(dims) < 4 or name in whole}
    for dims in inputs.values():
        spatial: dict[tuple[int, ...], list[str]] = {}
        for axis, size in enumerate(dims):
            if isinstance(size, str) and size not in seen:
                seen.add(size)
                usual = _usual_sizes(dims, axis, lengths)
                if usual in (_IMAGE, _VOLUME):
                    spatial.setdefault(usual, []).append(size)
                else:
                    others.append(_FreeSize([size], (usual[0], *baked, *usual[1:])))
        others.extend(_FreeSize(names, (*usual, *baked)) for usual, names in spatial.items())
    return others + batch


def _usual_sizes(dims: Dims, axis: int, lengths: Collection[int | str]) -> tuple[int, ...]:
    """Return the usual sizes of an axis other than the first, the most likely one first.

    Args:
        dims: the dimensions of an input.
        axis: the axis.
        lengths: symbols that also occur where no image is.
    """
    last = dims[-1]
    if len(dims) in (4, 5):
        channels = len(dims) - 1 if isinstance(last, int) and last <= 4 else 1
        if axis == channels:
            return _CHANNELS
        sides = [size for i, size in enumerate(dims) if i not in (0, channels)]
        symbolic = [size for size in sides if isinstance(size, str)]
        if any(size in lengths or _LENGTH.search(size.rpartition("[")[0] or size) for size in symbolic):
            return _SEQUENCE
        if len(symbolic) == len(sides) or dims[channels] == 3:
            return _IMAGE if len(dims) == 4 else _VOLUME
    # A recurrent state, [layers, batch, size], as opposed to a sequence, [batch, steps, size]
    state = len(dims) == 3 and axis == 1 and dims[0] != 1 and isinstance(dims[0], int)
    return (*_BATCH, *_SEQUENCE) if state and isinstance(last, int) else _SEQUENCE


def _baked(base: ShapeWalk) -> tuple[int, ...]:
    """Return the sizes in the constants that a graph reshapes and expands to: an exporter may have written a length."""
    values = base.known.values
    reads = (step.reads[1] for step in base.steps if step.operator in ("Reshape", "Expand") and len(step.reads) > 1)
    sizes = (int(size) for name in dict.fromkeys(reads) if name in values for size in values[name].ravel())
    return tuple(dict.fromkeys(size for size in sizes if 1 <= size < 1 << 16))[:_BAKED]


def _sums(inputs: Mapping[str, Dims]) -> dict[str, list[str]]:
    """Return symbols that are sums of others, such as "past_length + length", with their terms."""
    symbols = {size for dims in inputs.values() for size in dims if isinstance(size, str)}
    sums = {symbol: [term.strip(" ()") for term in symbol.split("+")] for symbol in symbols if "+" in symbol}
    plain = symbols.difference(sums)
    return {symbol: terms for symbol, terms in sums.items() if all(t in plain or t.isdecimal() for t in terms)}


def _fit_of(walk: ShapeWalk) -> tuple[float, int]:
    """Return how far a walk gets without a contradiction, and then how few bodies have one: these may never run."""
    return (walk.conflict.step if walk.conflict else inf), -walk.strained


class Found(NamedTuple):
    """The result of a search for sizes.

    Attributes:
        walk: the walk at these sizes.
        symbols: the size of every symbol.
        avoided: the contradiction at the usual sizes, if others were found.
    """

    walk: ShapeWalk
    symbols: dict[str, int]
    avoided: Conflict | None = None


def search(base: ShapeWalk, inputs: Mapping[str, Dims], bound: Mapping[str, int]) -> Found:
    """Walk at the first sizes without a contradiction, or at the usual ones if none are found.

    At a contradiction, symbols are varied one by one; a size with which the walk gets further is kept.

    Args:
        base: A walk whose inputs have no sizes yet.
        inputs: The dimensions of every input.
        bound: The sizes of symbols that aren't free.
    """
    free, sums = _free_sizes(base, inputs, bound), _sums(inputs)

    def attempt(picks: Sequence[int]) -> Found:
        symbols = dict(bound)
        for size, pick in zip(free, picks, strict=True):
            symbols.update(dict.fromkeys(size.names, pick))
        for symbol, terms in sums.items():
            symbols.setdefault(symbol, sum(int(term) if term.isdecimal() else symbols[term] for term in terms))
        sizes = {
            name: tuple(size if isinstance(size, int) else symbols[size] for size in dims)
            for name, dims in inputs.items()
        }
        walk = base.at(sizes)
        walk.run(stop=bool(free))
        return Found(walk, symbols)

    picks = [size.sizes[0] for size in free]
    usual = best = attempt(picks)
    avoided = usual.walk.conflict
    tries = min(_TRIES, _VISITS // max(1, len(base.steps)))
    options = [(i, pick) for i, size in enumerate(free) for pick in dict.fromkeys(size.sizes)]
    factor = avoided and avoided.factor
    led = [(i, int(pick * factor)) for i, pick in enumerate(picks) if factor and (pick * factor).denominator == 1]
    for done, (i, pick) in enumerate((led + options * 2)[:tries]):
        if best.walk.conflict is None and (not best.walk.strained or done >= _STRAINED_TRIES):
            break
        if pick != picks[i]:
            trial = [*picks[:i], pick, *picks[i + 1 :]]
            found = attempt(trial)
            if _fit_of(found.walk) > _fit_of(best.walk):
                best, picks = found, trial
    if best.walk.conflict is None:
        return best._replace(avoided=avoided)
    usual.walk.run()  # past the contradiction
    return usual
