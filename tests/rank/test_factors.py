"""Layers in two by rank: rewritten, costed and proved."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from onnx import ModelProto, numpy_helper

from onnxprune.cost.cost import cost
from onnxprune.errors import PlanError, VerificationError
from onnxprune.rank.factors import factor, find_split
from onnxprune.rank.proof import prove_factored
from onnxprune.trace.pruned_graph import PrunedGraph
from tests.property.nets import Sample, samples
from tests.rank.support import factored
from tests.toolbox import Net, analyze, assert_proved, inputs_of, largest_difference, removal, run_once


def chain(kind: str) -> ModelProto:
    """Return a network whose layer "wide" is of some kind."""
    net = Net(opset=9 if kind == "old gemm" else 17)
    if kind in ("conv", "strided", "transposed"):
        x = net.op("Relu", net.conv(net.input((2, 3, 9, 9), "x"), 12, 3))
        if kind == "transposed":
            w, b = net.weight(12, 10, 3, 3, name="w", fan_in=108), net.weight(10)
            y = net.op("ConvTranspose", x, w, b, name="wide", strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1])
        else:
            how: dict[str, Any] = {"strides": [2, 2], "auto_pad": "SAME_UPPER"} if kind == "strided" else {}
            y = net.conv(x, 10, 3, name="wide", **how)
        net.output(net.op("GlobalAveragePool", net.op("Relu", y)))
        return net.model()
    x = net.op("Tanh", net.linear(net.input((3, 8) if "gemm" in kind else (2, 3, 8), "x"), 12))
    w = net.weight(*((10, 12) if kind in ("gemm", "einsum") else (12, 10)), name="w", fan_in=12)
    if "gemm" in kind:
        y = net.op("Gemm", x, w, net.weight(10), name="wide", transB=int(kind == "gemm"))
    elif kind == "einsum":
        y = net.op("Einsum", x, w, name="wide", equation="abk,ok->abo")
    else:
        y = net.op("Add", net.op("MatMul", x, w, name="wide"), net.weight(10))
    net.output(net.linear(net.op("Tanh", y), 4))
    return net.model()


KINDS = ["conv", "strided", "transposed", "gemm", "old gemm", "matmul", "einsum"]


def lowered(model: ModelProto, rank: int) -> ModelProto:
    """Return a model whose layer "wide" has a weight of lower rank, by NumPy's SVD of it."""
    copy = ModelProto.FromString(model.SerializeToString())
    (node,) = (n for n in copy.graph.node if n.name == "wide")
    (tensor,) = (t for t in copy.graph.initializer if t.name == node.input[1])
    weight = numpy_helper.to_array(tensor).astype(np.float64)
    first = np.moveaxis(weight, 1, 0) if node.op_type == "ConvTranspose" else weight
    u, s, v = np.linalg.svd(first.reshape(len(first), -1), full_matrices=False)
    near = ((u[:, :rank] * s[:rank]) @ v[:rank]).reshape(first.shape)
    near = np.moveaxis(near, 1, 0) if node.op_type == "ConvTranspose" else near
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(near, dtype=np.float32), tensor.name))
    return copy


