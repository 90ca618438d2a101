"""Concrete shapes, types and known values of a graph's tensors.

Every symbolic input dimension gets a size, and onnx infers the whole graph at once, which is fast but loses track in
much shape arithmetic. Then one pass goes over the nodes in order. A small node whose inputs are all known is evaluated
on the spot by onnx's reference implementation, and outputs that aren't known yet are inferred by onnx's rule for the
one operator, from its inputs' types *and values*. So shape arithmetic (Shape, Gather, Concat, Reshape...) is resolved
before anything reads it, however long its chains are, and the cost stays linear. Declared shapes (value_info) are
often stale: they are not believed unless nothing else is known.

What onnx can't infer is asked of ONNX Runtime: first of the inference rules that it has for operators of its own, then
by running the model once.
"""

from __future__ import annotations

import copy
import operator
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto, defs
from onnx.helper import make_tensor_type_proto, tensor_dtype_to_np_dtype
from onnx.numpy_helper import from_array, to_array
from onnx.shape_inference import infer_node_outputs, infer_shapes

from onnxprune._runtime import import_onnxruntime, session
from onnxprune._validate import DEFAULT_DOMAINS, captured_names, describe, subgraphs
from onnxprune._wire import copy_without
from onnxprune.errors import ModelError, OnnxPruneError, UsageError
from onnxprune.model import skeleton

Shape = tuple[int, ...]
Dims = tuple[int | str, ...]  # sizes, and the names of symbolic dimensions

_KNOWN = 4096  # values of more elements are weights or data, not shape arithmetic
_RUN_ELEMENTS = 1 << 23  # no inputs larger than this are made up for a run
_RUN_SECONDS = 30.0
_TRIES = 48  # of sizes, and
_VISITS = 200_000  # of nodes during them, bound the search

_RANDOM = {
    *("Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike"),
    *("RandomUniform", "RandomUniformLike"),
}
_SIZED_BY_DATA = {"Compress", "NonZero", "Unique"}
_NAMELESS = {"", "?", "None", "-1"}  # what exporters write time and again for "unknown"

_BATCH = (1, 2, 4, 8)
_CHANNELS = (3, 1, 4, 2)
_IMAGE = (224, 256, 32, 64, 640, 128, 416, 299, 28, 96, 160, 320, 512, 227, 384, 1024)
_VOLUME = (32, 16, 64, 112, 128, 96, 224)
_SEQUENCE = (16, 32, 64, 128, 256, 512, 1024, 2048, 16000)


@dataclass(frozen=True, slots=True)
class Shapes:
    """What is known of a graph's tensors once every input has a size.

    Attributes:
        shapes: The shape of every tensor of the main graph for which it is known.
        types: Element types (`TensorProto.DataType`).
        values: Values of up to 4096 elements: constants, and whatever is computed from constants
            and from the sizes of tensors alone.
        static: The names in `values` that depend on constants only, not on any input's size.
        inputs: The shapes of the real inputs (those that aren't initialisers).
        symbols: The size given to each symbolic dimension; a nameless one is called `input[axis]`.
    """

    shapes: dict[str, Shape]
    types: dict[str, int]
    values: dict[str, NDArray[Any]]
    static: frozenset[str]
    inputs: dict[str, Shape]
    symbols: dict[str, int]


