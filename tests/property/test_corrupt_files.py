"""Damaged files: whatever is wrong, the answer is a model or an OnnxPruneError; never another exception, or a hang."""

from __future__ import annotations

import time
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st

import onnxprune as op
from benchmarks.damage import damage_bytes, damage_fields
from onnxprune import OnnxPruneError, PlanSettings, analyze, prune

MODELS = Path(__file__).parents[2] / "models"
SOURCES = [(MODELS / name).read_bytes() for name in ("digits_resnet.onnx", "digits_cnn_dynamo.onnx")]
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
