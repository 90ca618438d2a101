"""Text from the scores of connectionist temporal classification (CTC), and its distance from references."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.data.batch import Array
from onnxprune.errors import DataError

_SYMBOLS = 1 << 20  # most symbols of an alphabet
_BYTES = 1 << 24


def read_alphabet(given: Any) -> tuple[str, ...]:
    """Return an alphabet: a sequence of symbols, or a file with one in each line; an empty line is a space.

    Raises:
        DataError: the file can't be read as text, or is too large (OP710).
    """
    if not isinstance(given, str | Path):
        return tuple(map(str, given))
    try:
        with Path(given).open("rb") as file:
            content = file.read(_BYTES + 1)
        if len(content) > _BYTES:
            raise ValueError(f"it is larger than {_BYTES >> 20} MiB")
        lines = content.decode("utf-8").split("\n")
    except (OSError, ValueError) as error:
        cause = f"can't read the alphabet: {getattr(error, 'strerror', None) or error}"
        raise DataError("OP710", cause, where=str(given)) from error
    lines = [line.rstrip("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
    if not 0 < len(lines) <= _SYMBOLS:
        raise DataError("OP710", f"an alphabet has 1 to {_SYMBOLS} symbols", where=str(given))
    return tuple(line or " " for line in lines)


def greedy(scores: Array, blank: int) -> list[list[int]]:
    """Decode scores [n, time, classes]: the best class at each time, repetitions merged, blanks dropped.

    A. Graves, S. Fernández, F. Gomez and J. Schmidhuber, "Connectionist temporal classification", ICML 2006, section
    3.2, best path decoding.

    Examples:
        >>> greedy(np.eye(3)[[[1, 1, 0, 1, 2]]], blank=0)
        [[1, 1, 2]]
    """
    best = np.where(np.isnan(scores).any(axis=2), blank, scores.argmax(axis=2))
    kept = best != blank
    kept[:, 1:] &= best[:, 1:] != best[:, :-1]
    return [row[keep].tolist() for row, keep in zip(best, kept, strict=True)]


def edits(mine: Sequence[Hashable], reference: Sequence[Hashable]) -> int:
    """Return the fewest insertions, deletions and substitutions that make one sequence of another.

    V. I. Levenshtein, "Binary codes capable of correcting deletions, insertions and reversals" (1966).

    Examples:
        >>> edits("kitten", "sitting")
        3
    """
    names: dict[Hashable, int] = {}
    a, b = (np.array([names.setdefault(s, len(names)) for s in sequence], np.int64) for sequence in (mine, reference))
    steps = np.arange(len(b) + 1)
    row = steps.copy()
    for i, symbol in enumerate(a, 1):
        best = np.empty_like(row)
        best[0] = i
        best[1:] = np.minimum(row[:-1] + (b != symbol), row[1:] + 1)
        row = np.minimum.accumulate(best - steps) + steps  # insertions: best[j] + (k - j) for all j <= k
    return int(row[-1])
