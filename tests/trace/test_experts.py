"""Mixtures of experts against NumPy: the original with weights set to zero and experts never chosen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper

from onnxprune.channels.values import Shape
from onnxprune.model.graph import attribute
from onnxprune.operators.contractions import multiply_accumulates
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.rewrite.verify import verify
from onnxprune.trace import ChannelGraph
from onnxprune.trace.pruned_graph import PrunedGraph
from tests.toolbox import Net, analyze, assert_sound, inputs_of, removal, run_once

TOKENS, EXPERTS, WIDTH, INNER, BEST = 20, 4, 64, 32, 2
Array = NDArray[Any]


def mixture(fusion: int = 0, gate: bool = False, k: int = BEST, **attributes: Any) -> Net:
    """Return a mixture between projections, and a residual around it."""
    net = Net(domains={"com.microsoft": 1})
    x = net.op("MatMul", net.input((TOKENS, 10), "x"), net.weight(10, WIDTH, name="w0", fan_in=10), name="before")
    scores = net.op("MatMul", x, net.weight(WIDTH, EXPERTS, name="router", fan_in=8), name="router")
    rows = INNER * (2 if fusion else 1)
    weights = [net.weight(EXPERTS, rows, WIDTH, name="f1", fan_in=WIDTH), net.weight(EXPERTS, rows, name="b1")]
    weights += [net.weight(EXPERTS, WIDTH, INNER, name="f2", fan_in=INNER), net.weight(EXPERTS, WIDTH, name="b2")]
    if gate:
        weights += [net.weight(EXPERTS, INNER, WIDTH, name="f3", fan_in=WIDTH), net.weight(EXPERTS, INNER, name="b3")]
    if fusion or gate:
        attributes |= {"activation_type": "swiglu", "activation_alpha": 1.7, "activation_beta": 1.0}
    made = net.op("com.microsoft:MoE", x, scores, *weights, k=k, swiglu_fusion=fusion, name="moe", **attributes)
    net.output(net.op("MatMul", net.op("Add", x, made), net.weight(WIDTH, 3, name="w1"), name="after"))
    return net


def packed(net: Net, values: Array, bits: int, name: str) -> str:
    """Pack numbers of a few bits along the last axis, the first in the lowest bits of a byte."""
    each = 8 // bits
    parts = values.reshape(*values.shape[:-1], -1, each)
    return net.const((parts << (bits * np.arange(each))).sum(-1).astype(np.uint8), name)


def unpacked(values: Array, bits: int) -> Array:
    each = 8 // bits
    parts = values[..., None].astype(np.int64) >> (bits * np.arange(each))
    return (parts & (2**bits - 1)).reshape(*values.shape[:-1], -1)


def quantized(bits: int, block: int, zero_points: bool, fusion: int = 1, **attributes: Any) -> Net:
    """Return a quantized mixture between projections, without a residual: its output is as wide as its input."""
    net = Net(domains={"com.microsoft": 1})
    x = net.op("MatMul", net.input((TOKENS, 10), "x"), net.weight(10, WIDTH, name="w0", fan_in=10), name="before")
    scores = net.op("MatMul", x, net.weight(WIDTH, EXPERTS, name="router", fan_in=8), name="router")
    rows = INNER * (2 if fusion else 1)
    operands, points = [x, scores], []
    for i, (outputs, inputs) in enumerate(((rows, WIDTH), (WIDTH, INNER)), 1):
        values = net.rng.integers(0, 2**bits, (EXPERTS, outputs, inputs))
        scales = (EXPERTS, outputs, inputs // block) if block else (EXPERTS, outputs)
        operands += [
            packed(net, values, bits, f"f{i}"),
            net.between(0.1 / 2**bits, 0.3 / 2**bits, *scales, name=f"s{i}"),
        ]
        operands.append(net.weight(EXPERTS, outputs, name=f"b{i}"))
        if zero_points:
            points.append(packed(net, net.rng.integers(0, 2**bits, scales), bits, f"z{i}"))
    operands += ["", "", "", *points]
    if fusion:
        attributes |= {"activation_type": "swiglu", "swiglu_fusion": fusion}
    if block:
        attributes["block_size"] = block
    attributes |= {"k": BEST, "expert_weight_bits": bits}
    net.ops("com.microsoft:QMoE", *operands, count=1, shapes=[(TOKENS, WIDTH)], name="moe", **attributes)
    net.output(net.op("MatMul", "moe_out0", net.weight(WIDTH, 3, name="w1"), name="after"))
    return net


def evaluate(model: ModelProto, x: Array, lost: Array | tuple[()] = ()) -> Array:
    """Compute a model by NumPy, from the operator's definition; experts that are lost are never chosen."""
    w = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}
    node = next(n for n in model.graph.node if n.name == "moe")
    if node.op_type == "QMoE":
        bits = attribute(node, "expert_weight_bits")
        for i in "12":
            codes = unpacked(w[f"f{i}"].astype(np.uint8), bits)
            scale, point = w[f"s{i}"], np.full(w[f"s{i}"].shape, 2.0 ** (bits - 1))
            if f"z{i}" in w:
                point = unpacked(w[f"z{i}"].astype(np.uint8), bits).astype(np.float64)
            if scale.ndim == 2:
                scale, point = scale[..., None], point[..., None]
            times = codes.shape[-1] // scale.shape[-1]
            w[f"f{i}"] = (codes - point.repeat(times, -1)) * scale.repeat(times, -1)
    x = x.astype(np.float64) @ w["w0"]
    scores = x @ w["router"]
    scores[:, list(lost)] = -np.inf
    total = np.zeros_like(x)
    for token, row in enumerate(x):
        best = np.argsort(-scores[token], kind="stable")[: attribute(node, "k")]
        chances = np.exp(scores[token] - scores[token].max())
        chances = chances / chances.sum()
        if node.op_type == "QMoE" or attribute(node, "normalize_routing_weights"):
            chances = chances / chances[best].sum()
        for e in best:
            total[token] += chances[e] * (w["f2"][e] @ hidden(node, w, e, row) + w["b2"][e])
    residual = x if node.op_type == "MoE" else 0
    return np.asarray((residual + total) @ w["w1"])


