"""What tests of sparse models share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import ModelProto, numpy_helper

MODELS = Path(__file__).parents[2] / "models"
DIGITS, TRAIN, TEST = (MODELS / name for name in ("digits_resnet.onnx", "digits_train.npz", "digits_test.npz"))


def arrays(model: ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