def concretise(proto: ModelProto, input_shapes: Mapping[str, Sequence[int]] | None = None) -> Shapes:
    """Give every input a size and find every tensor's shape, type and, where it is small, value.

    A size given by the user wins; a symbol has the same size everywhere. Else the leading axis gets
    1, and other axes the first of the usual sizes at which the graph's shapes don't contradict each
    other. The search is bounded, and varies one symbol at a time (an image's height and width
    together).

    Args:
        proto: A model with its nodes in order, best a normalised one. It is not changed.
        input_shapes: The shapes of some inputs.

    Returns:
        What is known. Left out are tensors whose shape nobody can tell, such as those made by
        operators that neither onnx nor ONNX Runtime knows.

    Raises:
        ModelError: An input has no declared rank (OP124) or an axis of size zero (OP111), or no
            sizes fit the graph (OP125).
        UsageError: `input_shapes` doesn't fit the model's inputs (OP603).
    """
    declared = _real_inputs(proto.graph)
    walk, symbols = _search(_Walk(proto), *_bind(declared, input_shapes or {}))
    inputs = {name: walk.shapes[name] for name in declared}
    # Without any freedom a contradiction is the model's own, and ONNX Runtime's to judge.
    if walk.conflict and (symbols or input_shapes) and walk.is_refused(walk.conflict):
        raise _misfit(walk.steps[walk.conflict.step], walk.conflict, inputs)
    sources: tuple[Callable[[list[str]], Mapping[str, TypeProto]], ...] = (
        walk.ask_runtime,
        lambda unknown: run_for_shapes(proto, inputs, unknown),
        lambda unknown: _declared_types(proto.graph, symbols, unknown),
    )
    for source in sources:
        if unknown := walk.unknown():
            walk.run(fallback=source(unknown))
    elements = {name: kind.tensor_type.elem_type for name, kind in walk.types.items()}
    return Shapes(
        shapes=walk.shapes,
        types={name: element for name, element in elements.items() if element},
        values=walk.values,
        static=frozenset(walk.constant.intersection(walk.values)),
        inputs=inputs,
        symbols=symbols,
    )


def run_for_shapes(proto: ModelProto, inputs: Mapping[str, Shape], names: Iterable[str]) -> dict[str, TypeProto]:
    """Run a model once in ONNX Runtime on random inputs, to see the types of some of its tensors.

    Args:
        proto: The model. It is not changed.
        inputs: The shapes of its inputs. Floats are drawn from a normal distribution, integers are
            0 or 1.
        names: Tensors of the main graph.

    Returns:
        The types of those that came out as tensors without an axis of size zero (a detector that
        found nothing says nothing about its outputs). Empty if the model can't be run, or not
        within half a minute.
    """
    if sum(map(prod, inputs.values())) > _RUN_ELEMENTS:
        return {}
    model = copy_without(proto, "graph")
    model.graph.CopyFrom(copy_without(proto.graph, "value_info"))  # it may be wrong
    present = {output.name for output in model.graph.output}
    names = list(dict.fromkeys(names))
    model.graph.output.extend(ValueInfoProto(name=n) for n in names if n not in present)
    rng = np.random.default_rng(0)
    try:
        feeds = {
            entry.name: _random(entry.type.tensor_type.elem_type, inputs[entry.name], rng)
            for entry in proto.graph.input
            if entry.name in inputs
        }
        opened = session(model, optimise=False)
        options = import_onnxruntime().RunOptions()
        options.log_severity_level = 4
        stop = threading.Timer(_RUN_SECONDS, setattr, (options, "terminate", True))
        stop.start()
        try:
            arrays = opened.run(names, feeds, options)
        finally:
            stop.cancel()
    except Exception:  # of many kinds, and all mean the same: no shapes, which is no error
        return {}
    entries = {entry.name: entry for entry in opened.get_outputs()}
    return _runtime_types((entries[n], np.shape(a)) for n, a in zip(names, arrays, strict=True))


class _Step(NamedTuple):
    """A node, with what the walk asks of it time and again."""

    node: NodeProto
    operator: str  # preceded by its domain, unless that is onnx's own
    reads: list[str]  # what its subgraphs capture included
    outputs: list[str]
    nested: bool  # whether it has subgraphs


def _step(node: NodeProto) -> _Step:
    nested = any(True for _ in subgraphs(node))
    reads = [name for name in node.input if name]
    if nested:
        reads += sorted(captured_names(node).difference(reads))
    operator = f"{_domain(node.domain)}:{node.op_type}".lstrip(":")
    return _Step(node, operator, reads, [name for name in node.output if name], nested)


class _Conflict(NamedTuple):
    """The first node whose inputs' shapes contradict each other."""

    step: int
    message: str


