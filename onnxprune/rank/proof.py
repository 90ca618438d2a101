"""Prove that a network some of whose layers are two computes what the original does with a weight of that rank.

The original here is the model as it was, one weight after the other replaced by the product that the two layers are to
have. That product is formed from the weights as ONNX stores them, and must be as near to the old weight as any of its
rank is: the rest is what the smaller singular values are (C. Eckart and G. Young, "The approximation of one matrix by
another of lower rank", Psychometrika, 1936). No number of the rewriter's is used but the two weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from onnxprune.errors import VerificationError
from onnxprune.model.session import run, session
from onnxprune.model.tensors import set_tensor
from onnxprune.rank.factors import Factored
from onnxprune.rewrite.difference import largest_difference
from onnxprune.rewrite.verify import default_tolerance

Arrays = Mapping[str, NDArray[Any]]
Matrix = NDArray[np.float64]

_SLACK = 1e-3  # of the rest of a weight, relative to the weight: float16 rounds both factors


def prove_factored(original: ModelProto, factored: Factored, inputs: Arrays, tolerance: float | None = None) -> float:
    """Return the largest difference from the original with weights of lower rank, relative to an output's largest.

    Args:
        original: the model before.
        factored: the same with layers in two.
        inputs: an array for each input.
        tolerance: the largest error allowed; by default that of the proof of a rewriting.

    Raises:
        VerificationError: they differ by more than rounding, or a weight isn't the nearest of its rank (OP501).
        ModelError: ONNX Runtime can't run a model (OP122).
    """
    limit = default_tolerance(original) if tolerance is None else tolerance
    lowered = ModelProto()
    lowered.CopyFrom(original)
    stored = {t.name: t for t in lowered.graph.initializer}
    made = {t.name: numpy_helper.to_array(t) for t in factored.proto.graph.initializer}
    old = {node.name: node for node in original.graph.node}
    new = {node.name: node for node in factored.proto.graph.node}
    for name, rank in factored.ranks.items():
        tensor = stored[old[name].input[1]]
        weight = numpy_helper.to_array(tensor)
        pair = (new[factored.firsts[name]], new[name])
        left, right = _as_matrix(made[pair[1].input[1]], pair[1]), _as_matrix(made[pair[0].input[1]], pair[0])
        product, whole = right @ left, _as_matrix(weight, old[name])
        if left.shape[0] != rank:
            raise _differs(f"{left.shape[0]} channels are between the two layers, not {rank}", name)
        sizes = np.linalg.svd(whole, compute_uv=False)
        apart, least = np.linalg.norm(whole - product), np.sqrt(np.square(sizes[rank:]).sum())
        if not abs(apart - least) <= _SLACK * max(float(sizes[0]), 1e-30):
            raise _differs(f"the weight is off by {apart:.4g}, and the nearest of rank {rank} by {least:.4g}", name)
        set_tensor(tensor, _from_matrix(product, weight, old[name]))
    expected, found = (run(session(model, optimize=False), inputs) for model in (lowered, factored.proto))

    def differs(error: float, name: str) -> VerificationError:
        cause = f"the relative error of output {name!r} is {error:.3g}, more than {limit:.3g}"
        return VerificationError("OP501", f"layers in two aren't those of lower rank: {cause}")

    return largest_difference(found, expected, limit, differs)


def _differs(cause: str, name: str) -> VerificationError:
    return VerificationError("OP501", f"two layers aren't the one of lower rank: {cause}", where=f'node "{name}"')


def _order(node: NodeProto, rank: int) -> list[int]:
    """Return the axes of a stored weight in the order inputs, kernel, outputs."""
    if node.op_type == "Conv":
        return [*range(1, rank), 0]
    if node.op_type == "ConvTranspose":
        return [0, *range(2, rank), 1]
    swapped = any(a.name == "transB" and a.i for a in node.attribute)
    if node.op_type == "Einsum":
        left, _, output = node.attribute[0].s.decode().replace(" ", "").partition("->")
        swapped = left.split(",")[1][0] == output[-1]
    return [1, 0] if swapped else [0, 1]


def _as_matrix(weight: NDArray[Any], node: NodeProto) -> Matrix:
    """Return a stored weight as a matrix, inputs first."""
    moved = weight.astype(np.float64).transpose(_order(node, weight.ndim))
    return np.asarray(moved.reshape(-1, moved.shape[-1]))


def _from_matrix(matrix: Matrix, like: NDArray[Any], node: NodeProto) -> NDArray[Any]:
    order = _order(node, like.ndim)
    shape = [like.shape[axis] for axis in order]
    return np.ascontiguousarray(matrix.reshape(shape).transpose(np.argsort(order)), dtype=like.dtype)
