"""Saving: never half a file, never over one that is there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf.message import EncodeError

from onnxprune.errors import ModelError
from onnxprune.model.file import load, save, skeleton, weights
from onnxprune.model.session import run, session
from tests.model.support import REAL, needs_shared, refuses, saved_externally, small


def test_existing_files_need_force(tmp_path: Path) -> None:
    target = tmp_path / "m.onnx"
    target.write_bytes(b"precious")
    with pytest.raises(ModelError) as caught:
        save(small(), target)
    assert caught.value.code == "OP116" and target.read_bytes() == b"precious"
    save(small(), target, force=True)
    assert load(target).proto == small()
    with pytest.raises(ModelError, match="OP116"):
        save(small(), tmp_path, force=True)  # a folder

    (tmp_path / "other.onnx.data").write_bytes(b"precious")
    with pytest.raises(ModelError, match="OP116"):
        save(small(), tmp_path / "other.onnx", external=True)
    assert not (tmp_path / "other.onnx").exists()


def test_its_own_external_data_is_never_overwritten(tmp_path: Path) -> None:
    path = saved_externally(tmp_path)
    model = load(path)
    before = (tmp_path / "m.onnx.data").read_bytes()
    with pytest.raises(ModelError, match="OP116"):
        save(model, path, force=True)
    assert (tmp_path / "m.onnx.data").read_bytes() == before


@pytest.mark.parametrize("external", [False, True])
def test_nothing_is_left_of_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, external: bool) -> None:
    with pytest.raises(ModelError, match="OP117"):
        save(small(), tmp_path / "absent/m.onnx", external=external)

    replace = os.replace

    def fail(source: Path, target: Path) -> None:
        if target.name == "m.onnx":
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(ModelError, match="No space left"):
        save(small(), tmp_path / "m.onnx", external=external)
    assert list(tmp_path.iterdir()) == []

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr("onnxprune.model.file._write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save(small(), tmp_path / "m.onnx", external=external)
    assert list(tmp_path.iterdir()) == []


def test_files_have_ordinary_permissions(tmp_path: Path) -> None:
    save(small(), tmp_path / "m.onnx")
    (tmp_path / "plain").write_bytes(b"")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_above_protobufs_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.model.file.PROTOBUF_LIMIT", 5000)
    with pytest.raises(ModelError, match="OP118"):
        save(small(), tmp_path / "m.onnx", external=False)
    save(load(small()), tmp_path / "m.onnx")  # of itself with external data
    assert load(tmp_path / "m.onnx").proto == small()
    save(small(), tmp_path / "plain.onnx")
    assert load(tmp_path / "plain.onnx").external
    monkeypatch.setattr("onnxprune.model.file.PROTOBUF_LIMIT", 50)
    with pytest.raises(ModelError, match="OP118"):
        save(small(), tmp_path / "tiny.onnx")
    refuses(tmp_path / "m.onnx", "OP118")
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.slow
def test_a_model_above_two_gib(tmp_path: Path) -> None:
    proto = small(rows=16384, columns=16400)
    proto.graph.initializer.append(proto.graph.initializer[0])
    proto.graph.initializer[2].name = "w2"
    proto.graph.initializer.append(proto.graph.initializer[0])
    proto.graph.initializer[3].name = "w3"
    with pytest.raises(EncodeError):
        proto.SerializeToString()
    save(proto, tmp_path / "m.onnx")
    model = load(tmp_path / "m.onnx")
    assert model.external and (tmp_path / "m.onnx").stat().st_size < 10**5
    assert np.array_equal(weights(model.proto)["w3"], weights(proto)["w"])
    assert skeleton(model.proto).ByteSize() < 10**5
    x = np.ones((1, 16384), np.float32)
    got = run(session(model.proto, optimize=False), {"x": x})["y"]
    assert got.shape == (1, 16400) and np.isfinite(got).all()


@needs_shared
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_real_models_come_back_as_they_were(tmp_path: Path, path: Path) -> None:
    original = onnx.load(path)
    model = load(path)
    assert model.proto == original  # sorted already, and nothing else to change
    save(model, tmp_path / "m.onnx")
    assert onnx.load(tmp_path / "m.onnx") == original
