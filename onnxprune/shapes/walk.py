"""Visit a graph's nodes in order, and infer the shapes, types and small values of their outputs."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, TypeProto, defs
from onnx.helper import make_tensor_type_proto, tensor_dtype_to_np_dtype
from onnx.shape_inference import infer_node_outputs, infer_shapes

from onnxprune.model.bodies import BODY_INPUTS, carried, close_bodies, in_body, is_body_input, is_open, mark_of, results
from onnxprune.model.file import skeleton
from onnxprune.model.graph import OF_SHAPE, GraphIndex, attributes
from onnxprune.shapes.known import SMALL, Known, NodeStep, Shape, is_tensor, model_of, plain_domain, step_of
from onnxprune.shapes.loops import input_types, output_types, step_count

RANDOM = {
    *("Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike"),
    *("RandomUniform", "RandomUniformLike", BODY_INPUTS),
}
"""Operators whose result differs from run to run, or step to step: neither constant nor worth evaluating."""

_SIZED_BY_DATA = {"Compress", "NonZero", "Unique"}


class Conflict(NamedTuple):
    """The first node whose inputs' shapes contradict each other.

    Attributes:
        step: its position.
        message: how they do.
        factor: for a Reshape to a constant shape, its number of elements by that of the data.
    """

    step: int
    message: str
    factor: Fraction | None = None


class ShapeWalk:
    """A pass over the nodes that can be repeated, at other sizes or when more is known.

    Attributes:
        proto: The model.
        steps: Its nodes.
        known: What the passes have found so far.
        conflict: The first contradiction outside of bodies that the last pass found.
        contradictions: All that it found, by the position of the node.
        failing: The bodies that contradict themselves whenever they run, as `mark_of` names them; "" is the graph.
        chosen: The bodies of Ifs that run, if that is to be assumed.
        inside: The tensors of opened bodies.
    """

    def __init__(self, proto: ModelProto) -> None:
        """Prepare for a model with its nodes in order."""
        self.proto = proto
        self.steps = [step_of(node) for node in proto.graph.node]
        self.known = Known()
        self.conflict: Conflict | None = None
        self.contradictions: dict[int, str] = {}
        self.failing: set[str] = set()
        self.chosen: dict[str, str] = {}
        self._opsets = list(proto.opset_import)
        self._versions = {plain_domain(o.domain): o.version for o in proto.opset_import}
        self._schemas: dict[str, defs.OpSchema | None] = {}
        self._needed = {output.name for output in proto.graph.output}
        self._needed.update(name for step in self.steps for name in step.reads)
        self._entries = {o: i for i, s in enumerate(self.steps) if is_body_input(s.node) for o in s.outputs}
        self._index = GraphIndex(proto.graph)
        self.inside = {o for step in self.steps if in_body(step.node) for o in step.outputs}
        self._shell = _undeclared(proto)
        self.known.learn_initializers(proto.graph)
        for entry in proto.graph.input:
            self.known.types.setdefault(entry.name, entry.type)

    def at(self, inputs: Mapping[str, Shape], *, at_once: bool = True) -> ShapeWalk:
        """Return a copy in which the inputs have these shapes.

        Args:
            inputs: The shapes.
            at_once: Whether onnx infers what it can of the whole graph before the first pass.
        """
        walk = copy.copy(self)
        walk.steps, walk.known = list(self.steps), self.known.copy()
        for entry in self._shell.graph.input:
            if entry.name in inputs:
                element = entry.type.tensor_type.elem_type
                entry.type.CopyFrom(make_tensor_type_proto(element, inputs[entry.name]))
                walk.known.learn(entry.name, entry.type)
        if at_once:
            walk._infer_graph()
        return walk

    def choosing(self, node: str, body: str) -> ShapeWalk:
        """Return a copy after a pass in which this body of an If runs."""
        walk = copy.copy(self)
        walk.known, walk.chosen = self.known.copy(), {**self.chosen, node: body}
        changed: set[str] = set()
        for step in self.steps:
            if step.node.name == node or not changed.isdisjoint(step.reads):
                changed.update(step.outputs)
        walk.known.forget(changed)
        walk.run()
        return walk

    def run(
        self,
        fallback: Mapping[str, TypeProto] | None = None,
        *,
        stop: bool = False,
        adapt: Callable[[NodeStep, Known], NodeStep] | None = None,
    ) -> None:
        """Visit the nodes in order.

        Args:
            fallback: Types for tensors that can't be inferred.
            stop: Whether to stop at the first contradiction.
            adapt: Returns what takes a node's place, from what is known of its inputs; it may add constants.
        """
        self.conflict, self.contradictions, self.failing = None, {}, set()
        fallback = fallback or {}
        known = self.known
        changing: set[str] = set()  # states of Loops whose shape isn't the same at every step
        index = -1
        while (index := index + 1) < len(self.steps):
            step = self.steps[index]
            if adapt is not None:
                step = self.steps[index] = adapt(step, known)
            message = self.mismatch(step)
            if is_body_input(step.node):
                for name, kind in input_types(step.node, known, changing):
                    known.learn(name, kind)
            elif is_open(step.node):
                if (start := self._first_of_loop(step, changing)) is not None:
                    index = start - 1
                    continue
                self._choose_branch(step)
            elif not known.knows(step.outputs):
                message = message or self._infer(step)
            for name in step.outputs if fallback else ():
                if name in fallback and name not in known.shapes and not is_body_input(step.node):
                    known.learn(name, fallback[name])
            self.contradictions.pop(index, None)  # of an earlier pass over a loop
            if message is not None:
                self.contradictions[index] = message
                self.failing.add(mark_of(step.node))
            if message is not None and self.conflict is None and not in_body(step.node):
                factor = self._reshaped(step) if step.operator == "Reshape" else None
                self.conflict = Conflict(index, message, factor)
                if stop:
                    return
            if step.operator not in RANDOM:
                if known.constant.issuperset(step.reads):
                    known.constant.update(step.outputs)
                _fold(self.proto, step, known)

    @property
    def strained(self) -> int:
        """The number of contradictions inside of bodies, which may not run."""
        return sum(in_body(self.steps[index].node) for index in self.contradictions)

    def unknown(self) -> list[str]:
        """List the tensors whose shape isn't known, though something reads them."""
        types = self.known.types
        made = (name for step in self.steps for name in step.outputs if name not in self.known.shapes)
        needed = (name for name in made if name in self._needed)
        return [name for name in needed if name not in types or is_tensor(types[name])]

    def mismatch(self, step: NodeStep) -> str | None:
        """Return how a node's inputs contradict each other, if so, where onnx's inference doesn't check it."""
        if step.operator == "Reshape":
            factor = self._reshaped(step)
            if factor in (None, 1):
                return None
            shapes = self.known.shapes[step.reads[0]], self.known.values[step.reads[1]].tolist()
            return "it can't reshape {} to {}".format(*map(list, shapes))
        if step.operator in ("AveragePool", "Conv", "LpPool", "MaxPool") and (short := self._too_short(step)):
            return short
        if step.operator == "Pad":
            return self._too_short_to_reflect(step)
        if step.operator not in ("Conv", "Gemm"):
            return None
        x, w = (*(self.known.shapes.get(name, ()) for name in step.reads[:2]), (), ())[:2]
        given = attributes(step.node)
        if step.operator == "Gemm" and len(x) == len(w) == 2:
            found, wanted = x[not given.get("transA")], w[bool(given.get("transB"))]
        elif step.operator == "Conv" and len(x) == len(w) > 2:
            found, wanted = x[1], w[1] * given.get("group", 1)
        else:
            return None
        return None if found == wanted else f"it expects {wanted} channels and gets {found}"

    def _reshaped(self, step: NodeStep) -> Fraction | None:
        """Return the number of elements that a Reshape asks for, by the number it gets; None if that can't be told."""
        data, sizes_in = (*step.reads, "", "")[:2]
        shape, target = self.known.shapes.get(data), self.known.values.get(sizes_in)
        if shape is None or target is None or target.ndim != 1 or attributes(step.node).get("allowzero"):
            return None
        sizes = target.tolist()
        if any(size == 0 and axis >= len(shape) for axis, size in enumerate(sizes)):
            return None
        wanted, found = prod(size or shape[axis] for axis, size in enumerate(sizes) if size != -1), prod(shape)
        if wanted <= 0 or found <= 0 or (-1 in sizes and found % wanted == 0):
            return None
        return Fraction(wanted, found)

    def _too_short(self, step: NodeStep) -> str | None:
        """Return how a window is larger than what it slides over, if so; the result would be empty."""
        given, shapes = attributes(step.node), self.known.shapes
        x, weight = (shapes.get(name, ())[2:] for name in (*step.reads, "", "")[:2])
        window = weight if step.operator == "Conv" else given.get("kernel_shape", ())
        pads, dilations = given.get("pads") or [0] * 2 * len(x), given.get("dilations") or [1] * len(x)
        lists = all(isinstance(sizes, list | tuple) for sizes in (window, pads, dilations))
        if not lists or (len(window), len(pads), len(dilations)) != (len(x), 2 * len(x), len(x)):
            return None
        if given.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID", ""):
            return None
        for axis, size in enumerate(x):
            reach = (window[axis] - 1) * dilations[axis] + 1
            if size + pads[axis] + pads[axis + len(x)] < reach:
                return f"a window of {reach} doesn't fit in {size}"
        return None

    def _too_short_to_reflect(self, step: NodeStep) -> str | None:
        """Return how a Pad reflects more positions than an axis has, if so."""
        given, (x, amounts, *_) = attributes(step.node), (*step.reads, "", "")
        shape, pads = self.known.shapes.get(x), self.known.values.get(amounts)
        if given.get("mode") != "reflect" or shape is None or pads is None or len(pads) != 2 * len(shape):
            return None
        for axis, size in enumerate(shape):
            if (most := int(max(pads[axis], pads[axis + len(shape)]))) >= max(size, 1):
                return f"it reflects {most} positions of {size}"
        return None

    def _infer_graph(self) -> None:
        """Infer the whole graph at once, as far as onnx can."""
        try:
            inferred = infer_shapes(self._shell, strict_mode=True, data_prop=True)
        except Exception:  # of many kinds; the walk finds errors node by node
            return
        for entry in (*inferred.graph.value_info, *inferred.graph.output):
            if entry.name not in self.known.shapes and entry.type.WhichOneof("value") is not None:
                self.known.learn(entry.name, entry.type)

    def _first_of_loop(self, step: NodeStep, changing: set[str]) -> int | None:
        """Type the outputs of an opened Loop or Scan; or return where to start again, since states change shape.

        What is known of the body was then found at the shapes of the first step, and is forgotten.
        """
        if step.node.op_type == "If":
            return None
        start, known = self._entries[step.node.input[0]], self.known
        entry = self.steps[start]
        if step.node.op_type == "Loop":
            pairs = [(step.node.input[a], step.node.input[b]) for a, b, _ in carried(step.node)]
            lost = {s for s, r in pairs if s in known.shapes and known.shapes[s] != known.shapes.get(r)}
            if lost:
                changing |= lost
                for inner in self.steps[start : self.steps.index(step, start)]:
                    known.forget(inner.outputs)
                return start
        steps = step_count(entry.node, step.node, known.shapes, known.values, self._source)
        for name, kind in output_types(entry.node, step.node, known, steps):
            known.learn(name, kind)
        return None

    def _source(self, tensor: str) -> str:
        return self._index.source(tensor, ("Identity",))

    def _choose_branch(self, step: NodeStep) -> None:
        """Take the outputs of an opened If from the body that runs, or from those that may if their types agree."""
        if step.node.op_type != "If":
            return
        gives = results(step.node)
        condition = self.known.values.get(step.node.input[0])
        chosen = self.chosen.get(step.node.name)
        if chosen is None and condition is not None:
            chosen = "then_branch" if condition.all() else "else_branch"
        possible = [chosen] if chosen is not None else [b for b in gives if mark_of(step.node, b) not in self.failing]
        if all(mark_of(step.node, body) in self.failing for body in possible):
            self.failing.add(mark_of(step.node))
        gives = {body: gives[body] for body in possible or gives}
        for output, *names in zip(step.node.output, *gives.values(), strict=True):
            kinds = [self.known.types.get(name) for name in names]
            if kinds[0] is not None and all(kind == kinds[0] for kind in kinds):
                self.known.learn(output, kinds[0])
            if len(names) == 1 and names[0] in self.known.values:
                self.known.values[output] = self.known.values[names[0]]

    def _infer(self, step: NodeStep) -> str | None:
        """Infer a node's outputs from its inputs, and return how these contradict each other, if so."""
        known, schema = self.known, self._schema(step)
        if schema is None or not all(name in known.types for name in step.node.input if name):
            return None
        types = {name: known.types[name] for name in step.reads if name in known.types}
        data = {name: known.tensor(name) for name in types if name in known.values}
        version = self.proto.ir_version
        try:
            made = infer_node_outputs(schema, step.node, types, data, None, self._opsets, version)
        except Exception as error:  # onnx's C++ raises many kinds for malformed nodes
            return re.sub(r"\[\w+\] ", "", str(error))
        for name, kind in made.items():
            if kind.WhichOneof("value") is not None:
                known.learn(name, kind)
            if any(d.dim_value < 0 for d in kind.tensor_type.shape.dim):
                return f"the size of {name!r} would be negative"
        return None

    def _schema(self, step: NodeStep) -> defs.OpSchema | None:
        """Return an operator's definition; None if onnx has none."""
        if step.operator not in self._schemas:
            domain = plain_domain(step.node.domain)
            try:
                schema = defs.get_schema(step.node.op_type, self._versions.get(domain, 1), domain)
            except defs.SchemaError:
                schema = None
            self._schemas[step.operator] = schema
        return self._schemas[step.operator]


