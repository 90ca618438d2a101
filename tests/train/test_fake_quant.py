"""Training of quantized models: integer weights are trained with fake quantization, and become integers again."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, numpy_helper

import onnxprune as op
from onnxprune.data import Dataset, open_data
from onnxprune.model.session import run, session
from onnxprune.normalize import normalize
from onnxprune.settings.training import TrainSettings
from onnxprune.train import finetune
from onnxprune.train.fake_quant import requantized, with_fake_quantization
from onnxprune.train.trainable import trainable

quantization = pytest.importorskip("onnxruntime.quantization")
MODELS = Path(__file__).parents[2] / "models"
MODEL = MODELS / "digits_resnet.onnx"


@pytest.fixture(scope="module")
def images() -> dict[str, np.ndarray]:
    with np.load(MODELS / "digits_test.npz", allow_pickle=False) as data:
        return {"image": data["images"], "labels": data["labels"]}


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory, images: dict[str, np.ndarray]) -> ModelProto:
    """A pruned network, unrepaired, in 8 bits: weights are stored as integers."""
    analysis = op.analyze(MODEL)
    small = op.prune(analysis, op.plan(analysis, op.PlanSettings(target=op.Target("macs", 0.4)))).proto
    folder = tmp_path_factory.mktemp("quantized")
    onnx.save(small, folder / "small.onnx")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.left: Iterator[dict[str, np.ndarray]] = iter([{"image": images["image"][:64]}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    logging.disable(logging.WARNING)
    try:
        quantization.quantize_static(
            folder / "small.onnx",
            folder / "q.onnx",
            Reader(),
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
        )
    finally:
        logging.disable(logging.NOTSET)
    return normalize(onnx.load(folder / "q.onnx"))


@pytest.fixture
def data(quantized: ModelProto, images: dict[str, np.ndarray]) -> Dataset:
    return open_data(images, quantized)


def weights_of(model: ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def types_of(model: ModelProto) -> dict[str, int]:
    return {t.name: t.data_type for t in model.graph.initializer}


def test_there_and_back(quantized: ModelProto, images: dict[str, np.ndarray]) -> None:
    fake = with_fake_quantization(quantized)
    integers = [n for n, t in types_of(quantized).items() if t == TensorProto.INT8 and n in trainable(fake)]
    assert integers and not set(integers) & set(trainable(quantized))
    data = {"image": images["image"][:16]}
    first, second = (next(iter(run(session(m, optimize=False), data).values())) for m in (quantized, fake))
    np.testing.assert_allclose(second, first, atol=1e-4 * np.abs(first).max())
    old, new = weights_of(quantized), weights_of(requantized(fake, quantized))
    assert all(np.array_equal(old[n], new[n]) and old[n].dtype == new[n].dtype for n in old)
    moved = ModelProto()
    moved.CopyFrom(fake)
    (tensor,) = (t for t in moved.graph.initializer if t.name == integers[0])
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(0.5), tensor.name))
    new = weights_of(requantized(moved, quantized))
    assert [n for n in old if not np.array_equal(old[n], new[n])] == integers[:1]


def test_a_quantized_network_learns(quantized: ModelProto, data: Dataset) -> None:
    settings = TrainSettings(epochs=6, batch=32, rate=0.005)
    result = finetune(quantized, data, teacher=MODEL, hold_out=0.3, settings=settings)
    assert result.before is not None and result.after is not None and result.kept == "after"
    assert result.after["top1"].model.value > result.before["top1"].model.value + 0.2
    assert types_of(result.proto) == types_of(quantized)
    assert [n.op_type for n in result.proto.graph.node] == [n.op_type for n in quantized.graph.node]
    old, new = weights_of(quantized), weights_of(result.proto)
    moved = {n for n in old if old[n].dtype == np.int8 and old[n].ndim == 4 and not np.array_equal(old[n], new[n])}
    assert moved and not any(n.endswith(("_scale", "_zero_point")) for n in moved)


def test_what_others_read_stays(quantized: ModelProto) -> None:
    shared = ModelProto()
    shared.CopyFrom(quantized)
    name = next(n for n in trainable(with_fake_quantization(quantized)) if types_of(quantized)[n] == TensorProto.INT8)
    shared.graph.node.append(
        onnx.helper.make_node("Cast", [name], ["seen"], name="reads_integers", to=TensorProto.FLOAT)
    )
    assert types_of(with_fake_quantization(shared))[name] == TensorProto.INT8
    plain = normalize(op.load(MODEL).proto)
    assert with_fake_quantization(plain) is plain
