"""Let other weights take over what treats channels one by one, so that their basis may change: see `trace.norms`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from onnxprune.channels.values import Ids
from onnxprune.model.graph import GraphIndex, attribute, names_in, opset_of, reads, unique, with_inputs, with_nodes
from onnxprune.model.tensors import Weights, multiplied, set_tensor
from onnxprune.operators.linear import LinearLayer
from onnxprune.trace.norms import Fold
from onnxprune.trace.streams import Slot, Stream

Array = NDArray[np.float64]

_RMS = 23  # opset from which on RMSNormalization is an operator
_AXES = 18  # opset from which on ReduceMean takes its axes as an input


class Edit:
    """A model under change: weights in float64, and nodes in place of others.

    Attributes:
        arrays: the weights that changed, by name, also new ones.
    """

    def __init__(self, proto: ModelProto) -> None:
        """Take a model. It isn't changed."""
        self.proto, self.tensors = proto, GraphIndex(proto.graph)
        self.arrays: dict[str, Array] = {}
        self._weights, self._taken = Weights(proto), names_in(proto.graph)
        self._constants: dict[str, NDArray[np.generic]] = {}
        self._types: dict[str, np.dtype[np.generic]] = {}
        self._nodes: dict[str, list[NodeProto]] = {}  # in place of the node of that name
        self._renamed: dict[str, str] = {}

    def array(self, name: str) -> Array:
        """Return a weight as it is now."""
        found = self.arrays.get(name)
        return self._weights[name].astype(np.float64) if found is None else found

    def fold(self, streams: Sequence[Stream], summed: Collection[Slot]) -> None:
        """Let other weights take over what treats the channels of streams one by one.

        Args:
            streams: the streams.
            summed: the weight axes of layers that read channels.
        """
        # What writes to streams comes first: shifts that are written to another stream have no mean either then.
        for stream in streams:
            written = {slot: order for slot, order in stream.slots.items() if slot not in summed}
            for fold in stream.folds:
                self._scale(fold, {slot: order for slot, order in written.items() if slot[0] in fold.writers})
            if stream.centered:
                self.multiply(written, np.eye(stream.size)[None] - 1 / stream.size)
        for stream in streams:
            self._fold(stream, {name: (a, order) for (name, a), order in stream.slots.items() if (name, a) in summed})

    def _fold(self, stream: Stream, read: Mapping[str, tuple[int, Ids]]) -> None:
        for fold in stream.folds:
            for layer in fold.readers:
                axis, order = read[layer.weight]
                if fold.shift is not None:
                    name, positions = fold.shift
                    weight = np.moveaxis(self.array(layer.weight), axis, -1)[..., order[0, 0]]
                    self._add(layer, (weight @ self.array(name).ravel()[positions]).ravel())
                self._scale(fold, {(layer.weight, axis): order})
            if fold.scale is not None:
                self.arrays[fold.scale[0]] = np.ones(self._weights.shape(fold.scale[0]))
            self._replace(fold)

    def multiply(self, slots: Mapping[Slot, Ids], matrices: Array) -> None:
        """Multiply weights along axes by matrices, see `multiplied`."""
        for (name, axis), positions in slots.items():
            self.arrays[name] = multiplied(self.array(name), axis, positions, matrices)

    def _scale(self, fold: Fold, slots: Mapping[Slot, Ids]) -> None:
        """Multiply weights by a fold's scale."""
        if fold.scale is not None:
            name, positions = fold.scale
            self.multiply(slots, np.diag(self.array(name).ravel()[positions])[None])

    def _add(self, layer: LinearLayer, vector: Array) -> None:
        """Add a number to each output of a layer."""
        behind = self.tensors.only_reader(layer.y)
        names = [layer.bias] if layer.bias else []
        if behind is not None and behind.op_type == "Add":
            names += [name for name in behind.input if name != layer.y]
        for name in names:
            if name in self.tensors.initializers and self.tensors.uses[name] == 1:
                shape = self._weights.shape(name)
                if prod(shape) == len(vector) and (not layer.channels_last or shape[-1] == len(vector)):
                    self.arrays[name] = self.array(name) + vector.reshape(shape)
                    return
        bias = unique(f"{layer.weight}_shift", self._taken)
        self._types[bias] = self._weights.dtype(layer.weight)
        if layer.node.op_type in ("Conv", "Gemm") and not layer.bias:
            self.arrays[bias] = vector
            self._nodes[layer.node.name] = [with_inputs(layer.node, [*layer.node.input[:2], bias])]
            return
        rank = 1 if layer.channels_last else 1 + len(layer.kernel)
        self.arrays[bias] = vector.reshape(-1, *[1] * (rank - 1))
        plain = NodeProto()
        plain.CopyFrom(layer.node)
        plain.output[0] = unique(f"{layer.y}_unshifted", self._taken)
        added = helper.make_node("Add", [plain.output[0], bias], [layer.y], name=bias)
        self._nodes[layer.node.name] = [plain, added]

    def _replace(self, fold: Fold) -> None:
        node = fold.node
        if fold.add is not None:
            self._nodes[fold.add.name] = []
            self._renamed[fold.add.output[0]] = node.output[0]
        if fold.writers:
            self._nodes[node.name] = []
            self._renamed[node.output[0]] = next(name for name in node.input if name not in fold.own)
        if not fold.centers:
            return
        if node.op_type == "Sub":
            self._nodes[node.name] = []
            self._renamed[node.output[0]] = node.input[0]
            mean = self.tensors.makers[node.input[1]]
            self._nodes[mean.name] = []
        else:
            self._nodes[node.name] = list(self._root_mean_square(node))

    def _root_mean_square(self, node: NodeProto) -> Iterator[NodeProto]:
        """Yield nodes that divide by the root of the mean square; ONNX Runtime fuses them."""
        epsilon, (x, scale) = attribute(node, "epsilon", 1e-5), node.input[:2]
        opset, dtype = opset_of(self.proto), self._weights.dtype(node.input[1])
        if opset >= _RMS:
            yield helper.make_node("RMSNormalization", [x, scale], node.output[:1], node.name, axis=-1, epsilon=epsilon)
            return

        def name(what: str) -> str:
            return unique(f"{node.name}_{what}", self._taken)

        def constant(what: str, value: NDArray[np.generic]) -> str:
            made = name(what)
            self._constants[made] = value
            return made

        def emit(operator: str, *inputs: str, **attributes: Any) -> NodeProto:
            made = name(operator.lower())
            return helper.make_node(operator, inputs, [made], made, **attributes)

        two, tiny = constant("two", np.array(2, dtype)), constant("epsilon", np.array(epsilon, dtype))
        yield (square := emit("Pow", x, two))
        if opset >= _AXES:
            mean = emit("ReduceMean", square.output[0], constant("axes", np.array([-1])), keepdims=1)
        else:
            mean = emit("ReduceMean", square.output[0], axes=[-1], keepdims=1)
        yield mean
        yield (more := emit("Add", mean.output[0], tiny))
        yield (root := emit("Sqrt", more.output[0]))
        yield (divided := emit("Div", x, root.output[0]))
        yield helper.make_node("Mul", [divided.output[0], scale], node.output[:1], node.name)

    def model(self) -> ModelProto:
        """Return the changed model."""
        nodes = [made for node in self.proto.graph.node for made in self._nodes.get(node.name, [node])]
        if self._renamed:
            nodes = [with_inputs(node, map(self._final, node.input)) for node in nodes]
        read = {*self.tensors.outputs, *(name for node in nodes for name in reads(node))}
        dropped = {name for name in self.tensors.readers if name not in read} if self._nodes else set()
        kept = [t for t in self.proto.graph.initializer if t.name not in self.arrays and t.name not in dropped]
        order = {t.name: i for i, t in enumerate(self.proto.graph.initializer)}
        proto = with_nodes(self.proto, nodes, kept)
        for name, array in self.arrays.items():
            if name not in dropped:
                dtype = self._types.get(name) or self._weights.dtype(name)
                set_tensor(proto.graph.initializer.add(name=name), np.ascontiguousarray(array.astype(dtype)))
        proto.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in self._constants.items())
        proto.graph.initializer.sort(key=lambda t: order.get(t.name, len(order)))
        return proto

    def _final(self, name: str) -> str:
        while name in self._renamed:
            name = self._renamed[name]
        return name
