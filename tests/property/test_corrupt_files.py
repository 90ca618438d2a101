"""Damaged files: whatever is wrong, the answer is a model or an OnnxPruneError; never another exception, or a hang."""

from __future__ import annotations

import time
from pathlib import Path
from random import Random
from typing import Any

import onnx
import pytest
from google.protobuf.message import Message
from hypothesis import HealthCheck, example, given, settings, strategies as st

import onnxprune as op
from onnxprune import OnnxPruneError, PlanSettings, analyze, prune

MODELS = Path(__file__).parents[2] / "models"
SOURCES = [(MODELS / name).read_bytes() for name in ("digits_resnet.onnx", "digits_cnn_dynamo.onnx")]
INTEGERS = [0, -1, 1, 2, 3, 7, 2**31 - 1, 2**40]
TEXTS = ["", "x", "Conv", "Reshape", "Split", "Concat", "Gemm", "Loop"]
SECONDS = 20  # a damaged file takes well under one; the rest is for a busy machine


def road(data: bytes) -> str:
    """Take a model down the whole road; return how it ended."""
    started = time.monotonic()
    try:
        analysis = analyze(data)
        prune(analysis, op.plan(analysis, PlanSettings(ratio=0.5)))
        end = "pruned"
    except OnnxPruneError as error:
        end = error.code
    assert time.monotonic() - started < SECONDS
    return end


def test_sound_files_are_pruned() -> None:
    assert [road(data) for data in SOURCES] == ["pruned", "pruned"]


def damage_bytes(data: bytes, random: Random) -> bytes:
    """Change, remove or insert a few bytes, mostly near the front, where the graph's structure is."""
    damaged = bytearray(data)
    for _ in range(random.choice([1, 3, 20])):
        at = random.randrange(min(len(damaged), random.choice([200, 20_000, len(damaged)])))
        kind = random.random()
        if kind < 0.6:
            damaged[at] = random.randrange(256)
        elif kind < 0.8:
            del damaged[at : at + random.randrange(1, 50)]
        else:
            damaged[at:at] = random.randbytes(random.randrange(1, 20))
    return bytes(damaged)


def damage_fields(data: bytes, random: Random) -> bytes:
    """Change, clear, drop or repeat fields of a parsed model."""
    model = onnx.ModelProto.FromString(data)
    messages = list(_messages(model))
    for _ in range(random.choice([1, 1, 2, 4])):
        message = random.choice(messages)
        fields = [field for field, _ in message.ListFields()] or list(message.DESCRIPTOR.fields)
        _damage(message, random.choice(fields), random)
    return bytes(model.SerializeToString())


def _messages(message: Message) -> Any:
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if field.is_repeated else [value]:
                yield from _messages(inner)


def _damage(message: Any, field: Any, random: Random) -> None:
    kind, values = random.random(), getattr(message, field.name)
    if kind < 0.3 or (field.is_repeated and not values):
        message.ClearField(field.name)
    elif not field.is_repeated:
        if field.message_type is None:
            setattr(message, field.name, _other(values, random))
    elif kind < 0.5:
        del values[random.randrange(len(values))]
    elif field.message_type is not None:
        values.add().CopyFrom(random.choice(values))
    elif kind < 0.7:
        values.append(random.choice(values))
    else:
        values[random.randrange(len(values))] = _other(values[0], random)


def _other(value: Any, random: Random) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        fitting = [n for n in INTEGERS if abs(n) < 2**31 or abs(value) >= 2**31]
        return random.choice(fitting)
    if isinstance(value, str):
        return random.choice(TEXTS)
    return random.choice([b"", b"abc"]) if isinstance(value, bytes) else random.choice([0.0, float("nan"), 1e30])


def check(seed: int) -> None:
    random = Random(seed)
    damage = random.choice([damage_bytes, damage_fields])
    try:
        damaged = damage(random.choice(SOURCES), random)
    except (ValueError, TypeError):  # a value that the field's type can't hold: nothing to test
        return
    road(damaged)


@settings(max_examples=150, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32))
@example(71)
@example(127)
def test_damaged_files(seed: int) -> None:
    check(seed)


@pytest.mark.slow
@settings(max_examples=3000, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32))
def test_many_damaged_files(seed: int) -> None:
    check(seed)
