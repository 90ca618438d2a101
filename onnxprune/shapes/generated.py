"""Inputs generated for a model: what its graph does with an input tells which values it takes.

Integers that index a table are below its number of rows, masks are ones, and lengths are sizes of the other inputs.
Whatever remains unknown is drawn, and drawn otherwise if the model can't run on it or gives empty results: a text to
speech model that predicts a duration of 0 frames has nothing to synthesize.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto
from onnx.helper import get_all_tensor_dtypes, tensor_dtype_to_np_dtype
from onnx.numpy_helper import to_array

from onnxprune.errors import ModelError, OnnxPruneError
from onnxprune.model.graph import attributes
from onnxprune.model.session import message_of, session
from onnxprune.runtime.library import import_onnxruntime
from onnxprune.shapes.known import Shape

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

TRIES = 8
"""Number of different ways to draw inputs."""

_MOST_ELEMENTS = 2**28
_FEW = 16  # real numbers that may be parameters
_SECONDS = 30.0  # after which no other inputs are tried

_CARRIERS = {
    *("Cast", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
    *("Concat", "DequantizeLinear", "Split", "Where"),
}
_INDEXED = {"Gather": ((1, 0),), "GatherElements": ((1, 0),), "GatherBlockQuantized": ((1, 0),)}
_EMBEDDED = {
    "EmbedLayerNormalization": ((0, 2), (1, 4), (8, 3)),
    "QEmbedLayerNormalization": ((0, 2), (1, 4)),
}
"""Operators with (input of indices, input with the table)."""

_SIZED_BY_VALUES = {
    *("Compress", "Loop", "NonMaxSuppression", "NonZero", "Range", "Scan", "SequenceAt", "Unique"),
    *("ConstantOfShape", "EfficientNMS_TRT"),
}
_MASK = re.compile(r"mask", re.IGNORECASE)
_LENGTH = re.compile(r"len|num|count|size", re.IGNORECASE)

_SHAPED = {"Expand", "Pad", "Reshape", "Resize", "Squeeze", "Tile", "Unsqueeze", "Upsample"}
"""Operators whose inputs other than the first say what shape the result has."""

Kind = Literal["index", "mask", "length", "shape", "parameter", "choice", "flag", "free"]


@dataclass(frozen=True, slots=True)
class Role:
    """What an input is for.

    Attributes:
        kind: an index into a table, a mask, a length, sizes or axes for an operator, a real parameter (a number or a
            few beside larger inputs, such as scales of a voice), a number that is compared with constants, such as a
            sampling rate, another integer or flag, or real data.
        rows: for an index, the number of rows of the smallest table.
        choices: for a number that is compared with constants, these.
    """

    kind: Kind
    rows: int = 0
    choices: tuple[int, ...] = ()


def roles_of(graph: GraphProto, shapes: Mapping[str, Shape]) -> dict[str, Role]:
    """Return what a graph's inputs are for, as far as nodes of the main graph and names tell."""
    tables = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    numbers = {tensor.name: tensor for tensor in graph.initializer if prod(tensor.dims) == 1}
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        if node.op_type == "Constant" and isinstance(value := attributes(node).get("value"), TensorProto):
            numbers.update({name: value for name in node.output if prod(value.dims) == 1})
        if node.op_type in ("Cast", "DequantizeLinear", "Identity") and node.input and node.input[0] in tables:
            tables.update(dict.fromkeys(node.output, tables[node.input[0]]))
        for name in node.input:
            readers.setdefault(name, []).append(node)
    entries = {entry.name: entry for entry in graph.input if entry.name in shapes}
    real = {name for name, entry in entries.items() if "float" in _dtype(entry.type.tensor_type.elem_type).name}
    whole = {name for name, entry in entries.items() if "int" in _dtype(entry.type.tensor_type.elem_type).name}
    rows = {name: _rows(name, readers, tables) for name in whole}
    few = min(_FEW, max(map(prod, shapes.values()), default=1) - 1)
    found: dict[str, Role] = {}
    for name, entry in entries.items():
        rank = len(entry.type.tensor_type.shape.dim)
        if rows.get(name):
            found[name] = Role("index", rows[name])
        elif name in whole and any(n.op_type in _SHAPED and name in list(n.input)[1:] for n in readers.get(name, ())):
            found[name] = Role("shape")
        elif _MASK.search(name):
            found[name] = Role("mask")
        elif name in whole and rank < 2 and (_LENGTH.search(name) or any(rows.values())):
            found[name] = Role("length")
        elif name in whole and rank < 2 and (choices := _choices(name, readers, numbers)):
            found[name] = Role("choice", choices=choices)
        elif name not in real:
            found[name] = Role("flag")
        else:
            found[name] = Role("parameter" if rank < 2 and prod(shapes[name]) <= few else "free")
    return found


