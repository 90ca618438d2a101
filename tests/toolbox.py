"""What the tests share: a builder of small graphs, random removals, and an oracle that is not the package's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto, defs, helper, numpy_helper
from onnx.shape_inference import infer_node_outputs

from onnxprune.cost.cost import cost, model_cost
from onnxprune.model.bodies import reopened
from onnxprune.model.session import run, session
from onnxprune.normalize import normalize
from onnxprune.rewrite.difference import difference
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.rewrite.verify import Verification, verify
from onnxprune.shapes import concretize, generate_inputs
from onnxprune.trace import trace
from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.groups import Group
from onnxprune.trace.pruned_graph import PrunedGraph

Mask = NDArray[np.bool_]
Shape = tuple[int, ...]

FLOAT = TensorProto.FLOAT
IR_VERSION = 8


class Net:
    """A graph under construction. Methods that append nodes return the names of their outputs.

    Shapes are inferred by onnx as nodes come, so that a test can ask for them while it builds. Operators whose form
    changed over the opsets have methods of their own, which write the form of the net's opset.
    """

    def __init__(self, opset: int = 17, seed: int = 0, domains: Mapping[str, int] | None = None) -> None:
        self.opset = opset
        self.rng = np.random.default_rng(seed)
        self.domains = {"": opset, **(domains or {})}
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: dict[str, TensorProto] = {}
        self.inputs: list[ValueInfoProto] = []
        self.outputs: list[ValueInfoProto] = []
        self.types: dict[str, onnx.TypeProto] = {}

    def shape(self, name: str) -> Shape:
        return tuple(d.dim_value for d in self.types[name].tensor_type.shape.dim)

    def dtype(self, name: str) -> int:
        return self.types[name].tensor_type.elem_type

    def input(
        self,
        shape: Sequence[int],
        name: str | None = None,
        dtype: int = FLOAT,
        symbols: Mapping[int, str] | None = None,
    ) -> str:
        """Add a graph input; ``symbols`` names the axes whose size the model leaves open."""
        name = name or f"input{len(self.inputs)}"
        declared = [(symbols or {}).get(axis, n) for axis, n in enumerate(shape)]
        self.inputs.append(helper.make_tensor_value_info(name, dtype, declared))
        self._know(name, dtype, shape)
        return name

    def weight(self, *shape: int, name: str | None = None, fan_in: int | None = None) -> str:
        """Add a random float initializer of unit variance times 1 / fan_in."""
        scale = 1 / np.sqrt(fan_in if fan_in is not None else 1)
        return self.const((self.rng.standard_normal(shape) * scale).astype(np.float32), name)

    def between(self, low: float, high: float, *shape: int, name: str | None = None) -> str:
        """Add a random float initializer, uniform between two bounds."""
        return self.const(self.rng.uniform(low, high, shape).astype(np.float32), name)

    def const(self, value: Any, name: str | None = None) -> str:
        """Add an initializer. Python floats become float32, ints int64."""
        array = np.asarray(value)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        name = name or f"const{len(self.tensors)}"
        self.tensors[name] = numpy_helper.from_array(array, name)
        self._know(name, self.tensors[name].data_type, array.shape)
        return name

    def op(self, op_type: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """Add a node with one output."""
        return self.ops(op_type, *inputs, count=1, name=name, **attributes)[0]

    def ops(
        self,
        op_type: str,
        *inputs: str,
        count: int,
        name: str | None = None,
        shapes: Sequence[Sequence[int]] | None = None,
        **attributes: Any,
    ) -> list[str]:
        """Add a node with several outputs; ``shapes`` tells those that onnx can't infer."""
        domain, _, op_type = op_type.rpartition(":")
        self.domains.setdefault(domain, 1)
        name = name or f"{op_type.lower()}{len(self.nodes)}"
        outputs = [f"{name}_out{i}" for i in range(count)]
        node = helper.make_node(op_type, list(inputs), outputs, name=name, domain=domain, **attributes)
        while node.input and not node.input[-1]:
            del node.input[-1]
        self.nodes.append(node)
        for output, shape in zip(outputs, shapes or [()] * count, strict=True):
            self._know(output, self.dtype(inputs[0]) if inputs else FLOAT, shape)
        if defs.has(op_type, self.opset, domain):
            self._infer(node, shapes is not None)
        elif shapes is None:
            self.types[outputs[0]] = self.types[inputs[0]]
        return outputs

    def output(self, name: str, symbols: Mapping[int, str | None] | None = None) -> None:
        """Make a tensor a graph output."""
        declared = [(symbols or {}).get(axis, n) for axis, n in enumerate(self.shape(name))]
        self.outputs.append(helper.make_tensor_value_info(name, self.dtype(name), declared))

    def model(self, check: bool = True) -> ModelProto:
        """Return the model."""
        graph = helper.make_graph(self.nodes, "net", self.inputs, self.outputs, list(self.tensors.values()))
        opsets = [helper.make_opsetid(domain, version) for domain, version in self.domains.items()]
        # The IR version that onnx pairs with the opset, as long as it isn't too old to be written.
        ir_version = max(IR_VERSION, helper.find_min_ir_version_for(opsets[:1], ignore_unknown=True))
        model = helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)
        if check:
            onnx.checker.check_model(model, full_check=True)
        return model

    # Layers and operators whose form depends on the opset.

    def conv(
        self,
        x: str,
        out: int,
        kernel: int | Sequence[int] = 1,
        *,
        name: str | None = None,
        bias: bool = True,
        **attributes: Any,
    ) -> str:
        """Add a convolution with random weights; ``same`` padding by default."""
        channels, rank = self.shape(x)[1], len(self.shape(x)) - 2
        size = [kernel] * rank if isinstance(kernel, int) else list(kernel)
        fan_in = channels // attributes.get("group", 1) * prod(size)
        w = self.weight(out, channels // attributes.get("group", 1), *size, name=name and f"{name}_w", fan_in=fan_in)
        b = [self.weight(out, name=name and f"{name}_b")] if bias else []
        if "auto_pad" not in attributes and "pads" not in attributes:
            dilations = attributes.get("dilations", [1] * rank)
            reach = [d * (k - 1) for d, k in zip(dilations, size, strict=True)]
            attributes["pads"] = [r // 2 for r in reach] + [r - r // 2 for r in reach]
        return self.op("Conv", x, w, *b, name=name, **attributes)

    def linear(self, x: str, out: int, *, name: str | None = None) -> str:
        """Add a MatMul over the last axis with a random weight."""
        features = self.shape(x)[-1]
        return self.op("MatMul", x, self.weight(features, out, name=name and f"{name}_w", fan_in=features), name=name)

    def reshape(self, x: str, target: Sequence[int], **attributes: Any) -> str:
        return self.op("Reshape", x, self.const(np.array(target, np.int64)), **attributes)

    def squeeze(self, x: str, axes: Sequence[int]) -> str:
        return self._axes_op("Squeeze", x, axes, 13)

    def unsqueeze(self, x: str, axes: Sequence[int]) -> str:
        return self._axes_op("Unsqueeze", x, axes, 13)

    def reduce(self, op_type: str, x: str, axes: Sequence[int], *, keepdims: int = 1) -> str:
        return self._axes_op(op_type, x, axes, 13 if op_type == "ReduceSum" else 18, keepdims=keepdims)

    def slice(
        self,
        x: str,
        starts: Sequence[int],
        ends: Sequence[int],
        axes: Sequence[int],
        steps: Sequence[int] | None = None,
    ) -> str:
        if self.opset < 10:
            assert steps is None, "steps came with opset 10"
            return self.op("Slice", x, starts=starts, ends=ends, axes=axes)
        given = [starts, ends, axes] + ([steps] if steps is not None else [])
        return self.op("Slice", x, *(self.const(np.array(v, np.int64)) for v in given))

    def split(self, x: str, sizes: Sequence[int], axis: int, *, implicit: bool = False) -> list[str]:
        """Split an axis; ``implicit`` leaves the (equal) sizes out."""
        count = len(sizes)
        if implicit:
            extra: dict[str, Any] = {"num_outputs": count} if self.opset >= 18 else {}
            return self.ops("Split", x, count=count, axis=axis, **extra)
        if self.opset < 13:
            return self.ops("Split", x, count=count, axis=axis, split=list(sizes))
        return self.ops("Split", x, self.const(np.array(sizes, np.int64)), count=count, axis=axis)

    def pad(self, x: str, pads: Sequence[int], value: float = 0.0, mode: str = "constant") -> str:
        if self.opset < 11:
            return self.op("Pad", x, pads=list(pads), value=value, mode=mode)
        return self.op("Pad", x, self.const(np.array(pads, np.int64)), self.const(value), mode=mode)

    def clip(self, x: str, low: float, high: float) -> str:
        if self.opset < 11:
            return self.op("Clip", x, min=low, max=high)
        return self.op("Clip", x, self.const(low), self.const(high))

    def dropout(self, x: str) -> str:
        if self.opset < 12:
            return self.op("Dropout", x, ratio=0.5)
        return self.op("Dropout", x, self.const(0.5))

    def upsample(self, x: str, factor: int) -> str:
        """Scale the spatial axes up by a whole factor, to the nearest neighbor."""
        shape = self.shape(x)
        scales = self.const(np.array([1, 1, *[factor] * (len(shape) - 2)], np.float32))
        target = [[*shape[:2], *(n * factor for n in shape[2:])]]
        if self.opset < 10:
            return self.ops("Upsample", x, scales, count=1, shapes=target, mode="nearest")[0]
        if self.opset < 11:
            return self.ops("Resize", x, scales, count=1, shapes=target, mode="nearest")[0]
        roi = self.const(np.array([], np.float32))
        inputs = [x, roi if self.opset < 13 else "", scales]
        return self.ops("Resize", *inputs, count=1, shapes=target, mode="nearest")[0]

    def _axes_op(self, op_type: str, x: str, axes: Sequence[int], since: int, **attributes: Any) -> str:
        if self.opset < since:
            return self.op(op_type, x, axes=list(axes), **attributes)
        return self.op(op_type, x, self.const(np.array(axes, np.int64)), **attributes)

    def _know(self, name: str, dtype: int, shape: Sequence[int]) -> None:
        self.types[name] = helper.make_tensor_type_proto(dtype, [int(n) for n in shape])

    def _infer(self, node: onnx.NodeProto, told: bool) -> None:
        schema = defs.get_schema(node.op_type, self.opset, node.domain)
        if not schema.has_type_and_shape_inference_function or node.op_type == "If":
            assert told, f"tell the shapes that {node.op_type} gives"
            if schema.outputs[0].types == {"tensor(bool)"}:
                self.types[node.output[0]].tensor_type.elem_type = TensorProto.BOOL
            return
        types = {n: self.types[n] for n in node.input if n}
        data = {n: self.tensors[n] for n in node.input if n in self.tensors}
        opsets = [helper.make_opsetid("", self.opset)]
        found = infer_node_outputs(schema, node, types, data, opset_imports=opsets, ir_version=IR_VERSION)
        for name in node.output:
            kind = found.get(name, onnx.TypeProto())
            dims = kind.tensor_type.shape.dim
            whole = kind.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims)
            assert whole or told, f"onnx can't infer what {node.op_type} gives: {kind}"
            if whole:
                self.types[name] = kind
            elif kind.tensor_type.elem_type:
                self.types[name].tensor_type.elem_type = kind.tensor_type.elem_type


def analyze(
    proto: ModelProto,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    attention: Literal["heads", "width"] = "heads",
) -> ChannelGraph:
    """Normalize and trace a model."""
    return trace(normalize(proto), input_shapes, attention=attention)


def removal(groups: Iterable[Group], graph: ChannelGraph, rng: np.random.Generator) -> PrunedGraph:
    """Remove random units of each group: at least one set of those that leave together, and never all."""
    removed = np.zeros(len(graph.pinned), dtype=bool)
    for group in groups:
        if len(group.sets) > 1:
            count = rng.integers(1, len(group.sets))
            dealt = group.deal(np.argsort(rng.permutation(len(group.units))).astype(np.float64))
            removed[group.units[dealt[:count]]] = True
    return PrunedGraph(graph, removed)


def swapped(kept: PrunedGraph, rng: np.random.Generator) -> PrunedGraph | None:
    """Exchange one removed unit for one that stays, in a random group: as many are gone, but another one is."""
    choices = []
    for group in kept.graph.groups:
        for kind in np.unique(group.kinds):  # only units of a kind may change places
            units = group.units[np.unique(group.sets[group.kinds == kind])]
            if kept.removed[units].any() and not kept.removed[units].all():
                choices.append(units)
    if not choices:
        return None
    units = choices[rng.integers(len(choices))]
    gone = kept.removed[units]
    other = kept.removed.copy()
    other[rng.choice(units[gone])] = False
    other[rng.choice(units[~gone])] = True
    return kept.without(other)


def zeroed(kept: PrunedGraph) -> ModelProto:
    """Return the original with every removed slice of every initializer set to zero: the oracle in its barest form.

    It holds for exact groups in graphs that divide by no removed channel.
    """
    model = ModelProto()
    model.CopyFrom(kept.graph.proto)
    removed = kept.positions()
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        for axis, positions in removed.get(tensor.name, {}).items():
            groups = kept.graph.per_group.get((tensor.name, axis))
            if groups is None:
                np.moveaxis(array, axis, 0)[positions] = 0
            else:  # counted through the channels of all groups
                blocks = array.reshape(groups, len(array) // groups, *array.shape[1:])
                for group, position in zip(*divmod(positions, array.shape[1]), strict=True):
                    blocks[group, :, position] = 0
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model


def inputs_of(graph: ChannelGraph, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Draw inputs for a traced model."""
    return generate_inputs(graph.proto, graph.shapes.inputs, seed)


def run_once(model: ModelProto, inputs: Mapping[str, NDArray[Any]], *, optimize: bool = False) -> dict[str, Any]:
    """Run a model in ONNX Runtime."""
    return run(session(model, optimize=optimize, threads=1), inputs)


def largest_difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
    """Compare two runs' outputs."""
    assert list(a) == list(b)
    return max((difference(a[name], b[name]) for name in a), default=0.0)


def passes_checker(model: ModelProto) -> bool:
    """Tell whether onnx's full check accepts a model; it refuses deprecated operators that ONNX Runtime runs."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True


def assert_sound(kept: PrunedGraph, pruned: ModelProto) -> None:
    """Check a pruned model without running it: onnx's full check, its interface, and the predicted cost."""
    source = kept.graph.proto
    if passes_checker(source):
        onnx.checker.check_model(pruned, full_check=True)
    assert list(map(str, pruned.graph.input)) == list(map(str, source.graph.input))
    assert list(map(str, pruned.graph.output)) == list(map(str, source.graph.output))
    pruned = reopened(pruned)
    shapes = concretize(pruned, kept.graph.shapes.inputs)
    for node in pruned.graph.node:
        for name in node.output:
            if name and name in kept.graph.shapes.shapes:
                assert shapes.shapes[name] == kept.shape(name), f"{name} of {node.name}"
    assert model_cost(pruned, shapes).totals() == cost(kept).totals()


def assert_proved(
    kept: PrunedGraph, *, optimize: Sequence[bool] = (False, True), tolerance: float | None = None
) -> ModelProto:
    """Rewrite a model and check the result by every means; return it."""
    pruned = rewrite(kept)
    assert_sound(kept, pruned)
    inputs = inputs_of(kept.graph)
    for flag in optimize:
        verdict = verify(kept, pruned, inputs, optimize=flag, tolerance=tolerance)
        assert verdict.passed, failure(kept, verdict)
    return pruned


def failure(kept: PrunedGraph, verdict: Verification) -> str:
    """Describe a failed verification so that it can be reproduced by hand."""
    graph = onnx.printer.to_text(kept.graph.proto.graph)
    return f"{verdict}\nremoved: {kept.positions()}\n{graph}"


def snapshot(graph: ChannelGraph, names: Mapping[str, str] | None = None) -> set[frozenset[Any]]:
    """Return the groups as sets of units, each told by its slices, but for the copies that normalizing made of vectors.

    ``names`` translates those of initializers back. What is left must not depend on the names of nodes, their order,
    or the spelling of constants.
    """
    translate = names or {}

    def unit(index: int) -> frozenset[Any]:
        slices = graph.unit(index).slices
        return frozenset(
            (translate.get(name := s.tensor.partition("::")[0], name), s.axis, tuple(s.positions.tolist()))
            for s in slices
        )

    return {frozenset(unit(int(u)) for u in group.units) for group in graph.groups}
