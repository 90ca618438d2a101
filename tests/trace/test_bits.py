"""MatMulNBits: rows of the packed weight leave, and whole blocks of it, with scales and zero points."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, TensorProto

from onnxprune.rewrite.rewrite import rewrite
from onnxprune.rewrite.verify import verify
from tests.toolbox import Net, analyze, assert_sound, inputs_of, removal, swapped

BLOCK = 16


def network(*, zero_points: str = "packed", flat: bool = False, bias: bool = False, inner: int = 96) -> ModelProto:
    """Return a layer in blocks of four bits between two others."""
    net = Net(domains={"com.microsoft": 1})
    rng = np.random.default_rng(0)
    x = net.op("Tanh", net.linear(net.input((2, 5, 7)), inner, name="first"))
    rows, blocks = 24, inner // BLOCK
    weight = net.const(rng.integers(0, 256, (rows, blocks, BLOCK // 2)).astype(np.uint8), "bits")
    scales = rng.uniform(0.05, 0.1, (rows, blocks)).astype(np.float32)
    zeros = rng.integers(0, 256, (rows, -(-blocks // 2))).astype(np.uint8)
    if zero_points == "float":
        zeros = rng.uniform(0, 15, (rows, blocks)).astype(np.float32)
    operands = [weight, net.const(scales.ravel() if flat else scales, "scales")]
    if zero_points or bias:
        operands.append(net.const(zeros.ravel() if flat else zeros, "zeros") if zero_points else "")
    if bias:
        operands += ["", net.weight(rows, name="bias")]
    (y,) = net.ops(
        "com.microsoft:MatMulNBits",
        x,
        *operands,
        name="bits_op",
        count=1,
        shapes=[[2, 5, rows]],
        K=inner,
        N=rows,
        bits=4,
        block_size=BLOCK,
    )
    net.types[y].tensor_type.elem_type = TensorProto.FLOAT
    net.output(net.linear(net.op("Tanh", y), 3, name="last"))
    return net.model(check=False)


@pytest.mark.parametrize(
    "options,width",
    [
        ({"zero_points": ""}, BLOCK),
        ({"zero_points": "", "flat": True}, BLOCK),
        ({"zero_points": "float"}, BLOCK),
        ({"zero_points": "packed"}, 2 * BLOCK),  # the zero points of two blocks share a byte
        ({"zero_points": "packed", "flat": True}, 2 * BLOCK),
        ({"zero_points": "", "bias": True}, BLOCK),
    ],
    ids=str,
)
def test_rows_and_blocks_leave(options: dict[str, object], width: int) -> None:
    graph = analyze(network(**options))  # type: ignore[arg-type]
    assert sorted((len(g.units), g.width) for g in graph.groups) == sorted([(96 // width, width), (24, 1)])
    inputs = inputs_of(graph)
    for seed in range(3):
        kept = removal(graph.groups, graph, np.random.default_rng(seed))
        pruned = rewrite(kept)
        assert_sound(kept, pruned)
        assert verify(kept, pruned, inputs).passed
        other = swapped(kept, np.random.default_rng(seed))
        assert other is not None
        assert not verify(kept, rewrite(other), inputs).passed


def test_an_odd_number_of_blocks_stays() -> None:
    """Zero points of an odd number of blocks, two to a byte, can't be cut."""
    graph = analyze(network(inner=5 * BLOCK))
    assert not graph.groups
    assert {pin.code for _, pin in graph.reasons() if "bits_op" in pin.node} == {"OP211"}
