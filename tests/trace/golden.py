"""Read golden lines: one operator, and the channel groups that it must have.

    Concat(x[1,c4,5,5], y[1,c6,5,5], axis=1) -> [1,c10,5,5]: 4 x out, 6 y out

The operator stands between producers (one for each operand that has a channel axis) and consumers (one for each
output that has one): convolutions or matrix products over that axis, called by the operand's name and "out".

- ``x[1,c4,5,5]``: a tensor computed from a graph input, the axis with a ``c`` its channels. The letter tells the type:
  ``x y z`` float, ``s`` float in (0, 1), ``g`` float above 1, ``p q`` bool, ``i j`` int32, ``k l`` int64, ``u v``
  uint8. Without a channel axis it is a graph input.
- ``{6,4,3,3}``: a float initializer; ``int8(6,4)``: one of small integers. ``[1,2]``, ``0.5``, ``int32([1,2])``:
  constants. ``None``: an input that isn't given.
- ``key=value``: attributes; ``body`` and the branches of If in onnx's notation. ``Clip@6``: the opset, 21 by default.
  ``_``: an output that nobody reads; ``int32[1,c4]``: one of another type than the first input, where onnx can't tell.
- ``=>`` instead of ``->``: the shapes are declared, for onnx and ONNX Runtime can't infer them.
- After the colon the groups, ``~4x2 x op out``: ``~`` for approximate, the number of units, their width if it isn't 1
  (``4/2``: units that leave two at a time, one of each group), and the nodes whose weights they slice; and the codes of
  the pins that the operator sets.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, defs, helper

from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.groups import Group
from tests.toolbox import FLOAT, Net

_KINDS = {
    **dict.fromkeys("xyzsg", FLOAT),
    **dict.fromkeys("pq", TensorProto.BOOL),
    **dict.fromkeys("ij", TensorProto.INT32),
    **dict.fromkeys("uv", TensorProto.UINT8),
    **dict.fromkeys("kl", TensorProto.INT64),
}


@dataclass(frozen=True)
class Golden:
    """A parsed line."""

    text: str
    operator: str
    opset: int
    call: ast.Call
    outputs: tuple[ast.expr, ...]
    expected: tuple[str, ...]
    declared: bool = False

    def __str__(self) -> str:
        return self.text.partition(" => " if self.declared else " -> ")[0]


def parse(line: str) -> Golden:
    """Parse a golden line."""
    declared = " => " in line  # in value_info
    left, _, right = line.partition(" => " if declared else " -> ")
    shapes, _, expected = right.partition(":")
    match = re.fullmatch(r"([\w.:]+?)(?:@(\d+))?(\(.*\))", left.strip())
    assert match, line
    call = ast.parse(f"op{match[3]}", mode="eval").body
    outputs = ast.parse(f"[{shapes}]", mode="eval").body
    assert isinstance(call, ast.Call)
    assert isinstance(outputs, ast.List)
    words = tuple(sorted(w.strip() for w in expected.split(",") if w.strip()))
    return Golden(line, match[1], int(match[2] or 21), call, tuple(outputs.elts), words, declared)


def build(golden: Golden) -> ModelProto:
    """Build the model of a golden line."""
    domain = golden.operator.rpartition(":")[0]
    net = Net(opset=golden.opset, seed=1, domains={domain: 1} if domain else None)
    operands = [_operand(net, node) for node in golden.call.args]
    attributes = {k.arg: _attribute(k.arg, ast.literal_eval(k.value)) for k in golden.call.keywords if k.arg}
    types = [np.dtype(ast.unparse(o.value)) if isinstance(o, ast.Subscript) else None for o in golden.outputs]
    places = [o.slice if isinstance(o, ast.Subscript) else o for o in golden.outputs]
    shapes = [[0] if isinstance(o, ast.Name) else _axes(o)[0] for o in places]
    results = net.ops(golden.operator, *operands, count=len(shapes), name="op", shapes=shapes, **attributes)
    operator = net.nodes[-1]
    for index, (result, dtype, output) in enumerate(zip(results, types, places, strict=True)):
        if isinstance(output, ast.Name):  # unread
            operator.output[index] = ""
        else:
            shape, axis = _axes(output)
            if dtype is not None:
                net.types[result].tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(dtype)
            assert net.shape(result) == tuple(shape), f"{golden.text}: {net.shape(result)}"
            if axis is not None and not any(isinstance(a, ast.Subscript) for a in golden.call.args):
                result = net.op("Add", result, _produce(net, "z", shape, axis))  # a network needs data
            _consume(net, result, axis, f"out{index or ''}")
    known = not domain and defs.has(golden.operator, golden.opset)
    model = net.model(check=known and not defs.get_schema(golden.operator, golden.opset, "").deprecated)
    if golden.declared:
        model.graph.value_info.extend(
            helper.make_tensor_value_info(result, FLOAT, shape) for result, shape in zip(results, shapes, strict=True)
        )
    return model


def _attribute(name: str, value: object) -> object:
    return onnx.parser.parse_graph(value) if name in ("body", "then_branch", "else_branch") else value


def found(graph: ChannelGraph) -> tuple[str, ...]:
    """Describe a traced graph as golden lines do."""
    codes = {pin.code for _, pin in graph.ledger.pins if '"op"' in pin.node}
    return tuple(sorted([*map(_group, graph.groups), *codes]))


def _group(group: Group) -> str:
    width = f"x{group.width}" if group.width > 1 else ""
    size = f"/{group.sets.shape[1]}" if group.sets.shape[1] > 1 else ""
    return f"{'' if group.exact else '~'}{len(group.units)}{width}{size} {' '.join(group.nodes)}"


def _axes(node: ast.expr) -> tuple[list[int], int | None]:
    """Return a shape and which of its axes is marked."""
    elements = node.elts if isinstance(node, ast.List | ast.Tuple | ast.Set) else [node]
    shape: list[int] = []
    marked = None
    for axis, element in enumerate(elements):
        if isinstance(element, ast.Name):
            assert element.id[0] == "c"
            assert marked is None, "one channel axis for each tensor"
            marked = axis
            shape.append(int(element.id[1:]))
        else:
            shape.append(ast.literal_eval(element))
    return shape, marked


def _operand(net: Net, node: ast.expr) -> str:
    if isinstance(node, ast.Subscript):
        assert isinstance(node.value, ast.Name)
        shape, axis = _axes(node.slice)
        return _produce(net, node.value.id, shape, axis)
    if isinstance(node, ast.Set):
        shape, _ = _axes(node)
        return net.weight(*shape)
    if isinstance(node, ast.Call):
        assert isinstance(node.func, ast.Name)
        shape = [ast.literal_eval(a) for a in node.args]
        if node.args and isinstance(node.args[0], ast.List):
            return net.const(np.array(shape[0], node.func.id))
        return net.const(net.rng.integers(0, 9, shape).astype(node.func.id))
    value = ast.literal_eval(node)
    return "" if value is None else net.const(np.array(value) if value != [] else np.array([], np.int64))


def _produce(net: Net, name: str, shape: list[int], axis: int | None) -> str:
    kind = _KINDS[name]
    if axis is None:
        return net.input(shape, f"in_{name}", kind)
    source = net.input([3 if a == axis else n for a, n in enumerate(shape)], f"in_{name}")
    made = _over(net, source, axis, shape[axis], name)
    if name == "s":
        return net.op("Sigmoid", made)
    if name == "g":
        return net.op("Add", net.op("Exp", made), net.const(1.0))
    if kind == FLOAT:
        return made
    if kind in (TensorProto.BOOL, TensorProto.UINT8):
        made = net.op("Relu", net.op("Mul", made, net.const(2.0)))
    return net.op("Cast", made, to=kind)


def _consume(net: Net, result: str, axis: int | None, name: str) -> None:
    if net.dtype(result) != FLOAT:
        result = net.op("Cast", result, to=FLOAT)
    net.output(result if axis is None else _over(net, result, axis, 2, name))


def _over(net: Net, x: str, axis: int, out: int, name: str) -> str:
    """Contract an axis with a random weight, by a convolution if it is that of a convolution's channels."""
    rank = len(net.shape(x))
    if axis == 1 and rank > 2:
        return net.conv(x, out, name=name)
    if axis == rank - 1:
        return net.linear(x, out, name=name)
    perm = [a for a in range(rank) if a != axis] + [axis]
    y = net.linear(net.op("Transpose", x, perm=perm), out, name=name)
    return net.op("Transpose", y, perm=np.argsort(perm).tolist())
