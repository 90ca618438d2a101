"""Connected components against a depth-first search."""

from __future__ import annotations

import numpy as np
from hypothesis import given, strategies as st

from onnxprune.channels.ledger import components


@st.composite
def graphs(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    size = draw(st.integers(1, 40))
    node = st.integers(0, size - 1)
    return size, draw(st.lists(st.tuples(node, node), max_size=60))


def search(size: int, edges: list[tuple[int, int]]) -> list[int]:
    """Label every node with the smallest node that it reaches, by depth-first search."""
    label = [-1] * size
    for start in range(size):
        stack = [start] if label[start] < 0 else []
        while stack:
            node = stack.pop()
            if label[node] < 0:
                label[node] = start
                stack += [b for a, b in edges if a == node] + [a for a, b in edges if b == node]
    return label


@given(graphs())
def test_against_a_search(graph: tuple[int, list[tuple[int, int]]]) -> None:
    size, edges = graph
    left, right = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    assert components(size, left, right).tolist() == search(size, edges)


def test_a_long_path() -> None:
    """A path with randomly numbered nodes takes many rounds of hooking."""
    order = np.random.default_rng(0).permutation(20_000)
    assert not components(len(order), order[:-1], order[1:]).any()


def test_edges_are_left_alone() -> None:
    left, right = np.array([3, 1]), np.array([2, 2])
    components(4, left, right)
    assert (left.tolist(), right.tolist()) == ([3, 1], [2, 2])
