"""What tests of quantization work with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

MODELS = Path(__file__).parent.parent.parent / "models"
DIGITS = MODELS / "digits_resnet.onnx"
QUICK: dict[str, Any] = {"data": MODELS / "digits_test.npz", "kind": ("static",), "calibration": "minmax", "threads": 1}
