"""Real models of many exporters."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from onnxprune.model.file import load
from onnxprune.normalize import normalize
from tests.shapes.support import (
    LIGHT,
    SHARED,
    check,
)

# Recurrent models whose If takes sizes that nothing outside of it tells
GIVEN = {
    "silero_vad": {"input": [1, 256], "state": [2, 1, 128]},
    "silero_vad_op18_ifless": {"input": [1, 512]},
}
SLOW = {
    *("convnext_tiny_ts", "fns_candy", "resnet50_dynamo", "resnext50_dynamo", "vit_small_dynamo", "vit_small_ts"),
    *("yunet_n_640", "light_bvlc_alexnet", "light_densenet121", "light_resnet50", "light_vgg19", "light_zfnet512"),
}
FILES = sorted([*SHARED.glob("**/*.onnx"), *LIGHT.glob("*.onnx")])


def test_there_are_real_models() -> None:
    """The onnx package's own at least, whether or not ../shared/models is there: with none, the next test is empty."""
    assert {path.name for path in FILES} >= {f"light_{name}.onnx" for name in ("resnet50", "shufflenet", "vgg19")}


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, id=p.stem, marks=[pytest.mark.slow] if p.stem in SLOW else []) for p in FILES],
)
def test_real_models(path: Path) -> None:
    proto = normalize(load(path).proto)
    found = check(proto, GIVEN.get(path.stem))
    reads = {name for n in proto.graph.node for name in n.input}
    reads.update(output.name for output in proto.graph.output)
    made = {name for n in proto.graph.node for name in n.output}
    assert reads & made - {""} <= set(found.shapes)


def test_a_model_as_it_was_exported() -> None:
    path = SHARED / "cifar_resnet20_ts.onnx"
    if not path.exists():
        pytest.skip("../shared/models is absent")
    proto = onnx.load(path)  # Constant and ConstantOfShape nodes and all
    found = check(proto)
    pads = [n.input[1] for n in proto.graph.node if n.op_type == "Pad"]
    assert pads
    assert set(pads) <= found.static
