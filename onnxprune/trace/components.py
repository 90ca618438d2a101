"""Connected components of a graph given as pairs of arrays, without a Python loop over its nodes."""

from __future__ import annotations

import numpy as np

from onnxprune.trace.values import Ids


def components(size: int, left: Ids, right: Ids) -> Ids:
    """Label the connected components of the graph with edges ``left[i] -- right[i]``.

    Hooking and pointer jumping (Shiloach and Vishkin, "An O(log n) parallel connectivity algorithm", 1982): every root
    hooks onto its smallest neighbouring root, then all paths are compressed, until no edge joins two roots.

    Args:
        size: number of nodes; edges hold values in ``[0, size)``.
        left: one end of every edge, shape (edges,).
        right: the other end, shape (edges,).

    Returns:
        Shape (size,): for every node the smallest node of its component.
    """
    root = np.arange(size, dtype=np.int64)
    while True:
        a, b = root[left], root[right]
        open_edges = a != b
        if not open_edges.any():
            return root
        left, right, a, b = left[open_edges], right[open_edges], a[open_edges], b[open_edges]
        np.minimum.at(root, np.maximum(a, b), np.minimum(a, b))
        while True:
            jumped = root[root]
            if np.array_equal(jumped, root):
                break
            root = jumped
