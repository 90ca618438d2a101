"""Recurrent layers start with zeros, whether they are told so or not."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, numpy_helper

from onnxprune.normalise.draft import Draft, with_inputs

# What a tensor of zeros goes through and stays one.
_MOVEMENTS = frozenset(
    {"Cast", "Expand", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)
_RECURRENT = frozenset({"DynamicQuantizeLSTM", "GRU", "LSTM", "RNN"})


def drop_zero_states(draft: Draft) -> None:
    """No recurrent layer is given an initial state of zeros, which is what it starts with anyway.

    Exporters make one tensor of zeros for all layers of a stack, which would couple their hidden widths.
    """
    zeros: set[str] = set()

    def is_zero(name: str) -> bool:
        return name in zeros or (name in draft.tensors and _all_zero(draft.tensors[name]))

    for index, node in enumerate(draft.nodes):
        moved = node.op_type in _MOVEMENTS and node.input and is_zero(node.input[0])
        filled = node.op_type == "ConstantOfShape" and all(_all_zero(a.t) for a in node.attribute)
        if moved or filled:
            zeros.update(node.output)
        elif node.op_type in _RECURRENT:
            inputs = ["" if i in (5, 6) and is_zero(name) else name for i, name in enumerate(node.input)]
            if inputs != list(node.input):
                draft.nodes[index] = with_inputs(node, inputs)


def _all_zero(tensor: TensorProto) -> bool:
    return not np.asarray(numpy_helper.to_array(tensor)).any()