def hidden(node: Any, w: dict[str, Array], e: int, row: Array) -> Array:
    """Compute an expert's inner channels."""
    h, fusion = w["f1"][e] @ row + w["b1"][e], attribute(node, "swiglu_fusion")
    if attribute(node, "activation_type") != "swiglu":
        return np.maximum(h, 0)
    other = w["f3"][e] @ row + w["b3"][e] if "f3" in w else h
    middle = len(h) // 2
    gate, up = {0: (h, other), 1: (h[0::2], h[1::2]), 2: (h[:middle], h[middle:])}[fusion]
    alpha, beta = attribute(node, "activation_alpha", 1.0), attribute(node, "activation_beta", 0.0)
    return np.asarray(gate / (1 + np.exp(-alpha * gate)) * (up + beta))


def zeroed(kept: PrunedGraph) -> ModelProto:
    """Set the weights that read or make removed channels to zero, where that is a zero of floating point."""
    model = ModelProto()
    model.CopyFrom(kept.graph.proto)
    removed = kept.positions()
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        for axis, positions in removed.get(tensor.name, {}).items():
            reads = (tensor.name, axis) in {
                ("w1", 0),
                ("f2", 2),
                ("s2", 2),
                ("router", 0),
                ("w0", 1),
                ("s1", 1),
                ("b1", 1),
            }
            if reads and array.dtype != np.uint8:
                np.moveaxis(array, axis, 0)[positions] = 0
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model


def lost_experts(kept: PrunedGraph) -> Array:
    return np.asarray(kept.positions().get("router", {}).get(1, ()), dtype=np.int64)


def slots(graph: ChannelGraph) -> dict[str, tuple[int, int]]:
    """Return the number of units and their width, by a weight axis that names the group."""
    names = {("router", 1): "experts", ("w0", 1): "width", ("f2", 2): "inner"}
    return {names[s]: (len(g.units), g.width) for g in graph.groups for s in g.slots if s in names}


MIXTURES = {
    "relu": {},
    "normalized": {"normalize_routing_weights": 1},
    "all": {"k": EXPERTS},
    "interleaved": {"fusion": 1, "normalize_routing_weights": 1},
    "halves": {"fusion": 2},
    "gate": {"gate": True},
}
ON_CPU = {"relu", "normalized", "all", "interleaved"}  # what ONNX Runtime's CPU kernel computes


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture(name: str) -> None:
    graph = analyze(declared(mixture(**MIXTURES[name])))
    fused = 2 if MIXTURES[name].get("fusion") else 1
    assert slots(graph) == {"experts": (EXPERTS, 1), "width": (WIDTH, 1), "inner": (INNER, fused)}
    assert [g.exact for g in graph.groups if ("router", 1) in g.slots] == [False]
    assert all(g.exact for g in graph.groups if ("router", 1) not in g.slots)
    hold(graph, on_cpu=name in ON_CPU)


