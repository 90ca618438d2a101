"""Inputs that are drawn where the user gives none."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnxprune.errors import ModelError
from onnxprune.shapes import generate_inputs

MODEL = helper.make_model(
    helper.make_graph(
        [],
        "net",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["N", 3]),
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["N"]),
        ],
        [],
    )
)


def test_types_shapes_and_seed() -> None:
    first, same, other = (generate_inputs(MODEL, {"x": (4, 3), "ids": (9,)}, seed) for seed in (0, 0, 1))
    assert (first["x"].dtype, first["x"].shape) == (np.float16, (4, 3))
    assert (first["ids"].dtype, set(first["ids"].tolist())) == (np.int64, {0, 1})
    assert np.array_equal(first["x"], same["x"])
    assert not np.array_equal(first["x"], other["x"])


def test_too_many_elements() -> None:
    with pytest.raises(ModelError) as caught:
        generate_inputs(MODEL, {"x": (2**31, 3), "ids": (2,)})
    assert (caught.value.code, caught.value.where) == ("OP127", "x:2147483648,3")
