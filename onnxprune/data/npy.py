"""Untrusted .npy files: memory-mapped, never unpickled."""

from __future__ import annotations

import os
from math import prod
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy

from onnxprune.data.batch import Array
from onnxprune.errors import DataError
from onnxprune.errors.words import one_line

_KINDS = "biufUS"  # numbers, and strings as class names
_HEADER = 10_000  # characters, numpy.load's limit for untrusted files


class Header(NamedTuple):
    """The header of a .npy file."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """Size of the array in bytes."""
        return prod(self.shape) * self.dtype.itemsize


def read_header(stream: IO[bytes], where: str) -> Header:
    """Read a .npy file's header, up to its data.

    Raises:
        DataError: it isn't a .npy file, its elements aren't numbers or strings (OP703), or it has none (OP702).
    """
    try:
        version = npy.read_magic(stream)
        if version == (1, 0):
            header = Header(*npy.read_array_header_1_0(stream, max_header_size=_HEADER))
        elif version == (2, 0):
            header = Header(*npy.read_array_header_2_0(stream, max_header_size=_HEADER))
        else:  # later versions are only for fields with non-ASCII names
            raise ValueError(f"format version {version}")
    except Exception as error:  # NumPy raises many types of errors on damaged files
        raise DataError("OP703", f"not a .npy array: {one_line(error)}", where=where) from error
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
    """Memory-map an array of a file, read-only.

    Args:
        file: the file.
        header: the array's header.
        offset: position of the array's data in the file, in bytes.
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
    """Memory-map a .npy file.

    Raises:
        DataError: it can't be read (OP701), is empty (OP702), or isn't an array of numbers or strings (OP703).
    """
    try:
        with path.open("rb") as stream:
            header = read_header(stream, str(path))
            offset = stream.tell()
    except OSError as error:
        raise DataError("OP701", f"can't read the file: {error.strerror or error}", where=str(path)) from error
    return map_array(path, header, offset, str(path))
