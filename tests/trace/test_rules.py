"""Golden lines: each operator's groups in one line, verified by the masked original."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnxprune.errors import ModelError
from onnxprune.model.bodies import BODY_INPUTS
from onnxprune.operators.card import cards
from tests.toolbox import Net, analyze, assert_proved, inputs_of, removal, run_once
from tests.trace.golden import Golden, build, found, parse

LINES = [
    line
    for line in (Path(__file__).parent / "golden.txt").read_text().splitlines()
    if line.strip() and not line.startswith("#")
]
GOLDEN = [parse(line) for line in LINES]


@pytest.mark.parametrize("golden", GOLDEN, ids=str)
def test_groups(golden: Golden) -> None:
    graph = analyze(build(golden))
    assert found(graph) == golden.expected


# Operators without a kernel in ONNX Runtime's CPU provider, or of a newer opset: only their groups are tested.
_NO_KERNEL = {
    "AffineGrid",
    "CausalConvWithState",
    "ParametricSoftplus",
    "SwiGLU",
    "com.microsoft:BiasAdd",
    "com.microsoft:BiasDropout",
    "com.microsoft:BiasSplitGelu",
    "com.microsoft:FusedMatMulActivation",
    "com.microsoft:GemmFastGelu",
    "com.microsoft:SkipGroupNorm",
    "com.microsoft:SwiGLU",
    "com.microsoft:TorchEmbedding",
    "com.microsoft:TransposeMatMul",
}
_REMOVING = [g for g in GOLDEN if any(word[0] in "~0123456789" for word in g.expected)]


@pytest.mark.parametrize("golden", _REMOVING, ids=str)
def test_pruned_equals_masked(golden: Golden) -> None:
    graph = analyze(build(golden))
    try:
        run_once(graph.proto, inputs_of(graph))
    except ModelError as error:
        assert golden.operator in _NO_KERNEL, error
        pytest.skip(f"ONNX Runtime doesn't run {golden.operator}")
    for seed in range(2):
        assert_proved(removal(graph.groups, graph, np.random.default_rng(seed)))


def test_every_rule_has_a_golden_line() -> None:
    inner = {BODY_INPUTS}  # stands beside a Loop or Scan, whose lines cover it
    assert (
        {name for name, card in cards().items() if card.trace} - inner <= {g.operator for g in GOLDEN} <= set(cards())
    )


@pytest.mark.parametrize("name", sorted(name for name, card in cards().items() if not card.trace))
def test_left_alone(name: str) -> None:
    """Channels that touch an operator that is left alone stay, for the reason on its card."""
    domain, _, operator = name.rpartition(":")
    net = Net(domains={domain: 1} if domain else None)
    x = net.conv(net.input((1, 3, 4, 4)), 4)
    net.nodes.append(helper.make_node(operator, [x], ["y"], name="op", domain=domain))
    net.outputs.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    graph = analyze(net.model(check=False))
    assert not graph.groups
    (reason,) = {pin.reason for unit in range(len(graph.pinned)) for pin in graph.pins(unit) if pin.code == "OP211"}
    assert reason == cards()[name].reasons["trace"]


def test_unknown_operators_pin() -> None:
    net = Net(domains={"example": 1})
    x = net.conv(net.input((1, 3, 4, 4)), 4)
    net.output(net.conv(net.op("example:Mystery", x), 2))
    graph = analyze(net.model(check=False))
    assert not graph.groups
    codes = {pin.code for unit in range(len(graph.pinned)) for pin in graph.pins(unit)}
    assert "OP203" in codes


def test_table_is_alphabetical() -> None:
    names = [g.operator for g in GOLDEN]
    assert names == sorted(names)
