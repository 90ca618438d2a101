"""Tensors of every type."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxprune.model.file import load, save, set_tensor, skeleton, weights
from tests.model.support import refuses, small


@pytest.mark.parametrize(
    "dtype",
    [
        *(np.float32, np.float64, np.float16, np.int8, np.uint8, np.int64, np.bool_, np.complex64),
        *(ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2),
        *(ml_dtypes.int4, ml_dtypes.uint4, ml_dtypes.float4_e2m1fn),
    ],
)
def test_tensors_of_every_type_round_trip(dtype: type, tmp_path: Path) -> None:
    array: np.ndarray = np.arange(15).reshape(3, 5).__mod__(7).astype(dtype)
    proto = small()
    tensor = proto.graph.initializer.add(name="t", doc_string="note", data_type=1, dims=[1])
    tensor.float_data.append(1)
    set_tensor(tensor, array)
    assert tensor.name == "t" and tensor.doc_string == "note" and not tensor.float_data
    got = weights(load(proto).proto)
    assert got["t"].dtype == got.dtype("t") == array.dtype and got.shape("t") == (3, 5)
    assert np.array_equal(got["t"], array)
    assert not got["w"].flags.writeable
    assert list(got) == ["w", "b", "t"] and got.tensor("t").name == "t"

    # The same values in the typed fields instead of raw data.
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor.CopyFrom(helper.make_tensor("t", kind, array.shape, array.flatten().tolist()))
    assert not tensor.HasField("raw_data")
    assert np.array_equal(weights(load(proto).proto)["t"], array)
    save(proto, tmp_path / "m.onnx", external=True)
    assert np.array_equal(weights(load(tmp_path / "m.onnx").proto)["t"], array)
    del getattr(tensor, helper.tensor_dtype_to_field(kind))[-1]
    refuses(proto, "OP110")


def test_strings_must_be_text() -> None:
    proto = small()
    tensor = proto.graph.initializer.add(name="s", data_type=TensorProto.STRING, dims=[2])
    tensor.string_data.extend([b"one", b"zwei"])
    assert weights(load(proto).proto)["s"].tolist() == ["one", "zwei"]
    tensor.string_data[1] = b"\xff"
    refuses(proto, "OP110")


def test_a_skeleton_has_types_instead_of_weights() -> None:
    proto = small()
    bare = skeleton(proto)
    assert [t.name for t in bare.graph.initializer] == ["b"]
    assert [v.name for v in bare.graph.input] == ["x", "w"]
    onnx.checker.check_model(bare, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(bare, strict_mode=True)
    shapes = {v.name: v.type.tensor_type.shape for v in inferred.graph.value_info}
    assert [d.dim_value or d.dim_param for d in shapes["a"].dim] == ["N", 40]

    proto.graph.input.append(helper.make_tensor_value_info("w", 1, [40, 40]))  # as before IR 4
    assert [v.name for v in skeleton(proto).graph.input] == ["x", "w"]
    assert proto.metadata_props == bare.metadata_props
