"""Untrusted zip archives: members are checked and read one by one, and never extracted to their own paths."""

from __future__ import annotations

import re
import shutil
import stat
import struct
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from onnxprune.data.batch import Array
from onnxprune.data.npy import map_array, read_header
from onnxprune.errors import DataError

_ENCRYPTED = 0x1
_LOCAL_HEADER = 30  # bytes, before the member's name
_CHUNK = 1 << 20
_SUSPICIOUS = 1 << 30  # bytes; larger members are refused if they are
_RATIO = 100  # times larger than compressed
FILE_LIMIT = 1 << 28
"""Maximum size of an image file, in bytes."""


class Archive:
    """A zip archive, open for reading."""

    def __init__(self, path: Path) -> None:
        """Open an archive and check its directory.

        Raises:
            DataError: it can't be read (OP701), or is damaged or unsafe (OP704).
        """
        self.path = path
        with self._reading(None):
            self._zip = zipfile.ZipFile(path)
        self.members = {info.filename: info for info in self._zip.infolist() if not info.is_dir()}
        for info in self._zip.infolist():
            self._check(info)

    def read(self, name: str) -> bytes:
        """Return the bytes of a member that holds one image.

        Raises:
            DataError: it is too large or damaged (OP704).
        """
        if self.members[name].file_size > FILE_LIMIT:
            raise DataError("OP704", f"the member is larger than {FILE_LIMIT >> 20} MiB", where=self.where(name))
        with self._reading(name):
            return self._zip.read(name)

    def array(self, name: str) -> Array:
        """Memory-map a .npy member: in place if it is stored, else from an anonymous temporary file.

        Raises:
            DataError: it is damaged (OP703, OP704), empty (OP702), or doesn't fit on the disk (OP701).
        """
        info, where = self.members[name], self.where(name)
        with self._reading(name), self._zip.open(info) as member:
            header = read_header(member, where)
            start = member.tell()
            if info.file_size != start + header.size:
                cause = f"the array takes {header.size} bytes, and the member has {info.file_size - start}"
                raise DataError("OP703", cause, where=where)
            if info.compress_type == zipfile.ZIP_STORED:
                return map_array(self.path, header, self._offset(info) + start, where)
            unpacked = tempfile.TemporaryFile()  # noqa: SIM115 (the mapping keeps it open)
            shutil.copyfileobj(member, unpacked, _CHUNK)
            unpacked.flush()
        return map_array(unpacked, header, 0, where)

    def where(self, name: str) -> str:
        """Return a member's name for messages."""
        return f"{self.path}: {name}"

    def _check(self, info: zipfile.ZipInfo) -> None:
        name = info.filename.replace("\\", "/")
        where = self.where(info.filename)
        if name.startswith("/") or ".." in PurePosixPath(name).parts or re.match("[A-Za-z]:/", name):
            raise DataError("OP704", "the member's name leads out of the archive", where=where)
        if stat.S_ISLNK(info.external_attr >> 16):
            raise DataError("OP704", "the member is a link", where=where)
        if info.flag_bits & _ENCRYPTED:
            raise DataError("OP704", "the member is encrypted", where=where)
        if info.file_size > max(_SUSPICIOUS, _RATIO * info.compress_size):
            cause = f"the member would unpack from {info.compress_size} to {info.file_size} bytes"
            raise DataError("OP704", cause, where=where)

    def _offset(self, info: zipfile.ZipInfo) -> int:
        """Return the position of a stored member's bytes: after its local header, name and extra field."""
        with self.path.open("rb") as file:
            file.seek(info.header_offset)
            name, extra = struct.unpack("<HH", file.read(_LOCAL_HEADER)[-4:])
        return int(info.header_offset + _LOCAL_HEADER + name + extra)

    @contextmanager
    def _reading(self, name: str | None) -> Iterator[None]:
        where = str(self.path) if name is None else self.where(name)
        try:
            yield
        except OSError as error:
            raise DataError("OP701", f"can't read the file: {error.strerror or error}", where=where) from error
        except DataError:
            raise
        except Exception as error:  # zlib, lzma and zipfile raise their own types
            what = "the archive" if name is None else "the member"
            raise DataError("OP704", f"{what} is damaged: {error}", where=where) from error
