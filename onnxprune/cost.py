"""What a model costs: parameters, multiply-accumulates, bytes, activation memory; also before it is rewritten."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import prod

from onnx import ModelProto, NodeProto, TensorProto
from onnx.helper import tensor_dtype_to_np_dtype

from onnxprune.kept import Kept
from onnxprune.macs import ShapeOf, node_macs
from onnxprune.shapes import Shapes
from onnxprune.trace.values import Shape

# Tensors of these types are shapes, indices and flags, neither weights nor activations. Indices may be int32, too, and
# so are the biases of quantised convolutions: too few to matter.
_NOT_DATA = (TensorProto.INT64, TensorProto.BOOL, TensorProto.STRING)
_NOT_WEIGHTS = (*_NOT_DATA, TensorProto.INT32)


@dataclass(frozen=True, slots=True)
class LayerCost:
    """Cost of one node with weights.

    Attributes:
        node: its name.
        op: its operator.
        weight: shape of its largest weight.
        output: shape of its first output.
        params: elements of its weights.
        macs: multiply-accumulates of one run.
    """

    node: str
    op: str
    weight: Shape
    output: Shape
    params: int
    macs: int


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of a model at its concretised input sizes.

    Attributes:
        params: elements of all weights.
        macs: multiply-accumulates of convolutions and matrix products in one run.
        size: bytes of all weights.
        memory: largest number of bytes of activations alive at once, nodes run in order.
        layers: cost of every node with weights.
    """

    params: int
    macs: int
    size: int
    memory: int
    layers: tuple[LayerCost, ...] = ()

    def totals(self) -> dict[str, int]:
        """Return the four totals by name."""
        return {k: v for k, v in asdict(self).items() if k != "layers"}


def cost(kept: Kept) -> Cost:
    """Predict the cost of a traced model without what has left; exactly that of the rewritten model."""
    return _cost(kept.graph.proto, kept.graph.shapes, kept.shape)


def model_cost(proto: ModelProto, shapes: Shapes) -> Cost:
    """Count the cost of a model.

    Args:
        proto: a normalised model.
        shapes: its concretised shapes.
    """
    return _cost(proto, shapes, shapes.shapes.__getitem__)


def _cost(proto: ModelProto, shapes: Shapes, shape: ShapeOf) -> Cost:
    read = {n for node in proto.graph.node for n in node.input} | {o.name for o in proto.graph.output}
    weights = {t.name: t.data_type for t in proto.graph.initializer if is_weight(t) and t.name in read}
    elements = {name: prod(shape(name)) for name in weights}
    layers = []
    for node in proto.graph.node:
        macs = node_macs(node, shape)
        own = [n for n in dict.fromkeys(node.input) if n in weights]
        if macs and own:
            largest = max(own, key=elements.__getitem__)
            params = sum(elements[n] for n in own)
            layers.append(LayerCost(node.name, node.op_type, shape(largest), shape(_made(node)), params, macs))
        elif macs:
            layers.append(LayerCost(node.name, node.op_type, (), shape(_made(node)), 0, macs))
    size = sum(_bytes(elements[n], t) for n, t in weights.items())
    return Cost(
        params=sum(elements.values()),
        macs=sum(layer.macs for layer in layers),
        size=size,
        memory=_peak(proto, shapes, shape),
        layers=tuple(layers),
    )


def _made(node: NodeProto) -> str:
    """Return a node's first output that has a name."""
    return next(name for name in node.output if name)


def is_weight(tensor: TensorProto) -> bool:
    """Whether an initialiser is a weight, and not a shape, an index or a flag."""
    return tensor.data_type not in _NOT_WEIGHTS


def _peak(proto: ModelProto, shapes: Shapes, shape: ShapeOf) -> int:
    """Return the peak of living activations: a tensor lives from the node that makes it to the last that reads it."""
    initialisers = {t.name for t in proto.graph.initializer}
    size = {
        name: _bytes(prod(shape(name)), kind)
        for name, kind in shapes.types.items()
        if kind not in _NOT_DATA and name not in initialisers and name in shapes.shapes
    }
    last = {name: i for i, node in enumerate(proto.graph.node) for name in node.input}
    last |= {o.name: len(proto.graph.node) for o in proto.graph.output}
    dying: dict[int, list[str]] = {}
    for name, i in last.items():
        dying.setdefault(i, []).append(name)
    alive = peak = sum(size.get(i.name, 0) for i in proto.graph.input)
    for i, node in enumerate(proto.graph.node):
        alive += sum(size.get(o, 0) for o in node.output if o in last)
        peak = max(peak, alive)
        alive -= sum(size.get(n, 0) for n in dying.get(i, ()))
    return peak


def _bytes(elements: int, kind: int) -> int:
    if kind in (TensorProto.UINT4, TensorProto.INT4, TensorProto.FLOAT4E2M1):
        return (elements + 1) // 2
    return elements * int(tensor_dtype_to_np_dtype(kind).itemsize)
