"""What `inspect` says is to be had, against what the commands then bring."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

import onnxprune as op
from onnxprune.workflow.outlook import outlook
from tests.cli.support import document, invoke
from tests.toolbox import Net

DIGITS = Path(__file__).parents[2] / "models" / "digits_resnet.onnx"


def untidy() -> ModelProto:
    """Return a network whose weights are inputs, too, with a node that nothing needs and a weight that none reads."""
    net = Net(opset=17)
    x = net.input([1, 3, 8, 8])
    y = net.op("Relu", net.conv(x, 32, 3, name="first"))
    net.op("Exp", y)
    net.output(net.conv(y, 4, 1, name="last"))
    proto = net.model()
    for tensor in proto.graph.initializer:
        proto.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(10_000, np.float32), "unread"))
    return proto


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "untidy.onnx"
    onnx.save(untidy(), found)
    return found


def test_cleaning_is_what_writing_brings(path: Path, tmp_path: Path) -> None:
    found = outlook(op.analyze(str(path))).cleaning
    proto = untidy()
    assert found.nodes == (len(proto.graph.node), len(proto.graph.node) - 1)
    assert found.weights_as_inputs == len(proto.graph.input) - 1 > 0
    assert found.params[0] - found.params[1] == 10_000
    invoke("prune", path, "-o", tmp_path / "clean.onnx", "--ratio", "0")
    written = onnx.load(tmp_path / "clean.onnx")
    assert len(written.graph.node) == found.nodes[1] and len(written.graph.input) == 1
    sizes = path.stat().st_size, (tmp_path / "clean.onnx").stat().st_size
    assert found.bytes[0] == sizes[0] and 0 <= sizes[1] - found.bytes[1] < 1000, "but for metadata"


def test_pruning_is_what_a_plan_removes(tmp_path: Path) -> None:
    found = outlook(op.analyze(str(DIGITS)))
    small = tmp_path / "small.onnx"
    plan = op.plan(str(DIGITS), target=op.Target("macs", 0.5))
    op.save(op.prune(str(DIGITS), plan).proto, small)
    assert found.pruning is not None and found.pruning.cost.macs <= 0.5 * plan.before["macs"]
    assert found.pruning.bytes == pytest.approx(small.stat().st_size, rel=0.25), "other channels, but about as many"


def test_int8_counts_matrices_and_kernels() -> None:
    net = Net(opset=17)
    net.output(net.linear(net.op("Relu", net.linear(net.input([1, 64]), 128, name="a")), 16, name="b"))
    found = outlook(op.analyze(net.model()))
    saved = 3 * (64 * 128 + 128 * 16) - 4 * (128 + 128)  # float to int8, and scales along the longest axis
    assert found.int8 == found.cleaning.bytes[1] - saved


def test_nothing_to_prune() -> None:
    net = Net(opset=17)
    net.output(net.conv(net.input([1, 3, 8, 8]), 4, name="only"))
    assert outlook(op.analyze(net.model())).pruning is None


def test_inspect_ends_with_it(path: Path) -> None:
    text = invoke("inspect", path).stdout
    assert (
        "to be had  estimates" in text
        and "can be replaced by callers" in text
        and "clean` makes one" in " ".join(text.split())
    )
    found = document("inspect", path)["estimates"]
    assert found["cleaned_time"] is None and found["pruning"]["cost"]["macs"] > 0


def test_measuring_is_asked_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.benchmarking.speed.SECONDS", 0.01)
    result = invoke("inspect", path, "--measure", "--format", "json")
    found = json.loads(result.stdout)["estimates"]
    assert found["cleaned_time"]["value"] > 0 and found["pruned_time"]["value"] > 0
    assert "time on the CPU" in invoke("inspect", path, "--measure").stdout