def _undeclared(proto: ModelProto) -> ModelProto:
    """Return a copy of a model without its weights and without declared shapes other than the inputs'."""
    shell = close_bodies(skeleton(proto))
    del shell.graph.value_info[:]
    for output in shell.graph.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    return shell


def _fold(proto: ModelProto, step: NodeStep, known: Known) -> None:
    """Evaluate a node and store its values, if its inputs are known and its outputs small."""
    feeds = _operands(step, known)
    if feeds is None or step.nested or all(name in known.values for name in step.outputs):
        return
    if not (known.knows(step.outputs) or step.operator in _SIZED_BY_DATA):
        return
    if any(prod(known.shapes.get(name, ())) > SMALL for name in step.outputs):
        return
    for name, value in _evaluate(proto, step, feeds).items():
        element = known.types.get(name, TypeProto()).tensor_type.elem_type
        is_numeric = element not in (TensorProto.UNDEFINED, TensorProto.STRING)
        if not is_numeric or not isinstance(value, (np.ndarray, np.generic)):
            continue
        if known.shapes.setdefault(name, value.shape) == value.shape and value.size <= SMALL:
            known.learn(name, make_tensor_type_proto(element, value.shape))
            known.values[name] = np.asarray(value, tensor_dtype_to_np_dtype(element))


def _operands(step: NodeStep, known: Known) -> dict[str, NDArray[Any]] | None:
    """Return the inputs that a node is evaluated on, or None if they aren't known."""
    if step.operator in OF_SHAPE and known.knows(step.reads):
        zero = np.float32(0)  # the values don't matter, and take no memory
        return {name: np.broadcast_to(zero, known.shapes[name]) for name in step.reads}
    if all(name in known.values for name in step.reads):
        return {name: known.values[name] for name in step.reads}
    return None


def _evaluate(proto: ModelProto, step: NodeStep, feeds: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Run a node on onnx's reference implementation; return nothing if it can't be run."""
    from onnx.reference import ReferenceEvaluator  # slow to import, and often not needed

    model = model_of(proto, [step.node], feeds, step.outputs)
    try:
        with np.errstate(all="ignore"):
            results = ReferenceEvaluator(model).run(None, dict(feeds))
    except Exception:  # a malformed node can raise anything; its value stays unknown
        return {}
    return dict(zip(step.outputs, results, strict=True))
