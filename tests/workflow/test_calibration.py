"""The reader for onnxruntime.quantization gives what the tool itself reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, quantize_static

import onnxprune as op

ROOT = Path(__file__).parents[2]
MODEL, DATA = ROOT / "models" / "digits_resnet.onnx", ROOT / "models" / "digits_test.npz"


def test_it_is_a_reader_and_can_be_rewound() -> None:
    reader = op.calibration_reader(MODEL, str(DATA), limit=20, batch=8)
    assert isinstance(reader, CalibrationDataReader) and len(reader) == 3
    first = [batch["image"] for batch in reader]
    assert [len(batch) for batch in first] == [8, 8, 4] and reader.get_next() is None
    reader.rewind()
    again = [batch["image"] for batch in iter(reader.get_next, None)]
    np.testing.assert_array_equal(np.concatenate(first), np.concatenate(again))
    stored = np.load(DATA)["images"]
    assert all(any(np.array_equal(image, row) for row in stored) for image in np.concatenate(first))


def test_preprocessing_is_applied() -> None:
    pixels = np.arange(2 * 8 * 8, dtype=np.uint8).reshape(2, 8, 8)
    reader = op.calibration_reader(MODEL, {"image": pixels}, preprocess="scale=1/8 mean=1", batch=2)
    batch = reader.get_next()
    assert batch is not None
    np.testing.assert_allclose(batch["image"][:, 0], pixels / 8 - 1, rtol=1e-6)


@pytest.mark.parametrize("method", [CalibrationMethod.MinMax, CalibrationMethod.Entropy])
def test_the_pruned_and_quantized_model_is_right(method: CalibrationMethod, tmp_path: Path) -> None:
    small = op.prune_model(MODEL, target=op.Target("macs", 0.5), data=str(DATA))
    op.save(small.model, tmp_path / "small.onnx")
    reader = op.calibration_reader(tmp_path / "small.onnx", str(DATA), limit=64)
    quantize_static(
        *(tmp_path / "small.onnx", tmp_path / "int8.onnx", reader),
        quant_format=QuantFormat.QDQ,
        calibrate_method=method,
    )
    arrays = np.load(DATA)
    session = onnxruntime.InferenceSession(tmp_path / "int8.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": arrays["images"]})
    assert (logits.argmax(axis=1) == arrays["labels"]).mean() > 0.95


def test_wrong_data_are_refused_at_once() -> None:
    with pytest.raises(op.DataError, match="OP706"):
        op.calibration_reader(MODEL, {"image": np.ones((2, 3), np.float32)}).get_next()
