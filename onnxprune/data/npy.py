"""Arrays in files, mapped into memory rather than read, and never unpickled."""

from __future__ import annotations

import os
from math import prod
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy

from onnxprune.data.batch import Array
from onnxprune.errors import DataError

_KINDS = "biufUS"  # numbers, and texts as names of classes
_HEADER = 10_000  # characters: what numpy.load takes from strangers


class Header(NamedTuple):
    """What a .npy file says of its array."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """Bytes of the array."""
        return prod(self.shape) * self.dtype.itemsize


def read_header(stream: IO[bytes], where: str) -> Header:
    """Read a .npy file up to its data.

    Raises:
        DataError: it isn't one, holds something other than numbers or texts (OP703), or nothing (OP702).
    """
    try:
        version = npy.read_magic(stream)
        if version == (1, 0):
            header = Header(*npy.read_array_header_1_0(stream, max_header_size=_HEADER))
        elif version == (2, 0):
            header = Header(*npy.read_array_header_2_0(stream, max_header_size=_HEADER))
        else:  # a later one is written only for fields whose names aren't ASCII
            raise ValueError(f"format version {version}")
    except Exception as error:  # NumPy raises errors of many kinds for files that aren't its own
        raise DataError("OP703", f"not a .npy array: {' '.join(str(error).split())}", where=where) from error
    if header.dtype.hasobject:
        hint = "save arrays of numbers; Python objects are never loaded"
        raise DataError("OP703", "the array holds pickled Python objects", where=where, hint=hint)
    if header.dtype.kind not in _KINDS or header.dtype.itemsize == 0:
        raise DataError("OP703", f"an array of {header.dtype} isn't plain numbers", where=where)
    if min(header.shape, default=1) < 0:
        raise DataError("OP703", f"impossible shape {list(header.shape)}", where=where)
    if header.size == 0:
        raise DataError("OP702", f"the array is empty: shape {list(header.shape)}", where=where)
    return header


def map_array(file: Path | IO[bytes], header: Header, offset: int, where: str) -> Array:
    """Map an array of a file into memory, read-only.

    Args:
        file: the file.
        header: what its array is.
        offset: where the array's data begin.
        where: its name, for messages.

    Raises:
        DataError: the file ends before the array does (OP703), or can't be read (OP701).
    """
    try:
        size = file.stat().st_size if isinstance(file, Path) else os.fstat(file.fileno()).st_size
        if size < offset + header.size:
            cause = f"the file ends after {max(size - offset, 0)} of the array's {header.size} bytes"
            raise DataError("OP703", cause, where=where)
        order = "F" if header.fortran else "C"
        return np.memmap(file, header.dtype, "r", offset, header.shape, order)  # type: ignore[call-overload, no-any-return]
    except (OSError, ValueError, OverflowError) as error:
        raise DataError("OP701", f"can't map the array: {error}", where=where) from error


def map_npy(path: Path) -> Array:
    """Map a .npy file into memory.

    Raises:
        DataError: it can't be read (OP701), or isn't an array of numbers (OP702, OP703).
    """
    try:
        with path.open("rb") as stream:
            header = read_header(stream, str(path))
            offset = stream.tell()
    except OSError as error:
        raise DataError("OP701", f"can't read the file: {error.strerror or error}", where=str(path)) from error
    return map_array(path, header, offset, str(path))
