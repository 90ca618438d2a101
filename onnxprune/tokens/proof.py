"""Prove that a network whose tokens merge computes what the original does with the mean of a block for each token.

The original here is the model as it was, run part by part: at each of the tensors, NumPy puts the mean of its block in
place of every patch. No matrix, number or node of the rewriter's is used, only the plan and the grid of patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.errors import VerificationError
from onnxprune.model.graph import extract
from onnxprune.model.session import run, session
from onnxprune.rewrite.difference import largest_difference
from onnxprune.rewrite.verify import default_tolerance
from onnxprune.tokens.merge import Merged
from onnxprune.tokens.streams import Grid, Stream

Arrays = Mapping[str, NDArray[Any]]


def prove_merged(original: ModelProto, merged: Merged, inputs: Arrays, tolerance: float | None = None) -> float:
    """Return the largest difference from the original with means in place of tokens, relative to an output's largest.

    Args:
        original: the model before.
        merged: the same with tokens that merge.
        inputs: an array for each input.
        tolerance: the largest error allowed; by default that of the proof of a rewriting.

    Raises:
        VerificationError: they differ by more than rounding (OP501).
        ModelError: ONNX Runtime can't run a model (OP122).
    """
    limit = default_tolerance(original) if tolerance is None else tolerance
    given = dict[str, NDArray[Any]]()
    for stream in merged.streams:
        tokens = _computed(original, [stream.tensor], inputs, given)[stream.tensor]
        given[stream.tensor] = averaged(tokens, stream, merged.blocks[stream.tensor])
    expected = _computed(original, [output.name for output in original.graph.output], inputs, given)
    found = run(session(merged.proto, optimize=False), inputs)

    def differs(error: float, name: str) -> VerificationError:
        cause = f"the network isn't the original with means of tokens: relative error {error:.3g} exceeds {limit:.3g}"
        return VerificationError("OP501", cause, where=f'graph output "{name}"')

    return largest_difference(found, expected, limit, differs)


def averaged(tokens: NDArray[Any], stream: Stream, block: Grid) -> NDArray[Any]:
    """Return tokens of which each patch is the mean of its block.

    Args:
        tokens: an array of shape (..., tokens, channels).
        stream: where its patches are.
        block: rows and columns of a block.
    """
    result, (rows, columns) = tokens.copy(), stream.grid
    place = np.argsort(stream.patches)[-rows * columns :].reshape(rows, columns)  # of each patch among the tokens
    for row in range(0, rows, block[0]):
        for column in range(0, columns, block[1]):
            inside = place[row : row + block[0], column : column + block[1]].reshape(-1)
            mean = tokens[..., inside, :].astype(np.float64).mean(-2, keepdims=True)
            result[..., inside, :] = mean.astype(tokens.dtype)
    return result


def _computed(model: ModelProto, names: list[str], inputs: Arrays, given: Arrays) -> dict[str, NDArray[Any]]:
    """Return tensors of a model in which some are given."""
    part = extract(model, names, given)
    needed = {entry.name for entry in part.graph.input}
    return run(session(part, optimize=False), {n: a for n, a in {**inputs, **given}.items() if n in needed})
