from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

MODELS = Path(__file__).parents[2] / "models"
RECORDS: list[dict[str, Any]] = json.loads((MODELS / "models.json").read_text())

by_name = pytest.mark.parametrize("record", RECORDS, ids=lambda record: record["name"])


@by_name
def test_accuracy_is_the_recorded_one(record: dict[str, Any]) -> None:
    with np.load(MODELS / "digits_test.npz", allow_pickle=False) as data:
        images, labels = data["images"], data["labels"]
    session = ort.InferenceSession(MODELS / record["name"])

    def accuracy(images: np.ndarray) -> float:
        (logits,) = session.run(None, {"image": images})
        assert logits.shape == (len(images), 10)
        return float(np.mean(np.argmax(logits, axis=1) == labels))

    assert images.shape == (450, 1, 8, 8)
    assert images.dtype == np.float32
    assert record["accuracy"] >= 0.98
    # One image may tip over where another CPU rounds differently.
    assert accuracy(images) == pytest.approx(record["accuracy"], abs=1.5 / len(labels))
    # The control: upside down, they aren't recognized.
    assert accuracy(images[:, :, ::-1]) < 0.6


@by_name
def test_file_is_the_recorded_one(record: dict[str, Any]) -> None:
    content = (MODELS / record["name"]).read_bytes()
    model = onnx.load_from_string(content)

    onnx.checker.check_model(model, full_check=True)
    assert len(content) < 1_000_000
    assert hashlib.sha256(content).hexdigest() == record["sha256"]
    assert {o.domain: o.version for o in model.opset_import} == {"": record["opset"]}
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"


def test_residual_network_keeps_what_makes_it_worth_pruning() -> None:
    graph = onnx.load(MODELS / "digits_resnet.onnx").graph
    nodes = [node.op_type for node in graph.node]

    assert nodes.count("BatchNormalization") == 11
    assert nodes.count("Add") == 3
    assert nodes.count("Sigmoid") == 1
    assert any(a.name == "group" and a.i > 1 for node in graph.node for a in node.attribute)


@pytest.mark.dev
def test_script_describes_the_committed_models() -> None:
    pytest.importorskip("torch", reason="needs the dev extra: torch")
    pytest.importorskip("sklearn", reason="needs the dev extra: scikit-learn")
    from models import train_digits

    _, images, _, labels = train_digits.digits()
    with np.load(MODELS / "digits_test.npz", allow_pickle=False) as data:
        np.testing.assert_array_equal(data["images"], images)
        np.testing.assert_array_equal(data["labels"], labels)
    for record, make in zip(RECORDS, (train_digits.digits_resnet, train_digits.digits_cnn), strict=True):
        assert sum(p.numel() for p in make().parameters()) == record["parameters"]
