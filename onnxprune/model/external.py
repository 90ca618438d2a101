"""External data: weights in files beside the model. Locations and sizes are not trusted."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

from onnx import ModelProto, TensorProto

from onnxprune.errors import ModelError
from onnxprune.model.tensors import DATA_FIELDS, byte_size, check_type, raw_bytes
from onnxprune.model.wire import copy_without

_ALIGNMENT = 4096  # a page, so that readers can map the file into memory
_SMALLEST = 1024  # bytes; smaller tensors stay in the model file


def embed(tensors: Iterable[tuple[TensorProto, str]], model: Path | None) -> tuple[Path, ...]:
    """Read external data into the tensors.

    Args:
        tensors: Tensors of a model, each with its place; those with external data change.
        model: The model's file, or None if it has none.

    Returns:
        The files that were read, in order of name.

    Raises:
        ModelError: A location leaves the model's folder (OP114); a file is absent or ends before the tensor (OP115);
            a length or type contradicts the shape (OP110, OP111, OP112).
    """
    files: dict[str, Path] = {}
    for tensor, where in tensors:
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        check_type(tensor, where)
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        if location not in files:
            files[location] = _resolve(location, model, where)
        tensor.raw_data = _read(files[location], tensor, entries, where)
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
    return tuple(files[name] for name in sorted(files))


def detach(model: ModelProto, data: BinaryIO, location: str) -> dict[str, TensorProto]:
    """Write a model's large initializers to a data file.

    Args:
        model: The model; it isn't changed.
        data: The file for the values, each at a multiple of the page size.
        location: The data file's name, as stored in the tensors.

    Returns:
        By name, what the model file holds in place of each tensor that was written.
    """
    stubs = {}
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.STRING or byte_size(tensor) < _SMALLEST:
            continue
        data.write(bytes(-data.tell() % _ALIGNMENT))
        entries = {"location": location, "offset": data.tell(), "length": byte_size(tensor)}
        data.write(raw_bytes(tensor))
        stub = copy_without(tensor, *DATA_FIELDS)
        stub.data_location = TensorProto.EXTERNAL
        for key, value in entries.items():
            stub.external_data.add(key=key, value=str(value))
        stubs[tensor.name] = stub
    return stubs


def _resolve(location: str, model: Path | None, where: str) -> Path:
    """Return the path of a data file; locations outside of the model's folder are refused."""
    if model is None:
        raise ModelError(
            "OP115",
            "the model's external data can't be found: it was given without its path",
            where=where,
            hint="load it by its path",
        )
    for path in (PurePosixPath(location), PureWindowsPath(location)):
        if not location or "\0" in location or path.anchor or ".." in path.parts:
            raise _outside(location, where)
    try:
        found = (model.parent / location).resolve()
        # A cache may hold links to both files; then the folder is that of the file behind the model's link.
        folders = (model.parent.resolve(), model.resolve().parent)
        if not any(found.is_relative_to(folder) for folder in folders):
            raise _outside(location, where)
        if not found.is_file():
            raise ModelError("OP115", f"external data {location!r} doesn't exist", where=where)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise ModelError("OP115", f"external data {location!r}: {error}", where=where) from error
    return found


def _read(path: Path, tensor: TensorProto, entries: dict[str, str], where: str) -> bytes:
    size = byte_size(tensor)
    try:
        offset = int(entries.get("offset") or 0)
        length = int(entries.get("length") or size)
    except ValueError as error:
        raise ModelError("OP115", "external data's offset or length isn't a number", where=where) from error
    if tensor.data_type == TensorProto.STRING or length != size:
        cause = f"shape {list(tensor.dims)} needs {size} bytes, external data has {length}"
        raise ModelError("OP110", cause, where=where)
    try:
        with path.open("rb") as file:
            available = path.stat().st_size
            if offset < 0 or offset + size > available:
                cause = f"bytes {offset} to {offset + size} of external data {path.name!r} are"
                raise ModelError("OP115", f"{cause} beyond its end, {available}", where=where)
            file.seek(offset)
            data = file.read(size)
    except OSError as error:
        raise ModelError("OP115", f"external data {path.name!r}: {error}", where=where) from error
    if len(data) != size:
        raise ModelError("OP115", f"external data {path.name!r} shrank", where=where)
    return data


def _outside(location: str, where: str) -> ModelError:
    return ModelError(
        "OP114",
        f"external data {location!r} isn't in the model's folder",
        where=where,
        hint="move the data beside the model and its location to the bare file name",
    )
