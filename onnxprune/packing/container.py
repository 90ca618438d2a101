"""Files of packed models: the format `docs/reference/packed.md` describes.

Nothing in a file is trusted. Its directory is bounded and checked before anything is allocated, every size that is
allocated follows from it, parts are decoded one at a time, and nothing is written before it is known where.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO

import numpy as np

from onnxprune.errors import ModelError
from onnxprune.model.file import PACKED_MAGIC, saved
from onnxprune.packing.coding import Bytes, Piece, coded, decoded, sizes
from onnxprune.packing.spans import Span
from onnxprune.progress import Progress, silent

VERSION = 1
PART = 2**26  # bytes of files that a part may give
LARGEST = 2**22  # bytes of a directory
_ROOM = 2**28, 1000  # bytes that any file may give, and how many times its own
_HEAD = struct.Struct("<8sHHIQII32s")  # magic, version, 0, 0, where the directory is, its bytes packed and not, SHA-256
_DICTIONARY = 2**23  # bytes that LZMA refers back to: what a decoder needs of memory
_FILTERS: list[Mapping[str, Any]] = [
    {"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": _DICTIONARY, "lc": 4, "lp": 0, "pb": 0}
]
_PROBE = 2**16  # bytes that tell whether a stream can be compressed
_DAMAGE = (ValueError, TypeError, LookupError, EOFError, RecursionError, lzma.LZMAError)


@dataclass(frozen=True, slots=True)
class Contents:
    """A file to pack, or one that a packed model holds.

    Attributes:
        name: the location of external data relative to the model; "" for the model.
        size: its bytes.
        sha256: its digest.
    """

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class _Part:
    """Some pieces of a file, packed together.

    Attributes:
        file: the number of the file.
        pieces: the pieces, in order.
        packed: the packed bytes of each stream, in the order of `sizes`.
        sha256: the digest of these bytes.
    """

    file: int
    pieces: list[Piece]
    packed: list[int]
    sha256: str

    @property
    def size(self) -> int:
        """The bytes of the file that it gives."""
        return sum(piece.size for piece in self.pieces)


def write(
    stream: BinaryIO, files: Sequence[tuple[str, Path | bytes, Sequence[Span]]], progress: Progress = silent
) -> dict[str, int]:
    """Write a packed model.

    Args:
        stream: an empty file.
        files: the model and its external data: the location of each, its path or bytes, and the numbers in it.
        progress: called with the bytes that are packed.

    Returns:
        The packed bytes by kind of stream: "bytes", "mask", "table", "index" and "number".
    """
    stream.write(bytes(_HEAD.size))
    held, parts, by_kind = list[Contents](), list[tuple[int, list[Piece], list[int], str]](), dict[str, int]()
    total = sum(len(given) if isinstance(given, bytes) else given.stat().st_size for _, given, _ in files)
    done = 0
    for number, (name, given, spans) in enumerate(files):
        digest, size = hashlib.sha256(), 0
        for pieces, streams in _parts(given, spans, digest):
            packed = {stream_name: _compressed(data) for stream_name, data in sorted(streams.items())}
            for stream_name, data in packed.items():
                stream.write(data)
                kind = stream_name.partition("/")[0]
                by_kind[kind] = by_kind.get(kind, 0) + len(data)
            check = hashlib.sha256(b"".join(packed.values())).hexdigest()
            lengths = [len(data) for data in packed.values()]
            parts.append((number, pieces, lengths, check))
            size += sum(piece.size for piece in pieces)
            progress("pack", done + size, total)
        held.append(Contents(name, size, digest.hexdigest()))
        done += size
    listed = {"files": [(each.name, each.size, each.sha256) for each in held], "parts": parts}
    text = json.dumps(listed, separators=(",", ":")).encode()
    directory, at = _compressed(np.frombuffer(text, np.uint8)), stream.tell()
    if len(text) > LARGEST:
        raise ModelError("OP118", "the model has too many tensors to be packed")
    stream.write(directory)
    stream.seek(0)
    check_sum = hashlib.sha256(directory).digest()
    stream.write(_HEAD.pack(PACKED_MAGIC, VERSION, 0, 0, at, len(directory), len(text), check_sum))
    return by_kind


def unpack(
    source: Path, output: Path, *, max_size: int | None = None, force: bool = False, progress: Progress = silent
) -> tuple[list[Path], int]:
    """Write the files that a packed model holds; they appear whole or not at all.

    Args:
        source: the packed model.
        output: the file for the model; external data go beside it, under the names that the model knows them by.
        max_size: the most bytes to write; by default 256 MiB, or a thousand times the packed ones if that is more.
        force: whether existing files may be overwritten.
        progress: called with the bytes that are done.

    Returns:
        The files written, the model first, and their bytes.

    Raises:
        ModelError: the file can't be read (OP101), isn't a packed model or is a damaged one (OP133), gives more bytes
            than allowed (OP134), would write outside the output's folder (OP114), or a file exists (OP116) or can't be
            written (OP117).
    """
    try:
        with source.open("rb") as stream:
            packed = os.fstat(stream.fileno()).st_size
            files, parts = _directory(stream, packed)
            total = sum(each.size for each in files)
            limit = max(_ROOM[0], _ROOM[1] * packed) if max_size is None else max_size
            if total > limit:
                cause = f"{packed:,} bytes would become {total:,}, and no more than {limit:,} are allowed"
                hint = "allow as many with `max_size` if you trust it"
                raise ModelError("OP134", cause, where=str(source), hint=hint)
            targets = [output if not each.name else _place(each.name, output, source) for each in files]
            if len({os.path.abspath(target).casefold() for target in targets}) < len(targets):
                raise _outside(files[-1].name, source)
            _write_all(stream, files, parts, targets, force, progress)
    except OSError as error:
        raise ModelError("OP101", f"can't read the file: {error.strerror or error}", where=str(source)) from error
    except _DAMAGE as error:
        raise damaged(str(error) or type(error).__name__, source) from error
    return targets, total


def damaged(why: str, source: Path) -> ModelError:
    """Return the error of a file that isn't a packed model, or is a damaged one."""
    cause = f"not a packed model, or a damaged one: {why}"
    return ModelError("OP133", cause, where=str(source), hint="pack or download it again")