class _Walk:
    """What is known so far of a graph's tensors, and the pass over its nodes that finds out more.

    Attributes:
        types: Every tensor with a known type, with whatever part of its shape is known.
        shapes: Those whose shape is known in full.
        values: Those whose value is known.
        constant: Those that depend on no input, not even on an input's size.
        conflict: The first contradiction that the last pass met.
    """

    def __init__(self, proto: ModelProto) -> None:
        self.proto = proto
        self.opsets = list(proto.opset_import)
        self.versions = {_domain(o.domain): o.version for o in proto.opset_import}
        self.schemas: dict[str, defs.OpSchema | None] = {}
        self.steps = [_step(node) for node in proto.graph.node]
        self.needed = {output.name for output in proto.graph.output}
        self.needed.update(name for step in self.steps for name in step.reads)
        self.shell = _undeclared(proto)
        self.types: dict[str, TypeProto] = {}
        self.shapes: dict[str, Shape] = {}
        self.values: dict[str, NDArray[Any]] = {}
        self.tensors: dict[str, TensorProto] = {}  # the values, as onnx wants them
        self.constant: set[str] = set()
        self.conflict: _Conflict | None = None
        for tensor in proto.graph.initializer:
            self.learn(tensor.name, make_tensor_type_proto(tensor.data_type, tensor.dims))
            self.constant.add(tensor.name)
            if (
                prod(tensor.dims) <= _KNOWN
                and tensor.data_type != TensorProto.STRING
                and tensor.data_location != TensorProto.EXTERNAL
            ):
                self.values[tensor.name] = to_array(tensor)
                self.tensors[tensor.name] = tensor
        for sparse in proto.graph.sparse_initializer:
            kind = make_tensor_type_proto(sparse.values.data_type, sparse.dims)
            self.learn(sparse.values.name, kind)
            self.constant.add(sparse.values.name)
        for entry in proto.graph.input:
            self.types.setdefault(entry.name, entry.type)

    def at(self, inputs: Mapping[str, Shape]) -> _Walk:
        """Return a copy in which the inputs have these shapes."""
        walk = copy.copy(self)
        walk.types, walk.shapes = self.types.copy(), self.shapes.copy()
        walk.values, walk.tensors = self.values.copy(), self.tensors.copy()
        walk.constant = self.constant.copy()
        for entry in self.shell.graph.input:
            if entry.name in inputs:
                element = entry.type.tensor_type.elem_type
                entry.type.CopyFrom(make_tensor_type_proto(element, inputs[entry.name]))
                walk.learn(entry.name, entry.type)
        walk.infer_graph()
        return walk

    def infer_graph(self) -> None:
        """Infer everything at once, as far as onnx can."""
        try:
            inferred = infer_shapes(self.shell, strict_mode=True, data_prop=True)
        except Exception:  # of many kinds; what is wrong will be found node by node
            return
        for entry in (*inferred.graph.value_info, *inferred.graph.output):
            if entry.name not in self.shapes and entry.type.WhichOneof("value") is not None:
                self.learn(entry.name, entry.type)

    def run(self, fallback: Mapping[str, TypeProto] | None = None, *, stop: bool = False) -> None:
        """Go over the nodes in order.

        Args:
            fallback: Types for tensors that can't be inferred.
            stop: Whether to stop at the first contradiction.
        """
        self.conflict = None
        fallback = fallback or {}
        for index, step in enumerate(self.steps):
            message = self.mismatch(step)
            if not self.knows(step.outputs):
                message = message or self.infer(step)
                for name in step.outputs:
                    if name in fallback and name not in self.shapes:
                        self.learn(name, fallback[name])
            if message is not None and self.conflict is None:
                self.conflict = _Conflict(index, message)
                if stop:
                    return
            if step.operator not in _RANDOM:
                if self.constant.issuperset(step.reads):
                    self.constant.update(step.outputs)
                self.fold(step)

    def knows(self, names: Iterable[str]) -> bool:
        """Whether all these tensors' shapes are known."""
        return all(name in self.shapes for name in names)

    def unknown(self) -> list[str]:
        """List the tensors whose shape isn't known, though something reads them."""
        made = (name for step in self.steps for name in step.outputs if name not in self.shapes)
        needed = (name for name in made if name in self.needed)
        return [name for name in needed if name not in self.types or _is_tensor(self.types[name])]

    def learn(self, name: str, kind: TypeProto) -> None:
        """Note a tensor's type."""
        self.types[name] = kind
        if kind.tensor_type.HasField("shape"):
            dims = kind.tensor_type.shape.dim
            shape = tuple([d.dim_value for d in dims if d.HasField("dim_value")])
            if len(shape) == len(dims):
                self.shapes[name] = shape

    def infer(self, step: _Step) -> str | None:
        """Infer a node's outputs from its inputs; return how these contradict each other, if so."""
        schema = self.schema(step)
        if schema is None or not all(name in self.types for name in step.node.input if name):
            return None
        types = {name: self.types[name] for name in step.reads if name in self.types}
        data = {name: self.tensor(name) for name in types if name in self.values}
        version = self.proto.ir_version
        try:
            made = infer_node_outputs(schema, step.node, types, data, None, self.opsets, version)
        except Exception as error:  # onnx's C++ raises whatever it likes for malformed nodes
            return re.sub(r"\[\w+\] ", "", str(error))
        for name, kind in made.items():
            if name and kind.WhichOneof("value") is not None:
                self.learn(name, kind)
        return None

    def schema(self, step: _Step) -> defs.OpSchema | None:
        """Look up an operator's definition; None if onnx has none."""
        if step.operator not in self.schemas:
            domain = _domain(step.node.domain)
            try:
                schema = defs.get_schema(step.node.op_type, self.versions.get(domain, 1), domain)
            except defs.SchemaError:
                schema = None
            self.schemas[step.operator] = schema
        return self.schemas[step.operator]

    def mismatch(self, step: _Step) -> str | None:
        """Check contracted axes: onnx's inference doesn't, and there a wrong size shows."""
        if step.operator not in ("Conv", "Gemm"):
            return None
        x, w = (*(self.shapes.get(name, ()) for name in step.reads[:2]), (), ())[:2]
        given = {a.name: a.i for a in step.node.attribute}
        if step.operator == "Gemm" and len(x) == len(w) == 2:
            found, wanted = x[not given.get("transA")], w[bool(given.get("transB"))]
        elif step.operator == "Conv" and len(x) == len(w) > 2:
            found, wanted = x[1], w[1] * given.get("group", 1)
        else:
            return None
        return None if found == wanted else f"it expects {wanted} channels and gets {found}"

    def fold(self, step: _Step) -> None:
        """Evaluate a node, if its inputs are known and its outputs small."""
        feeds = self.operands(step)
        if feeds is None or step.nested or all(name in self.values for name in step.outputs):
            return
        if not (self.knows(step.outputs) or step.operator in _SIZED_BY_DATA):
            return
        if any(prod(self.shapes.get(name, ())) > _KNOWN for name in step.outputs):
            return
        for name, value in self.evaluate(step, feeds).items():
            element = self.types.get(name, TypeProto()).tensor_type.elem_type
            is_numeric = element not in (TensorProto.UNDEFINED, TensorProto.STRING)
            if not is_numeric or not isinstance(value, (np.ndarray, np.generic)):
                continue
            if self.shapes.setdefault(name, value.shape) == value.shape and value.size <= _KNOWN:
                self.learn(name, make_tensor_type_proto(element, value.shape))
                self.values[name] = np.asarray(value, tensor_dtype_to_np_dtype(element))

    def operands(self, step: _Step) -> dict[str, NDArray[Any]] | None:
        """Give what is needed to evaluate a node, or None if that isn't known."""
        if step.operator in ("Shape", "Size") and self.knows(step.reads):
            zero = np.float32(0)  # the values don't matter, and take no memory
            return {name: np.broadcast_to(zero, self.shapes[name]) for name in step.reads}
        if all(name in self.values for name in step.reads):
            return {name: self.values[name] for name in step.reads}
        return None

    def evaluate(self, step: _Step, feeds: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """Run a node on onnx's reference implementation; gives nothing if it can't be run."""
        from onnx.reference import ReferenceEvaluator  # slow to import, and often not needed

        model = _model(self.proto, [step.node], feeds, step.outputs)
        try:
            with np.errstate(all="ignore"):
                results = ReferenceEvaluator(model).run(None, dict(feeds))
        except Exception:  # whatever a malformed node provokes; the value is then unknown
            return {}
        return dict(zip(step.outputs, results, strict=True))

    def tensor(self, name: str) -> TensorProto:
        """Give a known value as a TensorProto."""
        if name not in self.tensors:
            self.tensors[name] = from_array(self.values[name], name)
        return self.tensors[name]

    def piece(self, steps: Sequence[_Step], outputs: Sequence[str]) -> ModelProto:
        """Cut some nodes out as a model: what is known of the tensors they read is its input."""
        made = {name for step in steps for name in step.outputs}
        reads = dict.fromkeys(name for step in steps for name in step.reads if name not in made)
        fed = [name for name in reads if name not in self.values]
        model = _model(self.proto, [step.node for step in steps], fed, outputs)
        for entry in model.graph.input:
            entry.type.CopyFrom(self.types.get(entry.name, TypeProto()))
        model.graph.initializer.extend(self.tensor(n) for n in reads if n in self.values)
        return model

    def ask_runtime(self, names: Sequence[str]) -> dict[str, TypeProto]:
        """Have ONNX Runtime infer some tensors' types from what is known; it runs nothing."""
        wanted = set(names)
        steps = [step for step in self.steps if not wanted.isdisjoint(step.outputs)]
        try:
            opened = session(self.piece(steps, names), optimise=False)
        except OnnxPruneError:
            return {}
        # An empty shape may be a scalar's, or that of which nothing is known.
        return _runtime_types((entry, entry.shape) for entry in opened.get_outputs() if entry.shape)

    def is_refused(self, conflict: _Conflict) -> bool:
        """Whether ONNX Runtime sees a contradiction as well, so that the model can't be run."""
        step = self.steps[conflict.step]
        if self.mismatch(step):
            return True
        try:
            session(self.piece([step], step.outputs), optimise=False)
        except OnnxPruneError as error:
            return "InferenceError" in error.cause
        return False


def _undeclared(proto: ModelProto) -> ModelProto:
    """Copy a model without its weights, and without the shapes that it declares but for inputs."""
    shell = skeleton(proto)
    del shell.graph.value_info[:]
    for output in shell.graph.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    return shell


def _model(proto: ModelProto, nodes: Iterable[NodeProto], inputs: Iterable[str], outputs: Iterable[str]) -> ModelProto:
    """Make a model of some of another's nodes."""
    return ModelProto(
        ir_version=max(proto.ir_version, 8),  # from 4 on, initialisers needn't be inputs
        opset_import=proto.opset_import,
        functions=proto.functions,
        graph=GraphProto(
            name="piece",
            node=nodes,
            input=[ValueInfoProto(name=name) for name in inputs],
            output=[ValueInfoProto(name=name) for name in outputs],
        ),
    )


def _real_inputs(graph: GraphProto) -> dict[str, Dims | None]:
    """Give the declared dimensions of the tensors that are fed; None where there are none."""
    given = {tensor.name for tensor in graph.initializer}
    given.update(sparse.values.name for sparse in graph.sparse_initializer)
    inputs: dict[str, Dims | None] = {}
    for entry in graph.input:
        if entry.name in given or not _is_tensor(entry.type):
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
                where=f"declared shape {_text(inputs[entry.name])}",
                hint="export the model with this axis symbolic or with its real size",
            )
    return inputs


