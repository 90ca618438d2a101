"""Layers for the builders. Each appends nodes to a graph under construction."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import ModelProto, shape_inference

from models.fill import fill

OPSET = 17
IR_VERSION = 8
BATCH = "N"


@dataclass(frozen=True, slots=True)
class Feature:
    """A feature map [N, channels, ...] in the graph."""

    tensor: gs.Variable
    channels: int


class Network:
    """A graph under construction; its weights are drawn by `build`."""

    def __init__(self, name: str) -> None:
        """Start an empty graph called `name`."""
        self._graph = gs.Graph(name=name, opset=OPSET)
        self._count: Counter[str] = Counter()
        self._shapes: dict[tuple[int, ...], gs.Constant] = {}

    def input(self, name: str, channels: int, size: int) -> Feature:
        """Add an input of square images: [N, channels, size, size]."""
        tensor = gs.Variable(name, np.float32, (BATCH, channels, size, size))
        self._graph.inputs.append(tensor)
        return Feature(tensor, channels)

    def output(self, name: str, x: Feature) -> None:
        """Make `x` an output called `name`."""
        x.tensor.name = name
        x.tensor.dtype = np.dtype(np.float32)
        self._graph.outputs.append(x.tensor)

    def build(self, seed: int) -> ModelProto:
        """Return the model, with random weights that keep its activations near one."""
        model = gs.export_onnx(self._graph)
        model.ir_version = IR_VERSION
        model = shape_inference.infer_shapes(fill(model, seed), strict_mode=True)
        # Shape inference loses the name of the batch size at Resize; there is no other symbol.
        for value in (*model.graph.output, *model.graph.value_info):
            value.type.tensor_type.shape.dim[0].dim_param = BATCH
        return model

    def conv(
        self,
        x: Feature,
        channels: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        *,
        bias: bool = False,
    ) -> Feature:
        """Add a convolution, padded so that stride 1 keeps the size."""
        name = self._name("Conv")
        weights = [self._weight(f"{name}.weight", channels, x.channels // groups, kernel, kernel)]
        if bias:
            weights.append(self._weight(f"{name}.bias", channels))
        attributes = {
            "kernel_shape": [kernel, kernel],
            "strides": [stride, stride],
            "pads": [kernel // 2] * 4,
            "group": groups,
        }
        return Feature(self._node("Conv", [x.tensor, *weights], attributes, name), channels)

    def batch_norm(self, x: Feature) -> Feature:
        """Add batch normalization by running statistics."""
        name = self._name("BatchNormalization")
        parts = ("scale", "bias", "mean", "var")
        weights = [self._weight(f"{name}.{part}", x.channels) for part in parts]
        tensor = self._node("BatchNormalization", [x.tensor, *weights], {"epsilon": 1e-5}, name)
        return Feature(tensor, x.channels)

    def relu(self, x: Feature) -> Feature:
        """Add ReLU: max(x, 0)."""
        return Feature(self._node("Relu", [x.tensor]), x.channels)

    def relu6(self, x: Feature) -> Feature:
        """Add ReLU6: Clip between the constants 0 and 6."""
        name = self._name("Clip")
        bounds = [
            gs.Constant(f"{name}.{bound}", np.array(value, np.float32)) for bound, value in (("min", 0), ("max", 6))
        ]
        return Feature(self._node("Clip", [x.tensor, *bounds], name=name), x.channels)

    def silu(self, x: Feature) -> Feature:
        """Add SiLU: x * sigmoid(x)."""
        gate = self._node("Sigmoid", [x.tensor])
        return Feature(self._node("Mul", [x.tensor, gate]), x.channels)

    def add(self, a: Feature, b: Feature) -> Feature:
        """Add two feature maps of the same shape."""
        return Feature(self._node("Add", [a.tensor, b.tensor]), a.channels)

    def concat(self, *xs: Feature) -> Feature:
        """Concatenate feature maps along the channels."""
        tensor = self._node("Concat", [x.tensor for x in xs], {"axis": 1})
        return Feature(tensor, sum(x.channels for x in xs))

    def halves(self, x: Feature) -> tuple[Feature, Feature]:
        """Split a feature map into halves along the channels."""
        name = self._name("Split")
        half = x.channels // 2
        outputs = [gs.Variable(f"{name}.{part}") for part in range(2)]
        sizes = gs.Constant(f"{name}.sizes", np.array([half, half], np.int64))
        self._graph.nodes.append(gs.Node("Split", name, {"axis": 1}, [x.tensor, sizes], outputs))
        return Feature(outputs[0], half), Feature(outputs[1], half)

    def max_pool(self, x: Feature, kernel: int, stride: int) -> Feature:
        """Add max pooling, padded so that stride 1 keeps the size."""
        attributes = {
            "kernel_shape": [kernel, kernel],
            "strides": [stride, stride],
            "pads": [kernel // 2] * 4,
        }
        return Feature(self._node("MaxPool", [x.tensor], attributes), x.channels)

    def average_pool(self, x: Feature, kernel: int) -> Feature:
        """Add average pooling over windows that don't overlap."""
        attributes = {"kernel_shape": [kernel, kernel], "strides": [kernel, kernel]}
        return Feature(self._node("AveragePool", [x.tensor], attributes), x.channels)

    def upsample(self, x: Feature) -> Feature:
        """Double the size by nearest neighbor."""
        name = self._name("Resize")
        scales = gs.Constant(f"{name}.scales", np.array([1, 1, 2, 2], np.float32))
        attributes = {
            "mode": "nearest",
            "nearest_mode": "floor",
            "coordinate_transformation_mode": "asymmetric",
        }
        inputs = [x.tensor, gs.Variable.empty(), scales]
        return Feature(self._node("Resize", inputs, attributes, name), x.channels)

    def classifier(self, x: Feature, classes: int) -> Feature:
        """Add global average pooling and a fully connected layer: [N, classes]."""
        pooled = self._node("GlobalAveragePool", [x.tensor])
        flat = self._node("Flatten", [pooled], {"axis": 1})
        name = self._name("Gemm")
        weight = self._weight(f"{name}.weight", classes, x.channels)
        bias = self._weight(f"{name}.bias", classes)
        return Feature(self._node("Gemm", [flat, weight, bias], {"transB": 1}, name), classes)

    def _name(self, op: str) -> str:
        self._count[op] += 1
        return f"{op}_{self._count[op] - 1}"

    def _weight(self, name: str, *shape: int) -> gs.Variable:
        """Add a weight as a ConstantOfShape node; `fill` replaces it by values."""
        if shape not in self._shapes:
            values = np.array(shape, np.int64)
            self._shapes[shape] = gs.Constant("shape_" + "x".join(map(str, shape)), values)
        weight = gs.Variable(name)
        self._graph.nodes.append(gs.Node("ConstantOfShape", name, inputs=[self._shapes[shape]], outputs=[weight]))
        return weight

    def _node(
        self,
        op: str,
        inputs: list[gs.Tensor],
        attributes: dict[str, Any] | None = None,
        name: str | None = None,
    ) -> gs.Variable:
        name = name or self._name(op)
        output = gs.Variable(f"{name}.out")
        self._graph.nodes.append(gs.Node(op, name, attributes, inputs, [output]))
        return output
