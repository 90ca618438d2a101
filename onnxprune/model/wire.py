"""Copy models in part, and write them in pieces, so that neither 2 GiB nor memory limits their size.

The protobuf package serializes a message as one string: a second copy of every weight, and at most 2 GiB. A model's
weights are one repeated field of its graph. Here they are written one by one, as valid protobuf, and never held twice.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import TypeVar

from google.protobuf.message import Message
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

PROTOBUF_LIMIT = 2**31 - 1
"""The largest message that protobuf reads."""

_M = TypeVar("_M", ModelProto, GraphProto, NodeProto, TensorProto)


def copy_without(message: _M, *fields: str) -> _M:
    """Return a copy of a message except for some of its fields, which are not touched."""
    copy: _M = type(message)()
    _fill(copy, message, fields)
    return copy


def copy_model(model: ModelProto, *graph_fields: str) -> ModelProto:
    """Return a copy of a model except for some fields of its graph, which are not touched."""
    copy = copy_without(model, "graph")
    copy.graph.SetInParent()
    _fill(copy.graph, model.graph, graph_fields)
    return copy


def _fill(copy: Message, message: Message, without: Collection[str]) -> None:
    for field in message.DESCRIPTOR.fields:
        name = field.name
        if name in without:
            continue
        if not field.has_presence:  # repeated: ONNX is proto2
            getattr(copy, name).extend(getattr(message, name))
        elif message.HasField(name):
            if field.message_type is not None:
                getattr(copy, name).CopyFrom(getattr(message, name))
            else:
                setattr(copy, name, getattr(message, name))


def pieces(
    model: ModelProto, replace: Callable[[TensorProto], TensorProto] = lambda tensor: tensor
) -> tuple[int, Iterator[bytes]]:
    """Return the size in bytes of a serialized model, and its bytes in pieces.

    Args:
        model: The model, of any size; it must not change until the pieces are read.
        replace: Returns the tensor to write in place of an initializer.
    """
    head = copy_without(model, "graph").SerializeToString(deterministic=True)
    body = copy_without(model.graph, "initializer").SerializeToString(deterministic=True)
    tensors = [replace(tensor) for tensor in model.graph.initializer]
    payloads = [len(tensor.raw_data) for tensor in tensors]
    prefixes = [_prefix(tensor, payload) for tensor, payload in zip(tensors, payloads, strict=True)]
    weights = sum(payloads) + sum(map(len, prefixes))
    head += _key(ModelProto, "graph", len(body) + weights) + body

    def parts() -> Iterator[bytes]:
        yield head
        for prefix, tensor in zip(prefixes, tensors, strict=True):
            yield prefix
            yield tensor.raw_data

    return len(head) + weights, parts()


def _prefix(tensor: TensorProto, payload: int) -> bytes:
    """Return the bytes of a serialized initializer up to those of its raw_data, which come last."""
    stub: bytes = copy_without(tensor, "raw_data").SerializeToString(deterministic=True)
    if tensor.HasField("raw_data"):
        stub += _key(TensorProto, "raw_data", payload)
    return _key(GraphProto, "initializer", len(stub) + payload) + stub


def _key(kind: type[ModelProto | GraphProto | TensorProto], field: str, length: int) -> bytes:
    """Return the encoded key and length of a length-delimited field."""
    number = kind.DESCRIPTOR.fields_by_name[field].number
    return _varint(number << 3 | 2) + _varint(length)


def _varint(value: int) -> bytes:
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)
