"""Run a model whose states were resized for several steps, each with the states that the last one returned.

The original runs on embedded states: the kept positions have the pruned model's numbers. At the first step the others
are zero. Later they are what the masked original makes of them, and nothing that remains may depend on that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.trace.pruned_graph import PrunedGraph

Arrays = Mapping[str, NDArray[Any]]

STEPS = 4
"""Number of steps of a proof with states."""


def run_steps(
    kept: PrunedGraph, compute: Callable[[Arrays], dict[str, Any]], inputs: Arrays, *, pruned: bool
) -> dict[str, Any]:
    """Run a model on inputs; if it has states that may be resized, for several steps on the same other inputs.

    A cache that grows is cut to its latest positions after each step, so that the other inputs keep their sizes.

    Args:
        kept: the traced original and what was removed from it.
        compute: runs the original, or the pruned model. If states are missing in what it returns, as in that of a part
            of a model, it is run once.
        inputs: an array for each input, with states of the original's size.
        pruned: whether it is the pruned model.

    Returns:
        The outputs by name, those of the steps stacked along a new first axis. Of states, the kept positions.

    Raises:
        ModelError: the model can't be run (OP122).
    """
    states = kept.graph.states
    if not states:
        return compute(inputs)
    fit = kept.cut if pruned else kept.blanked
    entries = {state.input for state in states}
    feeds = {name: fit(name, array) if name in entries else array for name, array in inputs.items()}
    steps = [compute(feeds)]
    if not all(state.output in steps[0] for state in states):
        return steps[0]
    for _ in range(STEPS - 1):
        feeds |= {state.input: _latest(steps[-1][state.output], feeds[state.input].shape) for state in states}
        steps.append(compute(feeds))
    for found, state in product(steps, () if pruned else states):
        found[state.output] = kept.cut(state.output, found[state.output])
    return {name: _stacked([step[name] for step in steps]) for name in steps[0]}


def _latest(array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Return the last positions of an array, as many as a shape has; zeros come first if it has fewer."""
    missing = [(max(n - m, 0), 0) for n, m in zip(shape, array.shape, strict=True)]
    return np.pad(array[tuple(slice(m - min(n, m), None) for n, m in zip(shape, array.shape, strict=True))], missing)


def _stacked(values: list[Any]) -> Any:
    alike = all(isinstance(v, np.ndarray) and v.shape == values[0].shape for v in values)
    return np.stack(values) if alike else values
