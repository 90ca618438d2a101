"""The difference of two values that models output, whatever their kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from onnxprune.model.values import form, is_numeric, leaves, numbers

# An output whose elements are all smaller than this is compared in absolute terms: a Sigmoid near zero is rounded in
# steps of 1e-7 whatever its size, as ONNX Runtime with and without graph optimizations shows.
FLOOR = 1e-2


def difference(a: Any, reference: Any) -> float:
    """Return the largest absolute difference relative to the reference's largest magnitude.

    A reference whose elements are all nearly zero is measured against `FLOOR` instead. Sequences and maps are compared
    element by element. Values of different structure, shape or text differ by infinity, and so does a finite number
    from one that isn't.

    Examples:
        >>> difference([{"cat": 1.5}], [{"cat": 2.0}])
        0.25
    """
    if form(a) != form(reference):
        return float("inf")
    mine, its = dict(leaves(a)), dict(leaves(reference))
    words = [path for path, array in its.items() if not is_numeric(array)]
    if any(mine[path].tolist() != its[path].tolist() for path in words):
        return float("inf")
    x, y = numbers(a), numbers(reference)
    if x.shape != y.shape:
        return float("inf")
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    if same.all():
        return 0.0
    if not (np.isfinite(x) & np.isfinite(y))[~same].all():
        return float("inf")
    scale = np.abs(y[np.isfinite(y)]).max(initial=FLOOR)
    return float(np.abs(x[~same] - y[~same]).max() / scale)


def largest_difference(
    found: Mapping[str, Any], expected: Mapping[str, Any], limit: float, differs: Callable[[float, str], Exception]
) -> float:
    """Return the largest `difference` of outputs, each given by its name.

    Args:
        found: a model's outputs.
        expected: what they are to be.
        limit: the largest difference allowed; the first output above it is an error.
        differs: makes that error of the difference and the output's name.
    """
    worst = 0.0
    for name, reference in expected.items():
        error = difference(found[name], reference)
        if not error <= limit:
            raise differs(error, name)
        worst = max(worst, error)
    return worst
