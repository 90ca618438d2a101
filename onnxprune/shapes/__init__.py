"""Concrete shapes, types and known values of a graph's tensors.

Every symbolic input dimension gets a size (`inputs`, `search`), and onnx infers the whole graph at once, which is fast
but loses track in much shape arithmetic. Then one pass goes over the nodes in order (`walk`). A small node whose inputs
are all known is evaluated on the spot by onnx's reference implementation (`fold`), and outputs that aren't known yet
are inferred by onnx's rule for the one operator, from its inputs' types *and values*. So shape arithmetic (Shape,
Gather, Concat, Reshape...) is resolved before anything reads it, however long its chains are, and the cost stays
linear. Declared shapes (value_info) are often stale: they are not believed unless nothing else is known.

What onnx can't infer is asked of ONNX Runtime (`fallback`): first of the inference rules that it has for operators of
its own, then by running the model once.
"""

from __future__ import annotations

from onnxprune.shapes.fallback import run_for_shapes
from onnxprune.shapes.result import Shapes, concretize, elsewhere

__all__ = ["Shapes", "concretize", "elsewhere", "run_for_shapes"]