def _rows(name: str, readers: Mapping[str, Sequence[NodeProto]], tables: Mapping[str, Shape]) -> int:
    """Return the number of rows of the smallest table that an input indexes; 0 if there is none."""
    rows = list[int]()
    for tensor, node in _reached(name, readers):
        for index, table in (_INDEXED | _EMBEDDED).get(node.op_type, ()):
            inputs = [*node.input, *[""] * 9]
            if inputs[index] == tensor and tables.get(inputs[table]):
                shape = tables[inputs[table]]
                axis = attributes(node).get("axis", 0) if node.op_type in _INDEXED else 0
                rows.append(shape[axis] if isinstance(axis, int) and -len(shape) <= axis < len(shape) else 0)
    return min((count for count in rows if count > 0), default=0)


def _choices(
    name: str, readers: Mapping[str, Sequence[NodeProto]], numbers: Mapping[str, TensorProto]
) -> tuple[int, ...]:
    """Return the constants that an input is compared with."""
    nodes = (node for _, node in _reached(name, readers) if node.op_type == "Equal")
    found = (numbers[other] for node in nodes for other in node.input if other in numbers)
    return tuple(dict.fromkeys(int(to_array(tensor).item()) for tensor in found))


def _reached(name: str, readers: Mapping[str, Sequence[NodeProto]]) -> Iterator[tuple[str, NodeProto]]:
    """Yield the nodes that read an input, or what passes it on, each with the tensor that it reads."""
    seen, waiting = {name}, [name]
    while waiting:
        tensor = waiting.pop()
        for node in readers.get(tensor, ()):
            yield tensor, node
            if node.op_type in _CARRIERS or (node.op_type == "Gather" and node.input[0] == tensor):
                waiting += [output for output in node.output if output and output not in seen]
                seen.update(node.output)


def generate_inputs(proto: ModelProto, shapes: Mapping[str, Shape], seed: int = 0) -> dict[str, NDArray[Any]]:
    """Draw inputs that fit a model's graph: standard normal floats, indices, lengths, masks of ones.

    Args:
        proto: the model; it isn't run, see `runnable_inputs`.
        shapes: concrete shapes of its inputs.
        seed: seed of the draw.

    Raises:
        ModelError: an input has too many elements (OP127).
    """
    return next(draws(proto, shapes, seed))


def runnable_inputs(proto: ModelProto, shapes: Mapping[str, Shape], seed: int = 0) -> dict[str, NDArray[Any]]:
    """Draw inputs that a model can run on, and for which no output is empty if there are such.

    The model is run only if values can matter: not if all inputs are tensors of real numbers and no size depends on
    them.

    Raises:
        ModelError: an input has too many elements (OP127), or the model runs on none of the inputs tried (OP122).
    """
    return runnable_draw(proto, shapes, seed)[0]


def runnable_draw(proto: ModelProto, shapes: Mapping[str, Shape], seed: int = 0) -> tuple[dict[str, NDArray[Any]], int]:
    """Return what `runnable_inputs` does, and which way to draw it was, as `draw` takes it."""
    first = generate_inputs(proto, shapes, seed)
    roles = roles_of(proto.graph, shapes)
    plain = all(role.kind == "free" for role in roles.values())
    if plain and not any(node.op_type in _SIZED_BY_VALUES for node in proto.graph.node):
        return first, 0
    try:
        opened = session(proto, optimize=False)
    except OnnxPruneError:  # which the caller finds, too
        return first, 0
    found = try_inputs(opened, draws(proto, shapes, seed))
    return found.feeds, found.number


class Trial(NamedTuple):
    """Inputs that a model ran on, what it returned for its outputs in order, and which of the candidates it was."""

    feeds: dict[str, NDArray[Any]]
    outputs: list[Any]
    number: int = 0


def try_inputs(
    opened: InferenceSession, candidates: Iterable[Mapping[str, NDArray[Any]]], *, seconds: float | None = None
) -> Trial:
    """Run a model on the first inputs for which all outputs have elements and are finite, or else on the best ones.

    Args:
        opened: the model.
        candidates: the inputs to try.
        seconds: the limit of each run; by default there is none.

    Raises:
        ModelError: the model runs on none (OP122).
    """
    best: tuple[int, Trial] | None = None
    cause, tried, start = "", 0, monotonic()
    for feeds in candidates:
        tried += 1
        try:
            outputs = _run(opened, feeds, seconds)
        except Exception as error:  # of many kinds
            cause = cause or message_of(error)
        else:
            good = sum(map(_tells, outputs))
            if best is None or good > best[0]:
                best = good, Trial(dict(feeds), outputs, tried - 1)
            if good == len(outputs):
                break
        if monotonic() - start > _SECONDS:
            break
    if best is None:
        names = ", ".join(entry.name for entry in opened.get_inputs())
        hint = f"give arrays that it runs on with `inputs` or `data`, for {names}"
        what = "given inputs" if tried == 1 else f"any of {tried} inputs that were generated"
        raise ModelError("OP122", f"ONNX Runtime can't run the model on {what}: {cause}", hint=hint)
    return best[1]


