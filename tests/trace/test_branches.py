"""Ifs that ask for a rank or a size: a body that can't run holds nothing, one that may run does."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

import onnxprune as op
from onnxprune.normalize import normalize
from onnxprune.rewrite.masked import masked
from onnxprune.shapes import Branches
from tests.toolbox import inputs_of, run_once

HEAD = """<ir_version: 8, opset_import: ["" : 17]>
    net ({inputs}) => (float[N, 5{rank}] y) {{
        a = Conv <pads = [1, 1], strides = [2]> (x, first)
        l = Relu (a)
        {condition}
        s = If (c) <then_branch = t () => (float p) {{ k = Constant <value_ints: ints = [-1]> () p = Squeeze (l, k) }},
                    else_branch = e () => (float q) {{ q = Identity (l) }}>
        {behind}
    }}"""
LENGTH = """n = Shape (l) i = Constant <value_ints: ints = [-1]> () z = Gather (n, i)
            one = Constant <value_ints: ints = [1]> () c = Equal (z, one)"""
GEMM = "y = Gemm (s, last)"
MATMUL = "y = MatMul (s, last)"
EITHER = """y = If (flag) <then_branch = t2 () => (float u) { u = Gemm (s, last) },
                          else_branch = e2 () => (float v) { f = Flatten (s) v = Gemm (f, last) }>"""


def network(behind: str, condition: str = LENGTH, inputs: str = "float[N, 3, T] x", rank: str = "") -> ModelProto:
    model = onnx.parser.parse_model(HEAD.format(inputs=inputs, condition=condition, behind=behind, rank=rank))
    rng = np.random.default_rng(0)
    for name, shape in {"first": (8, 3, 3), "last": (8, 5)}.items():
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    return model


def pinned(model: ModelProto, shapes: dict[str, tuple[int, ...]]) -> NDArray[np.bool_]:
    graph = op.analyze(model, shapes).graph
    return graph.pinned[graph.unit_of[graph.slots["first", 0]]]


@pytest.mark.parametrize("length", [1, 2])
def test_a_rank_that_what_follows_refuses(length: int) -> None:
    """A Gemm takes matrices only: the last axis must have been squeezed."""
    analysis = op.analyze(network(GEMM), {"x": (2, 3, length)})
    pruned = op.prune(analysis, op.plan(analysis, ratio=0.5))
    assert pruned.kept.shape("a")[1] == 4
    inputs = inputs_of(analysis.graph) | {"x": np.ones((3, 3, length), np.float32)}
    expected = run_once(masked(pruned.kept), inputs)["y"]
    assert np.abs(run_once(pruned.proto, inputs)["y"] - expected).max() < 1e-5
    assert np.abs(expected).max() > 0.1


def test_what_may_run_stays() -> None:
    """Behind the other body, a MatMul would run on other sizes (8 frames), with frames in place of channels."""
    model = network(MATMUL)
    assert (
        Branches(normalize(model)).never(next(n.name for n in normalize(model).graph.node if n.op_type == "If"))
        == frozenset()
    )
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    assert pinned(model, {"x": (2, 3, 1)}).all()


def test_what_fails_in_one_of_two_bodies_may_run() -> None:
    """The Gemm that refuses the rank is itself in a body that may not run."""
    assert pinned(network(EITHER, inputs="float[N, 3, T] x, bool flag"), {"x": (2, 3, 1)}).all()


def test_a_condition_that_is_known() -> None:
    """The rank is: three, whatever the sizes. The Ifs within the body that never runs hold nothing, either."""
    condition = """n = Shape (l) r = Size (n) three = Constant <value_int: int = 3> () c = Equal (r, three)"""
    assert not pinned(network(GEMM, condition), {"x": (2, 3, 1)}).any()


def test_what_never_runs_within_what_never_runs() -> None:
    """The bodies of the inner If give other ranks, and neither matters."""
    inner = """{ d = Constant <value_ints: ints = [-1]> ()
        g = If (c) <then_branch = h () => (float g1) { g1 = Squeeze (l, d) },
                             else_branch = j () => (float g2) { g2 = Identity (l) }> }"""
    never = f"""n = Shape (l) i = Constant <value_ints: ints = [-1]> () z = Gather (n, i)
        one = Constant <value_ints: ints = [1]> () c = Equal (z, one)
        r = Size (n) three = Constant <value_int: int = 3> () never = Less (r, three)
        w = If (never) <then_branch = o () => (float g) {inner},
                         else_branch = m () => (float g3) {{ g3 = Relu (l) }}>"""
    model = network("w0 = Squeeze (w, i) s0 = Add (s, w0) y = Gemm (s0, last)", never)
    assert not pinned(model, {"x": (2, 3, 1)}).any()
