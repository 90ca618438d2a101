"""Ways to damage models and packed models at random, for `benchmarks.fuzz`."""

from __future__ import annotations

import hashlib
import json
import lzma
import random
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import onnx
from google.protobuf.message import Message

from onnxprune.packing import container

_INTEGERS = (0, -1, 1, 2, 3, 7, 2**31 - 1, 2**40)
_TEXTS = ("", "x", "Conv", "Reshape", "Split", "Concat", "Gemm", "Loop")


def damaged(data: bytes, rng: random.Random) -> bytes | None:
    """Return a damaged copy of a model; None if the damage couldn't be written."""
    try:
        return rng.choice([damage_bytes, damage_fields])(data, rng)
    except (ValueError, TypeError):  # a value that the field's type can't hold
        return None


def damage_bytes(data: bytes, rng: random.Random) -> bytes:
    """Change, remove or insert a few bytes, mostly near the front, where the structure is."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 3, 20])):
        at = rng.randrange(min(len(changed), rng.choice([200, 20_000, len(changed)])))
        kind = rng.random()
        if kind < 0.6:
            changed[at] = rng.randrange(256)
        elif kind < 0.8:
            del changed[at : at + rng.randrange(1, 50)]
        else:
            changed[at:at] = rng.randbytes(rng.randrange(1, 20))
    return bytes(changed)


def damage_fields(data: bytes, rng: random.Random) -> bytes:
    """Change, clear, drop or repeat fields of the parsed model."""
    model = onnx.ModelProto.FromString(data)
    messages = list(_messages(model))
    for _ in range(rng.choice([1, 1, 2, 4])):
        message = rng.choice(messages)
        fields: list[Any] = [field for field, _ in message.ListFields()] or [*message.DESCRIPTOR.fields]
        _damage_field(message, rng.choice(fields), rng)
    return bytes(model.SerializeToString())


def _messages(message: Message) -> Iterator[Message]:
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if field.is_repeated else [value]:
                yield from _messages(inner)


def _damage_field(message: Any, field: Any, rng: random.Random) -> None:
    kind, values = rng.random(), getattr(message, field.name)
    if kind < 0.3 or (field.is_repeated and not values):
        message.ClearField(field.name)
    elif not field.is_repeated:
        if field.message_type is None:
            setattr(message, field.name, _other(values, rng))
    elif kind < 0.5:
        del values[rng.randrange(len(values))]
    elif field.message_type is not None:
        values.add().CopyFrom(rng.choice(values))
    elif kind < 0.7:
        values.append(rng.choice(values))
    else:
        values[rng.randrange(len(values))] = _other(values[0], rng)


def _other(value: Any, rng: random.Random) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice([n for n in _INTEGERS if abs(n) < 2**31 or abs(value) >= 2**31])
    if isinstance(value, str):
        return rng.choice(_TEXTS)
    if isinstance(value, bytes):
        return rng.choice([b"", b"abc"])
    return rng.choice([0.0, -1.0, float("nan"), float("inf"), 1e30])


def damage_packed(data: bytes, rng: random.Random) -> bytes:
    """Return a damaged copy of a packed model; in half of them all checksums are right again but those of files."""
    if rng.random() < 0.5:
        return data[: rng.randrange(len(data))] if rng.random() < 0.2 else damage_bytes(data, rng)
    head, filters = container._HEAD, container._FILTERS
    magic, version, zero, other, at, packed, _, _ = head.unpack_from(data)
    listed = data[at : at + packed]
    with suppress(lzma.LZMAError):
        listed = lzma.decompress(listed, lzma.FORMAT_RAW, filters=filters)
    directory, body = json.loads(listed), bytearray(data[head.size : at])
    if rng.random() < 0.5:
        for _ in range(rng.choice([1, 1, 3])):
            _damage_value(directory, rng)
    else:
        start, part = 0, rng.choice(directory["parts"])
        for each in directory["parts"]:
            if each is part:
                break
            start += sum(each[2])
        for _ in range(rng.choice([1, 5])):
            body[rng.randrange(start, start + sum(part[2]))] = rng.randrange(256)
        part[3] = hashlib.sha256(body[start : start + sum(part[2])]).hexdigest()
    text = json.dumps(directory, separators=(",", ":")).encode()
    again = lzma.compress(text, lzma.FORMAT_RAW, filters=filters)
    again = again if len(again) < len(text) else text
    check = hashlib.sha256(again).digest()
    return head.pack(magic, version, zero, other, at, len(again), len(text), check) + bytes(body) + again


def _damage_value(directory: Any, rng: random.Random) -> None:
    """Change, drop or repeat a value of a JSON document."""
    places = list[tuple[Any, Any]]()
    waiting = [directory]
    while waiting:
        holder = waiting.pop()
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        places += [(holder, key) for key in keys]
        waiting += [holder[key] for key in keys if isinstance(holder[key], dict | list)]
    holder, key = rng.choice(places)
    kind, value = rng.random(), holder[key]
    if kind < 0.2:
        del holder[key]
    elif kind < 0.4 and isinstance(holder, list):
        holder.insert(key, value)
    elif isinstance(value, int) and kind < 0.9:
        holder[key] = rng.choice([*_INTEGERS, value + 1, value - 1, 2 * value])
    else:
        holder[key] = rng.choice([None, True, -1, 1.5, "", "x", "../x", "/x", "a/../../x", "0" * 64, [], {}, [[]]])
