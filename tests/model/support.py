"""Models for the tests of reading and writing files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper, numpy_helper, parser

from onnxprune.errors import ModelError
from onnxprune.model.file import load, save

SHARED = Path(__file__).parents[2] / "../shared/models"
REAL = sorted(SHARED.glob("*.onnx"))
needs_shared = pytest.mark.skipif(not REAL, reason="the shared real models are not here")


def small(*, rows: int = 40, columns: int = 40) -> ModelProto:
    """y = relu(x @ w) + b, with w large enough for external data."""
    text = f"""<ir_version: 8, opset_import: ["" : 17], producer_name: "maker">
        agraph (float[N,{rows}] x) => (float[N,{columns}] y) {{
            a = MatMul(x, w)
            r = Relu(a)
            y = Add(r, b)
        }}"""
    model: ModelProto = parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in {"w": (rows, columns), "b": (columns,)}.items():
        array = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    helper.set_model_props(model, {"author": "somebody"})
    return model


def saved_externally(folder: Path) -> Path:
    save(small(), folder / "m.onnx", external=True, force=True)
    return folder / "m.onnx"


def refuses(source: Any, code: str) -> ModelError:
    with pytest.raises(ModelError) as caught:
        load(source)
    assert caught.value.code == code, caught.value
    return caught.value
