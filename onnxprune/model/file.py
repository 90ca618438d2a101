"""Load models with every check that later parts rely on, and save them atomically.

After `load`, external data is in memory, sparse initializers are dense, nodes are in topological
order, every name has one producer, and every tensor's data fits its shape.
"""

from __future__ import annotations

import hashlib
import os
import stat
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto, helper

from onnxprune.errors import ModelError
from onnxprune.model.checks import (
    captured_names,
    check_graphs,
    check_header,
    check_inputs,
    check_values,
    messages,
)
from onnxprune.model.external import detach, embed
from onnxprune.model.tensors import Weights, check_data, check_type, densify, elements, set_tensor, weights
from onnxprune.model.wire import PROTOBUF_LIMIT, copy_model, pieces
from onnxprune.runtime.library import max_ir_version

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

__all__ = [
    "Model",
    "Source",
    "Weights",
    "captured_names",
    "file_size",
    "load",
    "outline",
    "save",
    "saved",
    "set_tensor",
    "skeleton",
    "weights",
    "written_whole",
]

PACKED_MAGIC = b"\x89ONNXPK\n"
"""How files of packed models begin, see `onnxprune.packing.container`. No ONNX model begins so."""

_BIG = 1024  # elements; larger initializers are left out of skeletons
_CHUNK = 2**20
_OTHER_FORMATS = {
    PACKED_MAGIC: "it is a packed model: unpack it with the command `unpack`",
    b"version https://git-lfs": "it is a Git LFS pointer: run `git lfs pull`",
    b"PK": "it is a zip archive, such as a PyTorch checkpoint or a Keras file: export it to ONNX",
    b"\x89HDF": "it is an HDF5 file, such as a Keras model: convert it to ONNX",
    b"<": "it is a text of markup, perhaps a web page saved instead of the file",
}


@dataclass(frozen=True, slots=True, repr=False)
class Model:
    """A valid model and where it came from.

    Attributes:
        proto: The model with all its data in memory; treat it as read-only.
        path: The file that it was loaded from, or None.
        sha256: Digest of the file's bytes followed by those of its external data files in order of name; of the bytes
            that were given; or of the serialization that `save` writes.
        external: Whether weights were in external data.
        data_files: The external data files that it was read from.
    """

    proto: ModelProto
    path: Path | None
    sha256: str
    external: bool
    data_files: tuple[Path, ...] = ()

    def __repr__(self) -> str:
        """Return where the model came from, and its number of nodes."""
        return (
            f"Model({str(self.path or 'in memory')!r}, {len(self.proto.graph.node)} nodes, sha256 {self.sha256[:12]})"
        )


Source: TypeAlias = "str | os.PathLike[str] | bytes | ModelProto | gs.Graph | Model"


def load(source: Source) -> Model:
    """Load a model and check it.

    Args:
        source: A path, a file's bytes, a ModelProto or graphsurgeon Graph (neither is changed), or a Model, which is
            returned as it is.

    Raises:
        ModelError: The source can't be read or isn't a valid model (OP101 to OP120).
    """
    if isinstance(source, Model):
        return source
    try:
        return _load(source)
    except (MemoryError, RecursionError) as error:
        cause = f"the model doesn't fit into this machine's memory ({type(error).__name__})"
        raise ModelError("OP118", cause) from error


def save(model: Source, path: str | os.PathLike[str], *, force: bool = False, external: bool | None = None) -> None:
    """Write a model; the file appears whole or not at all.

    Args:
        model: The model, of any size; it isn't changed. An onnx-graphsurgeon graph will do.
        path: The file. External data goes beside it, into `<stem>.onnx.data`.
        force: Whether existing files may be overwritten.
        external: Whether large initializers go into external data. None means as the Model was loaded, or if it is
            too large for one file.

    Raises:
        ModelError: A file exists (OP116), can't be written (OP117), or the model is too large for one file (OP118).
    """
    if not isinstance(model, ModelProto):
        model = load(model)
    proto, sources = (model.proto, model.data_files) if isinstance(model, Model) else (model, ())
    target = Path(path)
    if external is None and isinstance(model, Model) and model.external:
        external = True
    if not external:
        size, parts = pieces(proto)
        if size <= PROTOBUF_LIMIT:
            with saved(target, force=force) as (file,):
                _write(file, parts)
            return
        if external is False:
            raise _too_large(size, target)

    data = target.with_name(f"{target.stem}.onnx.data")
    if data.resolve() in sources:
        raise ModelError(
            "OP116",
            "the model's own external data would be overwritten",
            where=str(data),
            hint="choose another name or folder",
        )
    with saved(data, target, force=force) as (data_file, file):
        with data_file.open("xb") as stream:
            stubs = detach(proto, stream, data.name)
        size, parts = pieces(proto, lambda tensor: stubs.get(tensor.name, tensor))
        if size > PROTOBUF_LIMIT:
            raise _too_large(size, target)
        _write(file, parts)


def file_size(model: Model) -> int:
    """Return the size of a model's files on disk in bytes; 0 for a model from memory."""
    files = [f for f in (model.path, *model.data_files) if f is not None]
    return sum(f.stat().st_size for f in files)


