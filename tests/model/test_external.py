"""External data: round trips, and files outside the model's folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxprune.model.file import load, save
from onnxprune.model.session import run, session
from tests.model.support import refuses, saved_externally, small


def test_external_data_round_trip(tmp_path: Path) -> None:
    path = saved_externally(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    model = load(path)
    assert model.external and model.data_files == (tmp_path.resolve() / "m.onnx.data",)
    assert model.proto == small()
    both = path.read_bytes() + (tmp_path / "m.onnx.data").read_bytes()
    assert model.sha256 == hashlib.sha256(both).hexdigest()
    onnx.checker.check_model(str(path), full_check=True)
    x = np.ones((2, 40), np.float32)
    assert np.array_equal(*(run(session(m), {"x": x})["y"] for m in (path, small())))


def test_a_model_keeps_its_kind_of_storage(tmp_path: Path) -> None:
    model = load(saved_externally(tmp_path))
    save(model, tmp_path / "again.onnx")
    assert load(tmp_path / "again.onnx").external
    save(model, tmp_path / "inline.onnx", external=False)
    assert not load(tmp_path / "inline.onnx").external
    assert load(tmp_path / "inline.onnx").proto == model.proto


def relocated(folder: Path, **entries: str) -> Path:
    path = saved_externally(folder)
    proto = onnx.load(path, load_external_data=False)
    tensor = next(t for t in proto.graph.initializer if t.external_data)
    for key, value in entries.items():
        next(entry for entry in tensor.external_data if entry.key == key).value = value
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize(
    "location",
    [
        "/etc/passwd",
        "../secret",
        "sub/../../secret",
        "..\\secret",
        "C:\\secret",
        "C:secret",
        "\\\\host\\secret",
        "",
        "a\0b",
    ],
)
def test_external_data_stays_in_the_folder(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(10**5))
    refuses(relocated(folder, location=location), "OP114")


def test_links_out_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(10**5))
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "dir").symlink_to(tmp_path)
    (folder / "circle").symlink_to(folder / "circle")
    refuses(relocated(folder, location="link"), "OP114")
    refuses(relocated(folder, location="dir/secret"), "OP114")
    refuses(relocated(folder, location="circle"), "OP115")


def test_a_cache_of_links_to_both_files_loads(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    saved_externally(tmp_path / "blobs")
    for name in ("m.onnx", "m.onnx.data"):
        (tmp_path / "snapshot" / name).symlink_to(tmp_path / "blobs" / name)
    assert load(tmp_path / "snapshot/m.onnx").proto == small()


@pytest.mark.parametrize(
    ("entries", "code"),
    [
        ({"location": "absent"}, "OP115"),
        ({"location": "."}, "OP115"),
        ({"offset": "1000000"}, "OP115"),
        ({"offset": "-1"}, "OP115"),
        ({"offset": "many"}, "OP115"),
        ({"length": "17"}, "OP110"),
    ],
)
def test_wrong_external_data(tmp_path: Path, entries: dict[str, str], code: str) -> None:
    load(relocated(tmp_path))  # the control
    (tmp_path / "again").mkdir()
    refuses(relocated(tmp_path / "again", **entries), code)


def test_external_data_without_a_path(tmp_path: Path) -> None:
    path = saved_externally(tmp_path)
    refuses(path.read_bytes(), "OP115")
    refuses(onnx.load(path, load_external_data=False), "OP115")
