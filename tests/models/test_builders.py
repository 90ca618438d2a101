from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from models.builders import densenet121, mobilenet_v2, resnet, synthetic_chain, yolo_like

# Outputs for images of 64x64, and the number of trainable parameters that torchvision's has.
ARCHITECTURES = {
    "resnet18": (partial(resnet, 18), {"logits": (1000,)}, 11_689_512),
    "resnet34": (partial(resnet, 34), {"logits": (1000,)}, 21_797_672),
    "resnet50": (partial(resnet, 50), {"logits": (1000,)}, 25_557_032),
    "mobilenet_v2": (mobilenet_v2, {"logits": (1000,)}, 3_504_872),
    "densenet121": (densenet121, {"logits": (1000,)}, 7_978_856),
    "yolo_like": (
        yolo_like,
        {"small": (144, 8, 8), "medium": (144, 4, 4), "large": (144, 2, 2)},
        None,
    ),
}


@pytest.mark.parametrize(("make", "outputs", "parameters"), ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_architecture(
    make: Callable[..., onnx.ModelProto],
    outputs: dict[str, tuple[int, ...]],
    parameters: int | None,
) -> None:
    model = make(size=64)

    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version == 8
    assert [o.version for o in model.opset_import] == [17]
    assert parameters in (None, trainable(model))
    assert {o.name: dims(o) for o in model.graph.output} == {name: ("N", *shape) for name, shape in outputs.items()}
    for batch in (1, 3):
        for result, shape in zip(run(model, batch, 64), outputs.values(), strict=True):
            assert result.shape == (batch, *shape)
            assert np.isfinite(result).all()
            assert 0.05 < result.std() < 20


def test_same_seed_same_model() -> None:
    first, again, other = (resnet(18, size=32, classes=10, seed=seed) for seed in (3, 3, 4))

    assert first.SerializeToString() == again.SerializeToString()
    assert not np.allclose(run(first, 1, 32)[0], run(other, 1, 32)[0])


def test_chain_has_the_length_asked_for_and_linear_size() -> None:
    short, long = synthetic_chain(300), synthetic_chain(1500)

    assert abs(len(short.graph.node) - 300) < 10
    assert abs(len(long.graph.node) - 1500) < 10
    assert long.ByteSize() == pytest.approx(5 * short.ByteSize(), rel=0.05)
    (logits,) = run(long, 2, 16)
    assert np.isfinite(logits).all()
    assert logits.std() > 0.05


def trainable(model: onnx.ModelProto) -> int:
    """Elements of float weights, less the running statistics of BatchNormalization."""
    statistics = {name for node in model.graph.node if node.op_type == "BatchNormalization" for name in node.input[3:5]}
    return sum(
        prod(tensor.dims)
        for tensor in model.graph.initializer
        if tensor.dims and tensor.name not in statistics and tensor.data_type == tensor.FLOAT
    )


def dims(value: onnx.ValueInfoProto) -> tuple[str | int, ...]:
    return tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)


def run(model: onnx.ModelProto, batch: int, size: int) -> list[np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString())
    images = np.random.default_rng(0).standard_normal((batch, 3, size, size), np.float32)
    return session.run(None, {model.graph.input[0].name: images})
