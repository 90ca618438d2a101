"""Labels in files of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxprune.data import IGNORED, open_data
from onnxprune.settings import TaskSettings
from tests.data.support import encode, model, picture, refused

VECTORS = model("float[N,2] x", outputs="float[N,2] y", body="y = Identity(x)")
IMAGES = model("float[N,3,8,8] x", outputs="float[N,3,8,8] y", body="y = Identity(x)")
X = np.zeros((3, 2), np.float32)


def labels_of(data: Any) -> Any:
    return np.concatenate([batch.labels for batch in data.batches(2)])


def read(path: Path, content: str | bytes, **options: Any) -> Any:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return labels_of(open_data({"x": X}, VECTORS, labels=path, **options))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "0\n2\n1\n", [0, 2, 1]),
        ("a.txt", "0.5\r\n1e3\r\n-1\r\n", [0.5, 1000, -1]),
        ("a.txt", "0 1\n1 1\n0 0\n", [[0, 1], [1, 1], [0, 0]]),
        ("a.jsonl", '{"label": 3}\n\n{"label": 0}\n{"label": 1}\n', [3, 0, 1]),
        ("a.jsonl", "[0.5, 1.5]\n[2, 3]\n[4, 5]\n", [[0.5, 1.5], [2, 3], [4, 5]]),
    ],
)
def test_lines_are_labels(tmp_path: Path, name: str, content: str, expected: Any) -> None:
    np.testing.assert_array_equal(read(tmp_path / name, content), expected)


def test_text_and_ids_of_different_length(tmp_path: Path) -> None:
    reading = TaskSettings(task="ctc")
    assert read(tmp_path / "a.txt", "hello world\n\n7\n", reading=reading).tolist() == ["hello world", "", "7"]
    ids = read(tmp_path / "a.jsonl", '{"text": [3, 1, 2]}\n{"text": [4]}\n{"text": []}\n', reading=reading)
    np.testing.assert_array_equal(ids, [[3, 1, 2], [4, IGNORED, IGNORED], [IGNORED] * 3])


def test_arrays_are_labels(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(3))
    np.savez(tmp_path / "a.npz", labels=np.arange(3), other=X)
    for name in ("a.npy", "a.npz"):
        data = open_data({"x": X, "labels": np.ones(3, int)}, VECTORS, labels=tmp_path / name)
        np.testing.assert_array_equal(labels_of(data.subset([2, 0, 1])), [2, 0, 1])
    np.testing.assert_array_equal(labels_of(open_data({"x": X}, VECTORS, labels=[5, 6, 7])), [5, 6, 7])


@pytest.mark.parametrize(
    ("name", "content", "code", "reason"),
    [
        ("a.txt", "1\n2\n", "OP708", "2 labels for 3 samples"),
        ("a.txt", b"\xff\xff", "OP701", "can't read the labels"),
        ("a.txt", "1 2\n1.5\n2\n", "OP708", "differ in length"),
        ("a.jsonl", "{]\n", "OP701", "not JSON"),
        ("a.jsonl", '{"klass": 1}\n' * 3, "OP708", "none of label, labels"),
        ("a.json", "[1, 2, 3]", "OP708", "not a COCO file"),
        ("a.json", "[" * 10**5, "OP701", "not JSON"),
        ("a.csv", "1", "OP701", "can't be read as labels"),
    ],
)
def test_bad_labels_are_refused(tmp_path: Path, name: str, content: Any, code: str, reason: str) -> None:
    with refused(code, reason):
        read(tmp_path / name, content)


def test_functions_bring_their_own_labels() -> None:
    with refused("OP708", "a function"):
        open_data(lambda: [X], VECTORS, labels=[1, 2, 3])


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for i, (height, width) in enumerate([(8, 8), (16, 32), (8, 8)]):
        (folder / f"{i}.png").write_bytes(encode(picture(i, height, width)))
    return folder


def test_masks_go_with_images_by_name_and_are_resized_as_they_are(images: Path, tmp_path: Path) -> None:
    from PIL import Image

    masks = tmp_path / "masks"
    masks.mkdir()
    wide = np.zeros((16, 32), np.uint8)
    wide[:, 16:] = 7  # an index of the palette
    for i, mask in enumerate([np.full((8, 8), 1, np.uint8), wide, np.full((8, 8), 2, np.uint8)]):
        image = Image.fromarray(mask, mode="P") if i == 1 else Image.fromarray(mask)
        if i == 1:
            image.putpalette(list(range(256)) * 3)
        image.save(masks / f"{i}.png")
    data = open_data(images, IMAGES, labels=masks)
    found = labels_of(data)
    assert data.kind == "segmentation" and data.labeled and found.shape == (3, 8, 8)
    np.testing.assert_array_equal(found[1], np.repeat([[0] * 4 + [7] * 4], 8, axis=0))  # the middle half is cropped
    assert (found[0] == 1).all() and (found[2] == 2).all()
    (masks / "2.png").unlink()
    with refused("OP708", "no label is named '2.png'"):
        open_data(images, IMAGES, labels=masks)
    (masks / "2.png").write_bytes(encode(picture(0, 8, 8)))
    with refused("OP705", "one channel of classes"):
        labels_of(open_data(images, IMAGES, labels=masks))


def test_boxes_go_with_images_by_name_and_follow_their_geometry(images: Path, tmp_path: Path) -> None:
    document = {
        "images": [
            {"id": 30, "file_name": "1.png", "height": 16, "width": 32},
            {"id": 10, "file_name": "2.png", "height": 8, "width": 8},
            {"id": 20, "file_name": "0.png", "height": 8, "width": 8},
        ],
        "categories": [{"id": 90}, {"id": 3}],
        "annotations": [
            {"image_id": 30, "category_id": 90, "bbox": [8, 0, 16, 8]},
            {"image_id": 30, "category_id": 3, "bbox": [0, 0, 12, 16], "iscrowd": 1},
            {"image_id": 30, "category_id": 3, "bbox": [0, 0, 4, 4]},
            {"image_id": 20, "category_id": 3, "bbox": [1, 2, 3, 4]},
        ],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(document))
    data = open_data(images, IMAGES, labels=path)
    found = labels_of(data)
    none = [IGNORED, 0, 0, 0, 0, 0]
    assert data.kind == "detection"
    np.testing.assert_array_equal(found[0], [[0, 1, 2, 4, 6, 0], none])
    np.testing.assert_array_equal(found[1], [[1, 0, 0, 8, 4, 0], [0, 0, 0, 2, 8, 1]])  # halved, then 4 pixels off
    np.testing.assert_array_equal(found[2], [none, none])
