"""Where a model's files hold numbers: the raw data of tensors, by their place in the file.

Packing works on bytes of files and not on parsed models, so that unpacking gives the same bytes whatever wrote them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from onnx import ModelProto, TensorProto, helper

from onnxprune.model.checks import messages

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # the wire types of protobuf
_FIELDS = {name: field.number for name, field in TensorProto.DESCRIPTOR.fields_by_name.items()}
_WIDTHS = {_FIELDS["float_data"]: 4, _FIELDS["double_data"]: 8}  # packed, so they are stored as raw data are
_SMALLEST = 64  # bytes; what is smaller goes with the rest of the file


class Span(NamedTuple):
    """Numbers in a file.

    Attributes:
        start: the position of the first byte.
        stop: the position after the last one.
        width: bytes of a number, 1 for numbers of fewer bits.
    """

    start: int
    stop: int
    width: int


def spans_of_model(content: bytes) -> list[Span]:
    """Return the numbers in a model's file, in order; none if the file isn't valid protobuf."""
    try:
        return _apart(_message(memoryview(content), 0, len(content), ModelProto.DESCRIPTOR))
    except (IndexError, ValueError):
        return []


def spans_of_data(content: bytes) -> dict[str, list[Span]]:
    """Return the numbers in the external data of a model, given by its bytes: by location, in order."""
    found: dict[str, list[Span]] = {}
    for tensor in messages(ModelProto.FromString(content)):
        if isinstance(tensor, TensorProto) and tensor.data_location == TensorProto.EXTERNAL:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            start, length = int(entries.get("offset") or 0), int(entries.get("length") or 0)
            span = Span(start, start + length, _width(tensor.data_type))
            found.setdefault(str(PurePosixPath(entries["location"])), []).append(span)
    return {location: _apart(sorted(found[location])) for location in sorted(found)}


def _message(data: memoryview, start: int, stop: int, kind: Any) -> Iterator[Span]:
    """Yield the numbers in a serialized message of a kind."""
    raw, data_type = None, 0
    while start < stop:
        key, start = _varint(data, start, stop)
        number, wire = key >> 3, key & 7
        size = 0
        if wire == _VARINT:
            value, start = _varint(data, start, stop)
            data_type = value if number == _FIELDS["data_type"] else data_type
        elif wire == _BYTES:
            size, start = _varint(data, start, stop)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire}")
        if size > stop - start:
            raise ValueError("a field ends after its message")
        if wire == _BYTES:
            field = kind.fields_by_number.get(number)
            if field is not None and field.message_type is not None:
                yield from _message(data, start, start + size, field.message_type)
            elif kind is TensorProto.DESCRIPTOR and number in _WIDTHS:
                yield Span(start, start + size, _WIDTHS[number])
            elif kind is TensorProto.DESCRIPTOR and number == _FIELDS["raw_data"]:
                raw = start, start + size
        start += size
    if raw is not None:
        yield Span(*raw, _width(data_type))


def _varint(data: memoryview, start: int, stop: int) -> tuple[int, int]:
    value = shift = 0
    while start < stop and shift < 70:
        byte = data[start]
        value |= (byte & 0x7F) << shift
        start, shift = start + 1, shift + 7
        if byte < 0x80:
            return value, start
    raise ValueError("a number without an end")


def _width(data_type: int) -> int:
    try:
        return max(1, int(helper.tensor_dtype_to_np_dtype(data_type).itemsize))
    except (KeyError, ValueError):
        return 1


def _apart(spans: Iterable[Span]) -> list[Span]:
    """Return the spans that are worth it, hold whole numbers and don't overlap one before."""
    found, end = list[Span](), 0
    for span in spans:
        size = span.stop - span.start
        if span.start >= end and size >= _SMALLEST and size % span.width == 0:
            found.append(span)
            end = span.stop
    return found