def _run(opened: InferenceSession, feeds: Mapping[str, NDArray[Any]], seconds: float | None) -> list[Any]:
    options = import_onnxruntime().RunOptions()
    options.log_severity_level = 4
    stop = None if seconds is None else threading.Timer(seconds, setattr, (options, "terminate", True))
    if stop is not None:
        stop.start()
    try:
        return list(opened.run(None, dict(feeds), options))
    finally:
        if stop is not None:
            stop.cancel()


def _tells(value: Any) -> bool:
    """Whether an output has elements, finite ones if they are numbers."""
    if not isinstance(value, np.ndarray):
        return bool(value)
    return value.size > 0 and (value.dtype.kind != "f" or bool(np.isfinite(value).any()))


def draws(proto: ModelProto, shapes: Mapping[str, Shape], seed: int = 0) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield inputs, drawn in several ways; the first is the most likely one.

    Raises:
        ModelError: an input has too many elements (OP127).
    """
    for name, shape in shapes.items():
        check_elements(name, shape)
    roles = roles_of(proto.graph, shapes)
    types = {entry.name: entry.type.tensor_type.elem_type for entry in proto.graph.input}
    lengths = lengths_of(shapes, roles)
    # Sizes that a caller chooses aren't guessed until some fit: what is traced at them would hold for no others.
    for attempt in range(1 if any(role.kind == "shape" for role in roles.values()) else TRIES):
        rng = np.random.default_rng((seed, attempt) if attempt else seed)
        yield {
            name: draw(roles[name], shape, _dtype(types[name]), rng, attempt=attempt, lengths=lengths)
            for name, shape in shapes.items()
        }


def check_elements(name: str, shape: Shape) -> None:
    """Check that an array that is to be generated fits in memory.

    Raises:
        ModelError: it has too many elements (OP127).
    """
    if prod(shape) > _MOST_ELEMENTS:
        sizes = ",".join(map(str, shape))
        cause = f"input {name} has {prod(shape):.2g} elements"
        raise ModelError("OP127", cause, where=f"{name}:{sizes}", hint="give smaller sizes with `input_shapes`")


def lengths_of(shapes: Mapping[str, Shape], roles: Mapping[str, Role]) -> list[int]:
    """Return the sizes that a length may count: axes other than the first, those of indices first."""
    order = sorted(shapes, key=lambda name: roles[name].kind != "index")
    sizes = [size for name in order if len(shapes[name]) > 1 for size in shapes[name][1:]]
    return list(dict.fromkeys(sizes)) or [1]


def draw(
    role: Role,
    shape: Shape,
    dtype: np.dtype[Any],
    rng: np.random.Generator,
    *,
    attempt: int = 0,
    lengths: Sequence[int] = (1,),
) -> NDArray[Any]:
    """Draw an array for an input.

    Args:
        role: what the input is for.
        shape: the array's shape.
        dtype: its type.
        rng: the source of random numbers.
        attempt: which way to draw, from 0; below `TRIES`.
        lengths: the sizes that a length may count.
    """
    if dtype.kind == "O":
        return np.full(shape, "", object)
    values: Any
    if role.kind == "index":
        values = rng.integers(0, role.rows, shape)
    elif role.kind == "mask":
        values = np.ones(shape)
    elif role.kind == "length":
        values = np.full(shape, ([*lengths, 1] * TRIES)[attempt // 2])
    elif role.kind == "choice":
        values = np.full(shape, role.choices[attempt % len(role.choices)])
    elif role.kind in ("flag", "shape"):
        values = rng.integers(0, 2, shape) if attempt % 3 == 0 else np.full(shape, attempt % 3 % 2)
    elif role.kind == "parameter":
        values = rng.uniform(0.5, 1.5, shape) * 2 ** (attempt // 2)  # scales are positive, mostly
    else:
        values = rng.standard_normal(shape) if attempt < TRIES // 2 else rng.random(shape)
    return np.asarray(values).astype(dtype)


@cache
def _dtype(element: int) -> np.dtype[Any]:
    return np.dtype(tensor_dtype_to_np_dtype(element) if element in get_all_tensor_dtypes() else np.float32)