def _parts(given: Path | bytes, spans: Sequence[Span], digest: Any) -> Iterator[tuple[list[Piece], dict[str, Bytes]]]:
    """Cut a file into pieces; yield them, and their streams, for each part."""
    pieces, streams, size = list[Piece](), dict[str, list[Bytes]](), 0
    for data, width in _pieces(given, spans):
        if size + len(data) > PART and pieces:
            yield pieces, {name: np.concatenate(all_of) for name, all_of in streams.items()}
            pieces, streams, size = [], {}, 0
        digest.update(data)
        piece, parts = coded(np.frombuffer(data, np.uint8), width)
        pieces.append(piece)
        size += len(data)
        for name, part in parts.items():
            streams.setdefault(name, []).append(part)
    if pieces:
        yield pieces, {name: np.concatenate(all_of) for name, all_of in streams.items()}


def _pieces(given: Path | bytes, spans: Sequence[Span]) -> Iterator[tuple[bytes, int]]:
    """Yield the bytes of a file in order, none of them larger than a part, each with the width of its numbers or 0."""
    with BytesIO(given) if isinstance(given, bytes) else given.open("rb") as file:
        end, at = file.seek(0, os.SEEK_END), file.seek(0)
        for span in (*spans, Span(end, end, 1)):
            for stop, width in ((span.start, 0), (span.stop, span.width)):
                while at < stop:
                    data = file.read(min(stop - at, PART))
                    if not data:
                        raise ModelError("OP115", "a file of the model shrank while it was read")
                    yield data, width
                    at += len(data)


def _compressed(data: Bytes) -> bytes:
    """Compress bytes; those that don't compress stay as they are, which their size tells."""
    probe = data[len(data) // 2 :][:_PROBE].tobytes()
    if len(data) > 2 * _PROBE and len(_lzma(probe)) > 0.99 * len(probe):
        return data.tobytes()
    found = _lzma(data.tobytes())
    return found if len(found) < len(data) else data.tobytes()


def _lzma(data: bytes) -> bytes:
    return lzma.compress(data, lzma.FORMAT_RAW, filters=_FILTERS)


def _expanded(data: bytes, size: int) -> Bytes:
    """Return bytes that were compressed, exactly as many as expected."""
    if len(data) == size:
        return np.frombuffer(data, np.uint8)
    decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_FILTERS)
    found = decoder.decompress(data, max_length=size + 1)
    if len(found) != size or not decoder.eof or decoder.unused_data:
        raise ValueError("a stream of another length")
    return np.frombuffer(found, np.uint8)


