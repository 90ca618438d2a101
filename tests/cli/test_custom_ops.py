"""Models with operators that ONNX Runtime lacks, and libraries that bring them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxprune as op
from onnxprune.errors import UsageError
from tests.cli.support import document, invoke, refused
from tests.test_proof_in_part import detector
from tests.toolbox import Net


@pytest.fixture
def unknown(tmp_path: Path) -> Path:
    path = tmp_path / "unknown.onnx"
    onnx.save(detector(), path)
    return path


@pytest.fixture
def library() -> str:
    extensions = pytest.importorskip("onnxruntime_extensions")
    return str(extensions.get_library_path())


@pytest.fixture
def inverse(tmp_path: Path) -> Path:
    """A network that ends in an operator of onnxruntime-extensions: the inverse of a 4x4 matrix."""
    net = Net(domains={"ai.onnx.contrib": 1})
    x = net.op("Relu", net.conv(net.input((1, 3, 4, 4), name="x"), 16, 3, name="first"))
    x = net.conv(x, 1, name="last")
    x = net.op("Reshape", x, net.const([4, 4]))
    net.output(net.ops("ai.onnx.contrib:Inverse", x, count=1, shapes=[(4, 4)], name="inverse")[0])
    path = tmp_path / "inverse.onnx"
    onnx.save(net.model(), path)
    return path


def test_prune_proves_the_part_that_runs_and_says_so(unknown: Path, out: Path) -> None:
    result = invoke("prune", unknown, "-o", out, "--ratio", "0.5")
    assert "rewriting proved in part" in result.stdout
    assert 'not proved: TRT:EfficientNMS_TRT "nms"' in result.stderr
    assert "--custom-ops" in result.stderr
    found = document("prune", unknown, "-o", out, "--ratio", "0.5", "--force")
    assert found["proved"] is False
    assert found["verification"]["passed"] is True
    assert [n["node"] for n in found["verification"]["unproved"]] == ["nms"]


def test_other_commands_end_in_front_of_it_or_say_how_to_give_the_operator(
    unknown: Path, out: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data.npz"
    np.savez(data, x=np.random.default_rng(0).standard_normal((32, 3, 8, 8)).astype(np.float32))
    invoke("inspect", unknown)
    invoke("plan", unknown, "-o", tmp_path / "plan.json", "--ratio", "0.5")
    invoke("prune", unknown, "-o", out, "--plan", tmp_path / "plan.json")
    assert "not proved" in invoke("verify", unknown, out, "--plan", tmp_path / "plan.json").stderr
    unsigned = onnx.load(out)
    del unsigned.metadata_props[:]
    onnx.save(unsigned, out)
    assert "not compared" in invoke("verify", unknown, out, status=1).stderr
    found = document("evaluate", out, "--against", unknown, "--data", data, "--metric", "mse")
    assert [s["output"] for s in found["scores"].values()] == ["box_out0", "cls_out0"]
    assert "EfficientNMS_TRT" in found["notes"][0]
    assert "up to box_out0, cls_out0" in invoke("sensitivity", unknown, "--data", data).stderr
    tuned = document("finetune", out, "--teacher", unknown, "-o", tmp_path / "t.onnx", "--data", data, "--epochs", "1")
    assert list(tuned["follows"]) == ["box_out0", "cls_out0"]
    assert "give it with --custom-ops" in refused("OP122", "benchmark", unknown)


def test_a_registered_library_makes_the_whole_model_run(inverse: Path, out: Path, library: str) -> None:
    part = document("prune", inverse, "-o", out, "--ratio", "0.5")
    assert [n["operator"] for n in part["verification"]["unproved"]] == ["ai.onnx.contrib:Inverse"]
    options = ("--custom-ops", library)
    whole = document("prune", inverse, "-o", out, "--ratio", "0.5", "--force", *options)
    assert (whole["proved"], whole["verification"]["unproved"]) == (True, [])
    assert [o["name"] for o in whole["verification"]["outputs"]] == ["inverse_out0"]
    few = ("--seconds", "0.01", "--rounds", "5", "--warm-up", "0")
    invoke("benchmark", inverse, *few, *options)
    invoke("benchmark", inverse, *few, "--isolate", *options)  # in a process of its own
    refused("OP122", "benchmark", inverse, *few)  # not registered any more


def test_the_library_is_registered_from_python(inverse: Path, library: str) -> None:
    small = op.prune_model(inverse, ratio=0.5, custom_ops=(library,))
    assert small.pruned.verification is not None
    assert small.pruned.verification.unproved == ()
    with op.custom_ops(library):
        assert op.verify(inverse, small.model.proto, small.plan).proved
    assert not op.verify(inverse, small.model.proto, small.plan).proved


@pytest.mark.parametrize("content", [None, b"not a library"])
def test_a_missing_or_wrong_library_is_one_error(unknown: Path, tmp_path: Path, content: bytes | None) -> None:
    library = tmp_path / "lib.so"
    if content is not None:
        library.write_bytes(content)
    for command in (
        ("inspect", unknown),
        ("explain", unknown),
        ("plan", unknown, "-o", tmp_path / "p.json", "--ratio", "0.5"),
        ("prune", unknown, "-o", tmp_path / "o.onnx", "--ratio", "0.5"),
        ("verify", unknown, unknown),
        ("evaluate", unknown, "--data", "random"),
        ("finetune", unknown, "-o", tmp_path / "o.onnx", "--data", "random"),
        ("sensitivity", unknown, "--data", "random"),
        ("benchmark", unknown),
    ):
        assert str(library) in refused("OP610", *command, "--custom-ops", library)
    assert not (tmp_path / "o.onnx").exists()
    with pytest.raises(UsageError, match="OP610"), op.custom_ops(library):
        pass


def test_the_help_says_that_a_library_is_code() -> None:
    assert "runs with your rights" in " ".join(invoke("prune", "--help").stdout.split())
