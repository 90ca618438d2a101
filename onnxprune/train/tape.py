"""A graph under construction, in which tensors know their shapes.

What is emitted twice is one node: rules may write a formula out where another rule wrote it before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, TypeProto, defs, helper, numpy_helper
from onnx.shape_inference import infer_node_outputs

from onnxprune.train.tensor import FLOAT, INT64, Shape, Tensor


class Tape:
    """A graph under construction.

    Attributes:
        nodes: the nodes so far, in topological order.
        constants: values of its constants, by name.
        inputs: what is fed, in order.
        still: names of tensors that gradients don't pass.
        opset: the version of ONNX's operators in it.
    """

    def __init__(self, opset: int, ir_version: int = 10) -> None:
        """Start with nothing."""
        self.opset = opset
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, NDArray[Any]] = {}
        self.inputs: list[Tensor] = []
        self.still: set[str] = set()
        self._tensors: dict[str, Tensor] = {}
        self._made: dict[tuple[object, ...], tuple[Tensor, ...]] = {}
        self._opsets = [helper.make_opsetid("", opset)]
        self._ir_version = ir_version
        self._count = 0

    def __getitem__(self, name: str) -> Tensor:
        """Return a tensor by its name."""
        return self._tensors[name]

    def __contains__(self, name: object) -> bool:
        """Tell whether there is a tensor of a name."""
        return name in self._tensors

    def know(self, name: str, shape: Sequence[int], dtype: int) -> Tensor:
        """Note a tensor that something else gives."""
        self._tensors[name] = tensor = Tensor(self, name, tuple(shape), dtype)
        return tensor

    def input(self, name: str, shape: Sequence[int], dtype: int = FLOAT) -> Tensor:
        """Add an input."""
        tensor = self.know(self.unique(name), shape, dtype)
        self.inputs.append(tensor)
        return tensor

    def constant(self, value: NDArray[Any], name: str | None = None) -> Tensor:
        """Add a constant; equal ones without a name of their own are one."""
        key = ("", value.shape, value.dtype.str, value.tobytes()) if name is None else (name,)
        if key not in self._made:
            name = self.unique("constant") if name is None else name
            self.constants[name] = value
            self._made[key] = (self.know(name, value.shape, helper.np_dtype_to_tensor_dtype(value.dtype)),)
        return self._made[key][0]

    def ints(self, values: Sequence[int]) -> Tensor:
        """Add a constant vector of whole numbers."""
        return self.constant(np.array(values, np.int64))

    def held(self, tensor: Tensor) -> Tensor:
        """Return a tensor's value as if it were a constant: gradients don't pass."""
        copy = self.emit("Identity", tensor)
        self.still.add(copy.name)
        return copy

    def emit(self, op_type: str, *inputs: Tensor | None, **attributes: Any) -> Tensor:
        """Append a node with one output."""
        return self.emits(op_type, *inputs, count=1, **attributes)[0]

    def emits(self, op_type: str, *inputs: Tensor | None, count: int, **attributes: Any) -> tuple[Tensor, ...]:
        """Append a node with several outputs, or find the same one."""
        names = tuple("" if t is None else t.name for t in inputs)
        key = (op_type, names, repr(sorted(attributes.items())), count)
        if key not in self._made:
            self._count += 1
            outputs = [f"{op_type}_{self._count}" + (f".{i}" if i else "") for i in range(count)]
            outputs = [self.unique(name) for name in outputs]
            node = helper.make_node(op_type, names, outputs, name=outputs[0], **attributes)
            found = self._infer(node)
            self.nodes.append(node)
            self._made[key] = tuple(self.know(o, *found[o]) for o in outputs)
        return self._made[key]

    def unique(self, name: str) -> str:
        """Return a name that nothing has."""
        candidate = name
        while candidate in self._tensors:
            self._count += 1
            candidate = f"{name}_{self._count}"
        return candidate

    def _infer(self, node: NodeProto) -> dict[str, tuple[Shape, int]]:
        types: dict[str, TypeProto] = {}
        data: dict[str, TensorProto] = {}
        for name in filter(None, node.input):
            tensor = self._tensors[name]
            types[name] = helper.make_tensor_type_proto(tensor.dtype, tensor.shape)
            if name in self.constants and tensor.dtype == INT64:
                data[name] = numpy_helper.from_array(self.constants[name], name)
        schema = defs.get_schema(node.op_type, self.opset, node.domain)
        opsets, version = self._opsets, self._ir_version
        found = infer_node_outputs(schema, node, types, data, opset_imports=opsets, ir_version=version)
        return {name: _shape_and_type(node, name, kind) for name, kind in found.items()}


def _shape_and_type(node: NodeProto, name: str, kind: TypeProto) -> tuple[Shape, int]:
    dims = kind.tensor_type.shape.dim
    assert kind.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims), (
        f"the shape of what {node.op_type} gives isn't known: {name}"
    )
    return tuple(d.dim_value for d in dims), kind.tensor_type.elem_type