class TestRewriting:
    @pytest.mark.parametrize("kind", KINDS)
    def test_two_layers_are_the_one_of_lower_rank(self, kind: str) -> None:
        model, inputs = chain(kind), inputs_of(analyze(chain(kind)))
        graph = analyze(model)
        found, _ = factored(graph, {"wide": 3})
        expected = run_once(lowered(model, 3), inputs)
        assert largest_difference(run_once(found.proto, inputs), expected) < 1e-5
        assert largest_difference(run_once(lowered(model, 4), inputs), expected) > 1e-3
        assert prove_factored(graph.proto, found, inputs) < 1e-5

    @pytest.mark.parametrize("kind", KINDS)
    def test_costs_are_those_that_were_expected(self, kind: str) -> None:
        graph = analyze(chain(kind))
        (split,) = (s for s in find_split(graph.proto, graph.shapes)[0] if s.layer.node.name == "wide")
        found, after = factored(graph, {"wide": 3})
        before, now = cost(PrunedGraph(graph)), cost(PrunedGraph(after))
        assert before.macs - now.macs == split.cost.macs - split.macs(3) > 0
        assert before.params - now.params == split.outputs * split.features - split.params(3)
        assert found.cheaper(PrunedGraph(after)) == {"wide": 3}
        most = split.most
        assert split.macs(most) < split.cost.macs and split.params(most) < split.outputs * split.features
        more = most + 1
        assert split.macs(more) >= split.cost.macs or split.params(more) >= split.outputs * split.features

    def test_what_is_between_is_a_group(self) -> None:
        """Channels between the two leave as others do, and the proof holds."""
        graph = analyze(chain("conv"))
        found, after = factored(graph, {"wide": 4})
        firsts = found.firsts["wide"]
        assert any(group.producers == (firsts,) and len(group.units) == 4 for group in after.groups)
        assert_proved(removal(list(after.groups), after, np.random.default_rng(1)))

    @pytest.mark.parametrize("break_", ["another weight", "not the nearest"])
    def test_wrong_ones_are_noticed(self, break_: str) -> None:
        graph = analyze(chain("conv"))
        found, _ = factored(graph, {"wide": 3})
        tensor = next(t for t in found.proto.graph.initializer if t.name == "wide_w_second")
        second = numpy_helper.to_array(tensor).copy()
        if break_ == "another weight":
            name = next(n.input[1] for n in found.proto.graph.node if n.op_type == "Conv")
            tensor = next(t for t in found.proto.graph.initializer if t.name == name)
            second = 1.1 * numpy_helper.to_array(tensor)
        else:
            second[:, 0] *= 1.1  # a product of the same rank
        tensor.CopyFrom(numpy_helper.from_array(second.astype(np.float32), tensor.name))
        with pytest.raises(VerificationError) as caught:
            prove_factored(graph.proto, found, inputs_of(graph))
        assert caught.value.code == "OP501"

    def test_layers_that_cannot_be_two_have_reasons(self) -> None:
        net = Net()
        x = net.conv(net.input((1, 8, 6, 6), "x"), 8, 3, name="grouped", group=2)
        x = net.conv(x, 1, 1, name="narrow")
        net.output(net.op("Conv", x, net.const(np.full((4, 1, 3, 3), np.nan)), name="broken"))
        graph = analyze(net.model())
        found, others = find_split(graph.proto, graph.shapes)
        reasons = {other.node: other.reason for other in others}
        assert not found
        assert reasons["grouped"] == "it has groups of channels"
        assert "single channel" in reasons["narrow"] and "finite" in reasons["broken"]

    @pytest.mark.parametrize("ranks", [{"wide": 99}, {"none": 2}])
    def test_plans_that_do_not_fit_are_refused(self, ranks: dict[str, int]) -> None:
        graph = analyze(chain("conv"))
        with pytest.raises(PlanError) as caught:
            factor(graph.proto, graph.shapes, ranks)
        assert caught.value.code == "OP307"


def examine(sample: Sample, seed: int) -> Counter[str]:
    """Lower ranks of a random model, prune it at random, and hold each against its oracle."""
    seen: Counter[str] = Counter(models=1)
    rng, graph = np.random.default_rng(seed), analyze(sample.model, sample.shapes)
    layers, _ = find_split(graph.proto, graph.shapes)
    ranks = {s.layer.node.name: int(rng.integers(1, s.most + 1)) for s in layers if rng.random() < 0.7}
    if not ranks:
        return seen
    seen["lowered"] += 1
    found, after = factored(graph, ranks)
    inputs = inputs_of(graph)
    prove_factored(graph.proto, found, inputs)
    assert_proved(removal(list(after.groups), after, rng), tolerance=1e-4)
    name = next(iter(ranks))
    second = next(node.input[1] for node in found.proto.graph.node if node.name == name)
    tensor = next(t for t in found.proto.graph.initializer if t.name == second)
    tensor.CopyFrom(numpy_helper.from_array(1.5 * numpy_helper.to_array(tensor), second))
    seen["controls"] += 1
    try:
        prove_factored(graph.proto, found, inputs)
    except VerificationError:
        seen["caught"] += 1
    return seen


@pytest.mark.slow
def test_random_graphs() -> None:
    total: Counter[str] = Counter()

    @settings(max_examples=300, suppress_health_check=list(HealthCheck), deadline=None)
    @given(samples(), st.integers(0, 2**16))
    def inner(sample: Sample, seed: int) -> None:
        total.update(examine(sample, seed))

    inner()
    assert total["lowered"] > 0.5 * total["models"], total
    assert total["caught"] == total["controls"], total