def skeleton(proto: ModelProto) -> ModelProto:
    """Return a copy of a model without its weights, for shape inference at any size.

    Every initializer of more than 1024 elements becomes a graph input of its type, after the model's own inputs.
    """
    copy = copy_model(proto, "initializer")
    inputs = {value.name for value in proto.graph.input}
    for tensor in proto.graph.initializer:
        if elements(tensor) <= _BIG:
            copy.graph.initializer.append(tensor)
        elif tensor.name not in inputs:
            copy.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return copy


def outline(model: Model) -> Model:
    """Return a copy of a model without the data of its initializers, which keep names, types and shapes."""
    proto = copy_model(model.proto, "initializer")
    for tensor in model.proto.graph.initializer:
        proto.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    return replace(model, proto=proto)


def _load(source: str | os.PathLike[str] | bytes | ModelProto | gs.Graph) -> Model:
    path, digest = None, None
    if isinstance(source, bytes):
        proto, digest = _decode(source, None), hashlib.sha256(source)
    elif isinstance(source, str | os.PathLike):
        path = Path(source)
        content = _read(path)
        proto, digest = _decode(content, path), hashlib.sha256(content)
        del content
    else:
        given = source if isinstance(source, ModelProto) else _export(source)
        for _ in messages(given):  # before copying: deep nesting would overflow the copy
            pass
        proto = ModelProto()
        proto.CopyFrom(given)

    tensors = [(m, f"tensor {m.name!r}") for m in messages(proto) if isinstance(m, TensorProto)]
    check_header(proto)
    check_values([*proto.graph.input, *proto.graph.output])
    check_inputs(proto.graph)
    data_files = embed(tensors, path)
    for tensor, where in tensors:
        check_type(tensor, where)
        check_data(tensor, where)
    for sparse in proto.graph.sparse_initializer:
        proto.graph.initializer.append(densify(sparse, f"tensor {sparse.values.name!r}"))
    proto.graph.ClearField("sparse_initializer")
    check_graphs(proto)

    if digest is None:
        digest = hashlib.sha256()
        for part in pieces(proto)[1]:
            digest.update(part)
    for file in data_files:
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    return Model(proto, path, digest.hexdigest(), bool(data_files), data_files)


def _read(path: Path) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ModelError("OP101", "not a file", where=str(path))
        if not status.st_size:
            raise ModelError("OP102", "the file is empty", where=str(path))
        if status.st_size > PROTOBUF_LIMIT:
            raise _too_large(status.st_size, path)
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        cause = getattr(error, "strerror", None) or str(error)
        raise ModelError("OP101", f"can't read the file: {cause}", where=str(path)) from error


def _decode(content: bytes, path: Path | None) -> ModelProto:
    where = None if path is None else str(path)
    if not content:
        raise ModelError("OP102", "there are no bytes", where=where)
    try:
        proto: ModelProto = ModelProto.FromString(content)
    except DecodeError as error:
        cut = "it may be cut short: compare its size with the source's"
        hint = next((h for magic, h in _OTHER_FORMATS.items() if content.startswith(magic)), cut)
        raise ModelError("OP103", "not an ONNX model, or a damaged one", where=where, hint=hint) from error
    return proto


def _export(graph: gs.Graph) -> ModelProto:
    import onnx_graphsurgeon as gs

    if not isinstance(graph, gs.Graph):
        raise ModelError("OP101", f"can't load a model from {type(graph).__name__}")
    try:
        proto: ModelProto = gs.export_onnx(graph, do_type_check=False, ir_version=max_ir_version())
    except Exception as error:
        raise ModelError("OP123", f"graphsurgeon can't export the graph: {error}") from error
    return proto


@contextmanager
def written_whole(*targets: Path) -> Iterator[list[Path]]:
    """Yield a temporary path beside each target; on success these files replace the targets, in order.

    On failure the temporary files are deleted, and targets that didn't exist before still don't.
    """
    drafts = [target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp") for target in targets]
    new = [target for target in targets if not os.path.lexists(target)]
    try:
        yield drafts
        for draft, target in zip(drafts, targets, strict=True):
            os.replace(draft, target)
    except BaseException:
        for leftover in drafts + new:
            leftover.unlink(missing_ok=True)
        raise


@contextmanager
def saved(*targets: Path, force: bool) -> Iterator[list[Path]]:
    """Do what `written_whole` does; existing targets (OP116) and failed writes (OP117) are ModelErrors."""
    for target in targets:
        if os.path.lexists(target) and (target.is_dir() or not force):
            hint = None if target.is_dir() else "pass `force` to overwrite it"
            raise ModelError("OP116", "the output exists", where=str(target), hint=hint)
    try:
        with written_whole(*targets) as drafts:
            yield drafts
    except OSError as error:
        cause = f"can't write the model: {error.strerror or error}"
        raise ModelError("OP117", cause, where=str(targets[-1])) from error


def _write(path: Path, parts: Iterable[bytes]) -> None:
    with path.open("xb") as stream:
        for part in parts:
            stream.write(part)


def _too_large(size: int, path: Path) -> ModelError:
    return ModelError(
        "OP118",
        f"{size} bytes are more than a protobuf file can hold",
        where=str(path),
        hint="keep the weights in external data",
    )
