"""Concrete shapes, types and known values of a graph's tensors.

Every symbolic input dimension gets a size (`inputs`), and onnx infers the whole graph at once, which is fast but fails
at much shape arithmetic. Then one pass goes over the nodes in order (`walk`). A small node with known inputs is
evaluated by onnx's reference implementation. Outputs that aren't known yet are inferred by onnx's rule for the one
operator, from its inputs' types *and values*. So shape arithmetic (Shape, Gather, Concat, Reshape...) is resolved
before anything reads it, and the cost is linear in the number of nodes. Declared shapes (value_info) are often stale;
they are used only if nothing else is known.

What onnx can't infer comes from ONNX Runtime (`fallback`): from its inference rules for its own operators, or from a
run of the model, on inputs that are given or generated (`generated`).
"""

from __future__ import annotations

from onnxprune.shapes.branches import Branches
from onnxprune.shapes.fallback import run_for_shapes
from onnxprune.shapes.generated import generate_inputs, runnable_inputs
from onnxprune.shapes.result import Shapes, concretize, concretize_otherwise

__all__ = [
    "Branches",
    "Shapes",
    "concretize",
    "concretize_otherwise",
    "generate_inputs",
    "run_for_shapes",
    "runnable_inputs",
]
