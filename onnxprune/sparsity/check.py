"""Check a sparse model against the dense one that it was made from, by other code than made it.

Zeros are counted on the tensors as ONNX stores them, output by output, and not on the matrices that were solved.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.errors import PlanError, VerificationError
from onnxprune.model.metadata import sparse_weights
from onnxprune.model.tensors import Weights, with_weights
from onnxprune.model.wire import copy_without
from onnxprune.recover.layers import LinearLayer, find_layers
from onnxprune.rewrite.comparison import compare_outputs
from onnxprune.settings.sparsity import Pattern


def check(
    dense: ModelProto,
    sparse: ModelProto,
    solved: Mapping[str, NDArray[Any]],
    least: Mapping[str, int],
) -> None:
    """Check that a sparse model is the dense one with the weights that were solved for, and has its zeros.

    Args:
        dense: the model before.
        sparse: the model that is to be written.
        solved: the values that were solved for, by initializer.
        least: how many zeros each sparse weight must have.

    Raises:
        VerificationError: something else than these initializers changed, one isn't what was solved for, or its zeros
            aren't in the pattern (OP511).
    """
    frames = [copy_without(m.graph, "initializer").SerializeToString(deterministic=True) for m in (dense, sparse)]
    if frames[0] != frames[1]:
        raise VerificationError("OP511", "something else than weights changed")
    before, after = ({t.name: t for t in m.graph.initializer} for m in (dense, sparse))
    if list(before) != list(after):
        raise VerificationError("OP511", "initializers were added, removed or moved")
    weights = Weights(sparse)
    for name, tensor in after.items():
        if name in solved:
            stored = weights[name]
            same = stored.dtype == solved[name].dtype and np.array_equal(stored, solved[name])
        else:
            same = tensor.SerializeToString(deterministic=True) == before[name].SerializeToString(deterministic=True)
        if not same:
            raise VerificationError("OP511", "an initializer isn't what was solved for", where=f'"{name}"')
    for name, wrong in broken(sparse).items():
        raise VerificationError("OP511", wrong, where=f'"{name}"')
    for name, zeros in least.items():
        if weights[name].size - np.count_nonzero(weights[name]) < zeros:
            raise VerificationError("OP511", f"fewer than {zeros} weights are zero", where=f'"{name}"')


def check_outputs(
    dense: ModelProto, sparse: ModelProto, solved: Mapping[str, NDArray[Any]], feeds: Mapping[str, NDArray[Any]]
) -> None:
    """Check that a sparse model's outputs are those of the dense one with the weights that were solved for.

    Args:
        dense: the model before.
        sparse: the model that is to be written.
        solved: the values that were solved for, by initializer.
        feeds: inputs.

    Raises:
        VerificationError: they differ (OP501).
        ModelError: ONNX Runtime can't run a model.
    """
    present = {tensor.name for tensor in dense.graph.initializer}
    same = with_weights(dense, {name: array for name, array in solved.items() if name in present})
    apart = compare_outputs(same, sparse, feeds)
    worst = max((d.difference for d in apart), default=0.0)
    if worst > 0 or not all(d.sound for d in apart):
        raise VerificationError("OP501", f"outputs differ by {worst:.3g} from the dense model with the same weights")


def broken(model: ModelProto) -> dict[str, str]:
    """Return the weights that are noted to be sparse but whose zeros aren't in the pattern, each with what is wrong."""
    found, weights = dict[str, str](), Weights(model)
    layers = {layer.weight: layer for layer in find_layers(model)}
    for name, text in sparse_weights(model).items():
        try:
            pattern = Pattern.read(text)
        except PlanError as error:
            found[name] = error.cause
            continue
        wrong = _wrong(pattern, layers[name], weights[name]) if name in layers else "no layer has this weight"
        if wrong is not None:
            found[name] = wrong
    return found


def _wrong(pattern: Pattern, layer: LinearLayer, weight: NDArray[Any]) -> str | None:
    """Return what is wrong with a weight's zeros; None if they are in the pattern."""
    owners = np.broadcast_to(layer.outputs(weight.shape), weight.shape)
    taps = prod(layer.kernel)
    outputs = [weight[owners == o].reshape(-1, taps) for o in range(int(owners.max()) + 1)]  # channels x taps
    if pattern.of:
        for o, own in enumerate(outputs):
            for first in range(0, len(own), pattern.of):
                most = int(np.count_nonzero(own[first : first + pattern.of], axis=0).max())
                if most > pattern.keep:
                    return f"{most} of {pattern.of} weights in a row differ from zero, at output {o}"
        return None
    return None if any((own == 0).any() for own in outputs) else "no weight is zero"
