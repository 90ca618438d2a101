"""Names of nodes, and vectors that are stored once."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from onnxprune.model.file import weights
from onnxprune.normalize import normalize
from tests.normalize.models import LOOP, X, normal, parsed


def test_vectors_serve_one_node_input_each() -> None:
    text = """agraph (float[2,4] x) => (float[2,4] y) {
        [first] a = Add (x, b)
        [second] c = Mul (a, b)
        d = BatchNormalization (c, b, b, b, b)
        e = MatMul (d, m)
        f = MatMul (e, m)
        g = Mul (f, s)
        y = Add (g, s)
    }"""
    m = np.eye(4, dtype=np.float32)
    result = normal(parsed(text, b=X[1], m=m, s=np.float32(2)), x=X)
    names = [name for node in result.graph.node for name in node.input]
    assert [list(n.input)[1:] for n in result.graph.node[:3]] == [
        ["b"],
        ["b::second"],
        [f"b::BatchNormalization_d{suffix}" for suffix in ("", "_2", "_3", "_4")],
    ]
    assert names.count("m") == 2 and names.count("s") == 2  # matrices and scalars stay shared
    got = weights(result)
    assert all(np.array_equal(got[name], X[1]) for name in got if name.startswith("b"))


@pytest.mark.parametrize(
    ("array", "copies"),
    [
        (np.ones(4, np.float16), 1),
        (np.ones((1, 4, 1, 1), np.float32), 1),
        (np.arange(4), 1),
        (np.ones(4, ml_dtypes.bfloat16), 1),
        (np.ones((2, 4), np.float32), 0),
        (np.ones((1, 1), np.float32), 0),
        (np.ones(4, bool), 0),
        (np.ones(0, np.float32), 0),
    ],
)
def test_what_a_vector_is(array: np.ndarray, copies: int) -> None:
    text = "agraph (float[N] x) => (float[N] y) { a = Shape (v) b = Shape (v) c = Add (a, b) y = Reshape (x, c) }"
    assert len(weights(normalize(parsed(text, v=array)))) == 1 + copies


def test_names_of_copies_avoid_all_names_in_use() -> None:
    proto = parsed(LOOP, b=X[1])
    inner = next(node for node in proto.graph.node if node.op_type == "Loop").attribute[0].g.node
    inner[1].output[0] = inner[2].input[0] = "b::Mul_d"
    result = normal(proto, n=1, c=True, x=X[0])
    made = [name for node in result.graph.node for name in node.output if name]
    assert len(set(made)) == len(made)
    assert not set(made) & set(weights(result))


def test_every_node_gets_a_name_of_its_own() -> None:
    proto = parsed(
        """agraph (float[N] x) => (float[N] y) {
            [same] a = Relu (x) [same] b = Relu (a) c = Neg (b) [Neg_d] e = Abs (c) d = Neg (e) y = Relu (d)
        }"""
    )
    names = [node.name for node in normal(proto).graph.node]  # ONNX Runtime refuses the original
    assert names == ["same", "Relu_b", "Neg_c", "Neg_d", "Neg_d_2", "Relu_y"]
