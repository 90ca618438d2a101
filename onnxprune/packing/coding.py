"""How numbers become streams that compress well, and the other way round.

Bytes of one kind go together: the masks of all tensors of a part into one stream, their indices into another. A file is
cut into pieces, and a piece is coded in one of these ways, all of them exact:

- bytes as they are: everything that isn't numbers;
- numbers, one stream for each of their bytes: the bytes with sign and exponent repeat, those of the mantissa don't;
- indices into the table of the piece's different numbers, if these are few;
- a bit for each number that says whether it is zero, and one of the two ways before for the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Take = Callable[[str, int], Bytes]

WIDTHS = (1, 2, 4, 8, 16)
MOST_VALUES = 256
_KINDS: Mapping[int, np.dtype[Any]] = {
    width: np.dtype(name) for width, name in zip(WIDTHS, ("u1", "<u2", "<u4", "<u8", "V16"), strict=True)
}
_SAMPLE = 4096
_ZEROS = {1: 0.25}  # the share of zeros from which a mask pays, by width
_ZEROS_ELSE = 0.02


class Piece(NamedTuple):
    """A piece of a file and how it is coded.

    Attributes:
        width: bytes of a number; 0 for bytes as they are.
        number: how many numbers, or bytes.
        filled: how many of them aren't zero, if there is a mask; else all.
        values: the number of different values, if there is a table; else 0.
    """

    width: int
    number: int
    filled: int
    values: int

    @property
    def size(self) -> int:
        """The number of bytes."""
        return self.number * max(self.width, 1)

    @property
    def masked(self) -> bool:
        """Whether there is a bit for each number that says whether it is zero."""
        return self.filled < self.number

    @property
    def bits(self) -> int:
        """The bits of an index into the table: 1, 2, 4 or 8."""
        return next(bits for bits in (1, 2, 4, 8) if self.values <= 1 << bits)

    def streams(self) -> Mapping[str, int]:
        """Return how many bytes the piece takes from each stream."""
        if not self.width:
            return {"bytes": self.number}
        found = {"mask": -(-self.number // 8)} if self.masked else {}
        if self.values:
            found[f"table/{self.width}"] = self.values * self.width
            return {**found, f"index/{self.bits}": -(-self.filled * self.bits // 8)}
        return found | {f"number/{self.width}/{i}": self.filled for i in range(self.width)}

    def fits(self) -> bool:
        """Whether the fields can be those of a piece."""
        known = self.width in (0, *WIDTHS) and 0 <= self.filled <= self.number and 0 <= self.values <= MOST_VALUES
        return known and (self.width > 0 or (self.filled == self.number and not self.values))


def sizes(pieces: list[Piece]) -> dict[str, int]:
    """Return the bytes of each stream that some pieces are made from, by name in order."""
    total: Counter[str] = Counter()
    for piece in pieces:
        total.update(piece.streams())
    return dict(sorted(total.items()))


def coded(data: Bytes, width: int) -> tuple[Piece, dict[str, Bytes]]:
    """Return bytes as a piece, and what it adds to each stream.

    Args:
        data: the bytes.
        width: bytes of a number, which divides their length; 0 if they aren't numbers.
    """
    if width not in WIDTHS:
        return Piece(0, len(data), len(data), 0), {"bytes": data}
    numbers = data.view(_KINDS[width])
    filled = numbers != np.zeros((), numbers.dtype) if width < 16 else np.ones(len(numbers), bool)
    some = int(filled.sum())
    if len(numbers) - some < max(1.0, _ZEROS.get(width, _ZEROS_ELSE) * len(numbers)):
        some, rest = len(numbers), numbers
    else:
        rest = numbers[filled]
    table, index = _table(rest) if width > 1 else (None, None)
    piece = Piece(width, len(numbers), some, 0 if table is None else len(table))
    parts: dict[str, Bytes] = {}
    if piece.masked:
        parts["mask"] = np.packbits(filled)
    if table is not None and index is not None:
        parts[f"table/{width}"] = table.view(np.uint8)
        parts[f"index/{piece.bits}"] = _narrow(index, piece.bits)
    else:
        planes = rest.view(np.uint8).reshape(-1, width)
        parts |= {f"number/{width}/{i}": np.ascontiguousarray(planes[:, i]) for i in range(width)}
    return piece, parts


def decoded(piece: Piece, take: Take) -> Bytes:
    """Return the bytes of a piece.

    Args:
        piece: the piece.
        take: returns the next bytes of a stream.

    Raises:
        ValueError: the streams contradict the piece.
    """
    width = piece.width
    if not width:
        return take("bytes", piece.number)
    parts = {name: take(name, size) for name, size in piece.streams().items()}
    if piece.values:
        index = _wide(parts[f"index/{piece.bits}"], piece.bits, piece.filled)
        if index.size and index.max() >= piece.values:
            raise ValueError("an index beyond its table")
        rest = parts[f"table/{width}"].view(_KINDS[width])[index]
    else:
        rest = np.stack([parts[f"number/{width}/{i}"] for i in range(width)], axis=1).view(_KINDS[width]).ravel()
    if piece.masked:
        filled = np.unpackbits(parts["mask"], count=piece.number).astype(bool)
        if int(filled.sum()) != piece.filled:
            raise ValueError("a mask of another number of zeros")
        whole = np.zeros(piece.number, _KINDS[width])
        whole[filled] = rest
        rest = whole
    return np.ascontiguousarray(rest).view(np.uint8)


def _table(numbers: NDArray[np.generic]) -> tuple[NDArray[np.generic] | None, NDArray[np.intp] | None]:
    """Return the different numbers and the index of each; None if they are too many to pay."""
    if not numbers.size or numbers.dtype.kind != "u" or len(np.unique(numbers[:_SAMPLE])) > MOST_VALUES:
        return None, None
    table, index = np.unique(numbers, return_inverse=True)
    small = len(table) <= MOST_VALUES and 2 * len(table) <= len(numbers)
    return (table, index) if small else (None, None)


def _narrow(index: NDArray[np.intp], bits: int) -> Bytes:
    """Return indices in few bits each, the first one in the lowest bits of a byte."""
    share = 8 // bits
    padded = np.zeros(-(-len(index) // share) * share, np.uint8)
    padded[: len(index)] = index
    places = (np.arange(share) * bits).astype(np.uint8)
    return np.asarray(np.bitwise_or.reduce(padded.reshape(-1, share) << places, axis=1), np.uint8)


def _wide(data: Bytes, bits: int, count: int) -> Bytes:
    share = 8 // bits
    places = (np.arange(share) * bits).astype(np.uint8)
    return np.asarray(((data[:, None] >> places) & np.uint8(2**bits - 1)).ravel()[:count])
