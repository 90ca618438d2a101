"""Weights in blocks of a few bits."""

from __future__ import annotations

from onnxprune._names import unique
from onnxprune._wire import copy_without
from onnxprune.normalise.draft import Draft, names_of, with_inputs


def unflatten_scales(draft: Draft) -> None:
    """Scales and zero points of weights in blocks of a few bits have an axis for rows and one for blocks."""
    taken = {*names_of(draft.nodes), *draft.tensors}
    for index, node in enumerate(draft.nodes):
        if node.op_type != "MatMulNBits":
            continue
        rows = next((a.i for a in node.attribute if a.name == "N"), 0)
        inputs = list(node.input)
        for place in (2, 3):
            tensor = draft.tensors.get(inputs[place]) if place < len(inputs) else None
            if tensor is not None and len(tensor.dims) == 1 and rows and tensor.dims[0] % rows == 0:
                inputs[place] = unique(f"{inputs[place]}::rows", taken)
                split = copy_without(tensor, "dims")
                split.dims.extend([rows, tensor.dims[0] // rows])
                draft.tensors[inputs[place]] = split
        if inputs != node.input:
            draft.nodes[index] = with_inputs(node, inputs)