def _bind(
    declared: Mapping[str, Dims | None], given: Mapping[str, Sequence[int]]
) -> tuple[dict[str, Dims], dict[str, int]]:
    """Fit the user's shapes to the inputs: every input's dimensions, and the sizes of symbols."""
    for name in given:
        if name not in declared:
            close = get_close_matches(name, declared, 1)
            hint = f'did you mean "{close[0]}"?' if close else f"inputs: {', '.join(declared)}"
            raise UsageError("OP603", f'the model has no input "{name}"', hint=hint)
    dims: dict[str, Dims] = {}
    symbols: dict[str, int] = {}
    for name, shape in declared.items():
        if name in given:
            dims[name] = _fit(name, shape, given[name], symbols)
        elif shape is None:
            raise ModelError(
                "OP124",
                f'input "{name}" has no declared shape',
                hint=f"give it with --input-shape {name}:1,3,224,224 (its own sizes)",
            )
        else:
            dims[name] = shape
    return dims, symbols


def _fit(name: str, shape: Dims | None, given: Sequence[int], symbols: dict[str, int]) -> Shape:
    """Check the shape given for an input, and note the sizes that it gives to symbols."""
    where = f"--input-shape {name}:{','.join(map(str, given))}"
    declared = None if shape is None else f'"{name}" is declared as {_text(shape)}'

    def misfit(cause: str) -> UsageError:
        return UsageError("OP603", cause, where=where, hint=declared)

    try:
        sizes = tuple(operator.index(size) for size in given)
    except TypeError:
        raise misfit("sizes are whole numbers") from None
    if any(size < 1 for size in sizes):
        raise misfit("sizes are positive")
    if shape is None:
        return sizes
    if len(sizes) != len(shape):
        raise misfit(f"{len(sizes)} sizes for {len(shape)} axes")
    for axis, (want, size) in enumerate(zip(shape, sizes, strict=True)):
        fixed = want if isinstance(want, int) else symbols.setdefault(want, size)
        if fixed != size:
            why = "by the model" if isinstance(want, int) else f'by "{want}" in another place'
            raise misfit(f"axis {axis} is fixed at {fixed} {why}, not {size}")
    return sizes


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


