"""Damaged models."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings, strategies as st
from onnx import ModelProto

from onnxprune.errors import OnnxPruneError
from onnxprune.model.checks import messages
from onnxprune.model.file import Model, load, skeleton, weights
from tests.model.support import SHARED, needs_shared


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Damage bytes anywhere, or set a random field of a random message to something extreme."""
    if rng.random() < 0.5:
        damaged = bytearray(content)
        for _ in range(rng.choice([1, 3, 10])):
            position = rng.randrange(len(damaged))
            damaged[position : position + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
        return bytes(damaged[: rng.choice([len(damaged), rng.randrange(len(damaged))])])
    proto = ModelProto.FromString(content)
    message = rng.choice(list(messages(proto)))
    field: Any = rng.choice(message.DESCRIPTOR.fields)
    extremes: Any = {
        field.TYPE_STRING: ["", "x", "Constant", "ConstantOfShape", "Identity", "value", "If"],
        field.TYPE_BYTES: [b"", b"\xff"],
        field.TYPE_INT64: [0, -1, 2**31, 2**62, -(2**63)],
        field.TYPE_INT32: [0, -1, 2**31 - 1, 16, 22],
    }.get(field.type)
    if extremes is None or rng.random() < 0.3:
        message.ClearField(field.name)
    elif field.has_presence:
        setattr(message, field.name, rng.choice(extremes))
    else:
        getattr(message, field.name).append(rng.choice(extremes))
    return proto.SerializeToString()


@needs_shared
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), stem=st.sampled_from(["mnist_cntk", "silero_vad", "fsanet_1x1"]))
def test_damaged_models_give_nothing_but_our_errors(seed: int, stem: str) -> None:
    content = mutated((SHARED / f"{stem}.onnx").read_bytes(), random.Random(seed))
    try:
        model = load(content)
    except OnnxPruneError as error:
        assert error.code.startswith("OP1")
    else:
        assert isinstance(model, Model)
        assert all(isinstance(array, np.ndarray) for array in weights(model.proto).values())
        skeleton(model.proto)
