"""What tests of `shrink` share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

MODELS = Path(__file__).parents[2] / "models"
DIGITS = MODELS / "digits_resnet.onnx"
TEST = MODELS / "digits_test.npz"
LIGHT: dict[str, Any] = {"clean": {"optimizers": ("onnxruntime",)}}
QUICK: dict[str, Any] = {"data": TEST, "threads": 1, "effort": "quick", "options": LIGHT}
UNTIMED: dict[str, Any] = {**QUICK, "timed": False}
