"""Fixtures for tests of quantization."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

import onnxprune as op
from onnxprune.evaluation.intervals import Estimate
from onnxprune.quantization import search
from onnxprune.quantization.quantizers import calibrate, prepare
from tests.quantization.support import DIGITS, MODELS


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    with np.load(MODELS / "digits_test.npz", allow_pickle=False) as found:
        return np.asarray(found["images"])[:64]


@pytest.fixture(scope="module")
def prepared() -> ModelProto:
    return prepare(op.analyze(DIGITS).graph.proto)


@pytest.fixture(scope="module")
def ranges(prepared: ModelProto, images: np.ndarray) -> Any:
    return calibrate(prepared, [{"image": images[:32]}, {"image": images[32:]}], "minmax")


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set how fast all forms seem, so that no test depends on the machine's load."""

    def choose(speed: float) -> None:
        seems = Estimate(speed, 0.98 * speed, 1.02 * speed)
        monkeypatch.setattr(search, "speedups", lambda subjects, **_: [seems] * (len(subjects) - 1))

    return choose
