"""Inputs for a proof that makes loops take several steps: a single one doesn't show what becomes of their states."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.errors import OnnxPruneError
from onnxprune.model.bodies import is_body_input
from onnxprune.model.graph import attribute
from onnxprune.shapes import Shapes, concretize, runnable_inputs
from onnxprune.shapes.loops import step_counts
from onnxprune.trace.graph import ChannelGraph

_STEPS = (2, 5)  # the fewest, and the most that are drawn


def proof_inputs(graph: ChannelGraph, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Draw inputs of a traced model at the sizes it was traced at, or at such that loops take several steps.

    Args:
        graph: the traced model.
        seed: seed of the draw.

    Raises:
        ModelError: an input has too many elements (OP127).
    """
    proto = graph.proto
    entries = [node for node in proto.graph.node if is_body_input(node)]
    if not entries:
        return runnable_inputs(proto, graph.shapes.inputs, seed)
    rng = np.random.default_rng(seed)
    inputs = runnable_inputs(proto, _sizes(proto, graph.shapes, rng).inputs, seed)
    for entry in entries:
        if attribute(entry, "counters", []):  # a Loop's count and condition
            for name, value in zip(entry.input, (int(rng.integers(*_STEPS, endpoint=True)), True), strict=False):
                if name in inputs:
                    inputs[name] = np.full_like(inputs[name], value)
    return inputs


def _sizes(proto: ModelProto, shapes: Shapes, rng: np.random.Generator) -> Shapes:
    """Return the shapes at sizes of symbolic dimensions at which as many loops as possible take several steps."""
    best, count = shapes, _short(proto, shapes)
    for symbol, size in shapes.symbols.items():
        if count and size < _STEPS[0]:
            larger = {**best.symbols, symbol: int(rng.integers(*_STEPS, endpoint=True))}
            try:
                found = concretize(proto, dict(_inputs(proto, best, larger)))
            except OnnxPruneError:  # the model doesn't fit these sizes
                continue
            if (fewer := _short(proto, found)) < count:
                best, count = found, fewer
    return best


def _inputs(proto: ModelProto, shapes: Shapes, symbols: dict[str, int]) -> Iterator[tuple[str, tuple[int, ...]]]:
    for entry in proto.graph.input:
        if entry.name in shapes.inputs:
            names = [d.dim_param or f"{entry.name}[{a}]" for a, d in enumerate(entry.type.tensor_type.shape.dim)]
            sizes = shapes.inputs[entry.name]
            fixed = [bool(d.dim_value) for d in entry.type.tensor_type.shape.dim] or [True] * len(sizes)
            names = names or [""] * len(sizes)
            yield entry.name, tuple(n if f else symbols.get(s, n) for n, s, f in zip(sizes, names, fixed, strict=True))


def _short(proto: ModelProto, shapes: Shapes) -> int:
    """Return how many loops take fewer steps than are needed, as far as that is known."""
    counts = step_counts(proto.graph, shapes.shapes, shapes.values).values()
    return sum(n is not None and n < _STEPS[0] for n in counts)