def _search(base: _Walk, inputs: Mapping[str, Dims], bound: Mapping[str, int]) -> tuple[_Walk, dict[str, int]]:
    """Walk at the first sizes that meet no contradiction, at the usual ones if there are none.

    Where the walk meets one, symbols are varied one by one; what lets it get further is kept.
    """
    knobs = _knobs(inputs, bound)

    def attempt(picks: Sequence[int]) -> tuple[_Walk, dict[str, int]]:
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


def _misfit(step: _Step, conflict: _Conflict, inputs: Mapping[str, Shape]) -> ModelError:
    first, shape = next(iter(inputs.items()))
    return ModelError(
        "OP125",
        f"shapes contradict each other at {describe(step.node)}: {conflict.message}",
        where="inputs " + ", ".join(f"{name}:{_text(shape)}" for name, shape in inputs.items()),
        hint=f"give sizes that fit: --input-shape {first}:{_text(shape)} with other numbers",
    )


def _declared_types(graph: GraphProto, symbols: Mapping[str, int], names: Iterable[str]) -> dict[str, TypeProto]:
    """Read tensors' types as the model declares them, right or wrong, where they are complete."""
    wanted = set(names)
    types: dict[str, TypeProto] = {}
    for entry in (*graph.value_info, *graph.output):
        kind = entry.type.tensor_type
        if entry.name in wanted and kind.HasField("shape"):
            sizes = [d.dim_value or symbols.get(d.dim_param, 0) for d in kind.shape.dim]
            if all(size > 0 for size in sizes):
                types[entry.name] = make_tensor_type_proto(kind.elem_type, sizes)
    return types


def _runtime_types(found: Iterable[tuple[Any, Sequence[Any]]]) -> dict[str, TypeProto]:
    """Turn a session's outputs and their shapes into types, where they are complete."""
    types: dict[str, TypeProto] = {}
    for entry, shape in found:
        element = re.fullmatch(r"tensor\((\w+)\)", entry.type)
        if element and all(isinstance(size, int) and size > 0 for size in shape):
            number = TensorProto.DataType.Value(element[1].upper())
            types[entry.name] = make_tensor_type_proto(number, shape)
    return types


def _random(element: int, shape: Shape, rng: np.random.Generator) -> NDArray[Any]:
    kind = tensor_dtype_to_np_dtype(element)
    if kind.kind == "O":
        return np.full(shape, "", object)
    values = rng.standard_normal(shape) if kind.kind in "fV" else rng.integers(0, 2, shape)
    return np.asarray(values).astype(kind)


def _is_tensor(kind: TypeProto) -> bool:
    return kind.WhichOneof("value") in ("tensor_type", None)


def _domain(name: str) -> str:
    return "" if name in DEFAULT_DOMAINS else name


def _text(shape: Iterable[object] | None) -> str:
    return ",".join(map(str, shape or ()))
