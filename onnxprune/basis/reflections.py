"""Orthogonal matrices as text: Householder reflections in float16, whose product is orthogonal whatever they are.

Column i of the matrix is the product of all reflections applied to the unit vector i; reflection i leaves the first i
coordinates alone. (A. Householder, "Unitary triangularization of a nonsymmetric matrix", J. ACM 5, 1958.)
"""

from __future__ import annotations

import base64
from math import isqrt

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


def as_text(directions: Matrix) -> str:
    """Return the reflections that turn the unit vectors into directions, up to their signs and a rounding to float16.

    Args:
        directions: linearly independent columns, shape (n, n). Of each only the part that is orthogonal to those before
            it counts.
    """
    below = np.linalg.qr(directions, mode="raw")[0].T  # LAPACK's reflections: 1 on the diagonal, these numbers below it
    numbers = below[_below(len(directions))].astype("<f2")
    return base64.b64encode(numbers.tobytes()).decode()


def from_text(text: str) -> Matrix:
    """Return the orthogonal matrix that a text stands for, shape (n, n).

    Raises:
        ValueError: the text is none that `as_text` returns.
    """
    data = base64.b64decode(text, validate=True)
    size = (1 + isqrt(1 + 4 * len(data))) // 2
    if size * (size - 1) != len(data):
        raise ValueError(f"{len(data)} bytes are no reflections")
    numbers = np.frombuffer(data, "<f2").astype(np.float64)
    if not np.isfinite(numbers).all():
        raise ValueError("reflections with numbers that aren't finite")
    vectors = np.eye(size)
    vectors[_below(size)] = numbers
    matrix = np.eye(size)
    for i in range(size - 2, -1, -1):
        vector = vectors[i:, i]
        matrix[i:] -= np.outer(2 / (vector @ vector) * vector, vector @ matrix[i:])
    return matrix


def all_as_text(directions: Matrix) -> str:
    """Return several matrices of reflections as text, those of each head of an attention.

    Args:
        directions: shape (heads, n, n), see `as_text`.
    """
    return ",".join(map(as_text, directions))


def all_from_text(text: str) -> Matrix:
    """Return the orthogonal matrices that a text stands for, shape (heads, n, n).

    Raises:
        ValueError: the text is none that `all_as_text` returns.
    """
    return np.stack([from_text(part) for part in text.split(",")])


def _below(size: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    return np.tril_indices(size, -1)
