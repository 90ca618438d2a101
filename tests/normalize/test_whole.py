"""All passes together: what goes in comes out, bit for bit."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.model.file import load, weights
from onnxprune.normalize import normalize
from tests.normalize.models import LOOP, X, feeds_for, normal, ops, outputs, parsed, same

SHARED = Path(__file__).parents[2] / "../shared/models"


REAL = sorted(SHARED.glob("*.onnx"))


LIGHT = sorted((Path(onnx.__file__).parent / "backend/test/data/light").glob("*.onnx"))


def test_what_goes_in_comes_out() -> None:
    proto = parsed(
        """<ir_version: 9, opset_import: ["" : 17, "ai.onnx.ml" : 3], producer_name: "p",
            producer_version: "1", domain: "d", model_version: 5, doc_string: "doc">
        agraph (float[batch,4] x) => (float[batch,4] y) <float[batch,4] t> { t = Relu(x) y = Neg(t) }"""
    )
    helper.set_model_props(proto, {"k": "v"})
    proto.graph.doc_string = "graph"
    for node in proto.graph.node:
        node.name, node.doc_string = f"n_{node.output[0]}", "node"
    assert normal(proto, x=X) == proto


SUBGRAPH = """agraph (float[2,4] x, bool c) => (float[2,4] y) {
    i = Identity (b)
    k = Constant <value_float = 2.0> ()
    a = Add (x, i)
    d = Mul (x, b)
    e = If (c) <
        then_branch = t () => (float[2,4] p) { p1 = Mul (x, i) p2 = Add (p1, b) p = Mul (p2, k) },
        else_branch = f () => (float[2,4] q) { b2 = Identity (b) q = Add (x, b2) }
    >
    f = Add (a, d)
    y = Add (e, f)
}"""


def test_bodies_are_opened() -> None:
    """What stands in a body is normalized as anything else, and goes back for the run that `normal` compares."""
    proto = parsed(SUBGRAPH, b=X[1] + 1)
    for condition in (True, False):
        result = normal(proto, x=X, c=condition)
    assert sorted(ops(result)) == ["Add"] * 5 + ["If"] + ["Mul"] * 3
    vectors = [name for node in result.graph.node for name in node.input if name in weights(result) and name != "k"]
    assert len(vectors) == len(set(vectors)) == 5


def test_bodies_of_loops_are_opened() -> None:
    proto = parsed(LOOP, b=X[1] + 1)
    result = normal(proto, n=2, c=True, x=X[0])
    assert sorted(ops(result)) == ["Add", "Add", "BodyInputs", "Identity", "Loop", "Mul", "Mul"]
    vectors = [name for node in result.graph.node for name in node.input if name in weights(result)]
    assert len(vectors) == len(set(vectors)) == 4


@pytest.mark.skipif(not REAL, reason="the shared real models are not here")
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_real_models_compute_the_same_bits(path: Path) -> None:
    proto = load(path).proto
    result = normalize(proto)
    assert normalize(result) == result
    if path.stem == "fns_candy":
        pytest.skip("an experimental operator, which not every ONNX Runtime has")
    feeds = feeds_for(result)
    expected = outputs(proto, feeds)
    assert same(expected, outputs(result, feeds))

    # The control: the comparison sees one weight change.
    got = weights(result)
    name = max((n for n in got if got.dtype(n).kind == "f"), key=lambda n: got[n].size, default=None)
    if name is not None and got[name].size > 1:
        tensor = got.tensor(name)
        tensor.CopyFrom(numpy_helper.from_array(got[name] * got[name].dtype.type(1.5), name))
        assert not same(expected, outputs(result, feeds))


@pytest.mark.parametrize("stem", ["light_resnet50", "light_squeezenet", "light_inception_v2"])
def test_models_without_weights_are_filled(stem: str) -> None:
    path = next(path for path in LIGHT if path.stem == stem)
    result = normalize(load(path).proto)
    assert not {"Constant", "ConstantOfShape"} & set(ops(result))
    assert sum(tensor.data_type == TensorProto.FLOAT for tensor in result.graph.initializer) > 50
