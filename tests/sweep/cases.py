"""A small network with data, whose trials take a fraction of a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune.model.session import run, session
from tests.report.network import network

QUICK: dict[str, Any] = {"effort": "quick", "threads": 1}


def write(folder: Path) -> tuple[Path, Path]:
    """Write the network, and images with its own answers as labels."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(network(), model := folder / "model.onnx")
    rng = np.random.default_rng(0)  # colors differ from image to image, so that answers do
    images = (rng.standard_normal((240, 3, 8, 8)) + 3 * rng.standard_normal((240, 3, 1, 1))).astype(np.float32)
    (logits,) = run(session(model), {"image": images}).values()
    np.savez(data := folder / "data.npz", image=images, labels=logits.argmax(1))
    return model, data


needs_optuna = pytest.mark.skipif(
    __import__("importlib.util").util.find_spec("optuna") is None, reason="needs the extra `sweep`: optuna"
)
