"""Model-local functions: calls are replaced by their bodies."""

from __future__ import annotations

import onnx.inliner
from onnx import ModelProto, NodeProto

from onnxprune._validate import subgraphs
from onnxprune._wire import copy_without
from onnxprune.errors import ModelError
from onnxprune.model import skeleton
from onnxprune.normalise.draft import Draft

_MAX_INLINED_NODES = 200_000
_MAX_CALL_DEPTH = 50


def inline_functions(draft: Draft, proto: ModelProto) -> None:
    """Calls of model-local functions are replaced by their bodies; no function remains."""
    _check_calls(proto)
    result = skeleton(proto)
    try:
        result = onnx.inliner.inline_local_functions(result)
        if result.functions:  # of another opset than the model's
            result = onnx.inliner.inline_local_functions(result, convert_version=True)
    except Exception as error:
        raise ModelError("OP120", f"functions can't be inlined: {error}") from error
    if result.functions:
        name = result.functions[0].name
        raise ModelError("OP120", "the function can't be inlined", where=f"function {name!r}")
    shell = copy_without(result, "graph")
    shell.graph.CopyFrom(copy_without(result.graph, "node", "initializer", "input"))
    shell.graph.input.extend(proto.graph.input)
    draft.shell, draft.nodes = shell, list(result.graph.node)


def _check_calls(proto: ModelProto) -> None:
    """Refuse functions that never end, or that grow beyond bounds, when they are inlined."""
    bodies = {(f.domain, f.name, f.overload): f for f in proto.functions}
    if len(bodies) < len(proto.functions):
        raise ModelError("OP120", "a function is defined twice")
    sizes: dict[tuple[str, str, str], int] = {}

    def size(node: NodeProto, depth: int) -> int:
        key = (node.domain, node.op_type, node.overload)
        total = 1 + sum(size(inner, depth) for graph in subgraphs(node) for inner in graph.node)
        if key not in bodies:
            return total
        if depth > _MAX_CALL_DEPTH:
            where = f"function {node.op_type!r}"
            raise ModelError("OP120", "the function calls itself, or calls nest too deeply", where=where)
        if key not in sizes:
            sizes[key] = sum(size(inner, depth + 1) for inner in bodies[key].node)
        return total + sizes[key]

    try:
        count = sum(size(node, 0) for node in proto.graph.node)
    except RecursionError as error:
        raise ModelError("OP120", "calls of functions are nested too deeply") from error
    if count > _MAX_INLINED_NODES:
        raise ModelError("OP120", f"inlining the functions would give {count} nodes")