@pytest.mark.parametrize(
    ("bits", "block", "zero_points", "fusion", "width", "inner"),
    [
        (4, 0, False, 0, (32, 2), (16, 2)),
        (4, 0, False, 1, (32, 2), (16, 4)),
        (8, 0, False, 1, (64, 1), (32, 2)),
        (4, 16, False, 1, (4, 16), (2, 32)),
        (4, 16, True, 1, (2, 32), None),
        (4, 16, False, 2, (4, 16), (2, 32)),
        (8, 16, True, 0, (4, 16), (2, 16)),
    ],
)
def test_a_quantized_mixture(
    bits: int, block: int, zero_points: bool, fusion: int, width: tuple[int, int], inner: tuple[int, int] | None
) -> None:
    graph = analyze(declared(quantized(bits, block, zero_points, fusion)))
    assert slots(graph) == {"experts": (EXPERTS, 1), "width": width, **({"inner": inner} if inner else {})}
    hold(graph, on_cpu=fusion < 2)


def declared(net: Net) -> ModelProto:
    """Return the model with its tensors' types, which onnx can't infer behind these operators."""
    model = net.model(check=False)
    model.graph.value_info.extend(helper.make_value_info(name, net.types[name]) for n in net.nodes for name in n.output)
    return model


def hold(graph: ChannelGraph, *, on_cpu: bool) -> None:
    """Compare pruned models with the original, by NumPy and, if it can run them, by ONNX Runtime."""
    data = inputs_of(graph)
    x = data["x"]
    for seed in range(4):
        kept = removal(graph.groups, graph, np.random.default_rng(seed))
        pruned = rewrite(kept)
        assert_sound(kept, pruned)
        expected, found = evaluate(zeroed(kept), x, lost_experts(kept)), evaluate(pruned, x)
        scale = np.abs(expected).max()
        assert np.abs(found - expected).max() < 1e-6 * scale
        assert np.abs(evaluate(graph.proto, x) - expected).max() > 1e-2 * scale  # the control: something left
        if on_cpu:
            assert np.abs(run_once(pruned, data)[graph.proto.graph.output[0].name] - found).max() < 2e-2 * scale
            assert verify(kept, pruned, data).passed


def test_no_more_experts_are_chosen_than_remain() -> None:
    graph = analyze(mixture(k=3).model(check=False))
    (group,) = (g for g in graph.groups if ("router", 1) in g.slots)
    removed = np.zeros(graph.unit_count, dtype=bool)
    removed[group.units[[0, 2]]] = True
    kept = PrunedGraph(graph, removed)
    pruned = rewrite(kept)
    assert attribute(next(n for n in pruned.graph.node if n.name == "moe"), "k") == 2
    data = inputs_of(graph)
    assert verify(kept, pruned, data).passed
    assert np.allclose(evaluate(pruned, data["x"]), evaluate(graph.proto, data["x"], np.array([0, 2])), atol=1e-5)


def test_weights_packed_for_a_provider_stay() -> None:
    """Inputs first, which is what the default layout means on CUDA; and what could be either."""
    for changes in ({"weights_prepacked": 1}, {}):
        net = quantized(4, 0, False, 0, **changes)
        if not changes:
            for name in ("f1", "f2"):
                array = numpy_helper.to_array(net.tensors[name])
                net.const(unpacked(array, 4).swapaxes(1, 2)[..., ::2].astype(np.uint8), name)
        graph = analyze(net.model(check=False))
        assert not graph.groups
        assert "OP211" in {pin.code for _, pin in graph.reasons()}


@pytest.mark.parametrize("k", [1, BEST, 2 * EXPERTS])
def test_multiply_accumulates_are_those_of_the_chosen_experts(k: int) -> None:
    for net, each in ((mixture(k=k), 2), (mixture(fusion=1, k=k), 3), (mixture(gate=True, k=k), 3)):
        assert counted(net) == TOKENS * min(k, EXPERTS) * each * WIDTH * INNER
    assert counted(quantized(4, 16, False)) == TOKENS * BEST * 3 * WIDTH * INNER


def counted(net: Net) -> int:
    node = next(n for n in net.nodes if n.name == "moe")
    shapes: dict[str, Shape] = {name: net.shape(name) for name in (*node.input, *node.output) if name}
    found = multiply_accumulates(node, shapes)
    assert found is not None
    return found[1](*(shapes[name] for name in found[0]))
