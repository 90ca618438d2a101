"""A trained network and its inputs, for all tests of sensitivities."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from onnxprune.model.stream import Batches
from onnxprune.recover import repeat
from onnxprune.workflow.analysis import TracedModel, analyze

MODELS = Path(__file__).parents[2] / "models"
MODEL = MODELS / "digits_resnet.onnx"


@functools.cache
def digits() -> TracedModel:
    return analyze(MODEL)


@functools.cache
def images() -> np.ndarray:
    with np.load(MODELS / "digits_test.npz", allow_pickle=False) as data:
        return np.asarray(data["images"])


def batches(start: int = 0, step: int = 2, size: int = 32) -> Batches:
    chosen = images()[start::step]
    return repeat([{"image": chosen[i : i + size]} for i in range(0, len(chosen), size)])