def _directory(stream: BinaryIO, size: int) -> tuple[list[Contents], list[_Part]]:
    """Read and check everything that says how much there is."""
    magic, version, *_, at, packed, raw, digest = _HEAD.unpack(_read(stream, _HEAD.size))
    if magic != PACKED_MAGIC:
        raise ValueError("it begins otherwise")
    if version != VERSION:
        raise ValueError(f"it is of version {version}, and this release reads {VERSION}")
    if not 0 < packed <= raw <= LARGEST or at + packed != size:
        raise ValueError("its directory isn't at its end")
    stream.seek(at)
    text = _read(stream, packed)
    if hashlib.sha256(text).digest() != digest:
        raise ValueError("its directory has another checksum")
    found = json.loads(_expanded(text, raw).tobytes())
    files = [Contents(str(name), _number(length), str(check)) for name, length, check in found["files"]]
    parts = [
        _Part(_number(file), [Piece(*map(_number, fields)) for fields in pieces], [*map(_number, lengths)], str(check))
        for file, pieces, lengths, check in found["parts"]
    ]
    given = [0] * len(files)
    for part, before in zip(parts, [None, *parts], strict=False):
        wanted = sizes(part.pieces) if all(piece.fits() for piece in part.pieces) else {}
        if not wanted or part.size > PART or len(part.packed) != len(wanted):
            raise ValueError("a part that can't be")
        if any(length > limit for length, limit in zip(part.packed, wanted.values(), strict=True)):
            raise ValueError("a stream that is longer than what it gives")
        if before is not None and part.file < before.file:
            raise ValueError("parts out of order")
        given[part.file] += part.size
    whole = given == [each.size for each in files] and _HEAD.size + sum(sum(p.packed) for p in parts) == at
    if not whole or not files or files[0].name or not all(each.name for each in files[1:]):
        raise ValueError("its parts don't make up its files")
    return files, parts


def _write_all(
    stream: BinaryIO,
    files: Sequence[Contents],
    parts: Sequence[_Part],
    targets: Sequence[Path],
    force: bool,
    progress: Progress,
) -> None:
    """Decode a packed model into files. The model's own, the first, appears last."""
    total, done, made = sum(each.size for each in files), 0, list[Path]()
    waiting = iter(parts)
    part = next(waiting, None)
    try:
        for folder in {target.parent for target in targets[1:]}:
            made += [each for each in (folder, *folder.parents) if not each.exists()]
            _make(folder)
        stream.seek(_HEAD.size)
        with saved(*targets[1:], targets[0], force=force) as (*others, first):
            for number, (each, draft) in enumerate(zip(files, [first, *others], strict=True)):
                digest = hashlib.sha256()
                with draft.open("xb") as file:
                    while part is not None and part.file == number:
                        for data in _read_part(stream, part):
                            file.write(data.data)
                            digest.update(data.data)
                            done += len(data)
                        progress("unpack", done, total)
                        part = next(waiting, None)
                if digest.hexdigest() != each.sha256:
                    raise ValueError("a file has another checksum")
    except BaseException:
        for folder in sorted(made, key=lambda each: len(each.parts), reverse=True):
            with suppress(OSError):
                folder.rmdir()
        raise


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        cause = f"can't make the folder of external data: {error.strerror or error}"
        raise ModelError("OP117", cause, where=str(folder)) from error


def _read_part(stream: BinaryIO, part: _Part) -> Iterator[Bytes]:
    """Yield the bytes of each piece of a part."""
    packed = [_read(stream, length) for length in part.packed]
    if hashlib.sha256(b"".join(packed)).hexdigest() != part.sha256:
        raise ValueError("a part has another checksum")
    wanted = sizes(part.pieces)
    streams = {name: _expanded(data, size) for (name, size), data in zip(wanted.items(), packed, strict=True)}
    at = dict.fromkeys(streams, 0)

    def take(name: str, size: int) -> Bytes:
        at[name] += size
        return streams[name][at[name] - size : at[name]]

    for piece in part.pieces:
        yield decoded(piece, take)


def _place(name: str, output: Path, source: Path) -> Path:
    """Return where external data go; locations outside of the output's folder are refused."""
    for path in (PurePosixPath(name), PureWindowsPath(name)):
        if "\0" in name or path.anchor or ".." in path.parts or not path.parts:
            raise _outside(name, source)
    place = output.parent / name
    if not place.resolve().is_relative_to(output.parent.resolve()):  # through a link that is there already
        raise _outside(name, source)
    return place


def _outside(name: str, source: Path) -> ModelError:
    cause = f"external data {name!r} would be written outside the output's folder, or over another file"
    return ModelError("OP114", cause, where=str(source), hint="don't trust the file")


def _read(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise EOFError("it is cut short")
    return data


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**56:
        raise ValueError("a size that isn't one")
    return value
