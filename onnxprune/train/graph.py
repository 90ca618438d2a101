"""From a tape to a model that ONNX Runtime runs."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import ModelProto, helper, numpy_helper

from onnxprune.train.backward import needed
from onnxprune.train.tape import Tape
from onnxprune.train.tensor import Tensor

_IR_VERSION = 10


def model_of(tape: Tape, outputs: Mapping[str, Tensor], name: str = "step") -> ModelProto:
    """Make a model of what some outputs need.

    Args:
        tape: the graph.
        outputs: tensors by the names that they get as outputs.
        name: the graph's name.
    """
    nodes = needed(tape.nodes, [tensor.name for tensor in outputs.values()])
    nodes += [helper.make_node("Identity", [t.name], [n]) for n, t in outputs.items() if n != t.name]
    read = {n for node in nodes for n in node.input} | {t.name for t in outputs.values()}
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(t.name, t.dtype, t.shape) for t in tape.inputs if t.name in read],
        [helper.make_tensor_value_info(n, t.dtype, t.shape) for n, t in outputs.items()],
        [numpy_helper.from_array(value, n) for n, value in tape.constants.items() if n in read],
    )
    domains = sorted({node.domain for node in nodes} - {"", "ai.onnx"})
    opsets = [helper.make_opsetid("", tape.opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
