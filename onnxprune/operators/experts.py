"""Mixtures of experts: whole experts leave, or the same part of each expert's inner width, or of the width around.

Every token is multiplied by the weights of the k experts with the highest scores: `MoE`, and `QMoE` with weights of a
few bits. Both are two contractions, x W1 with all experts side by side, and the sum over experts of what comes out
times W2.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import pi, prod, sqrt

from onnxprune.channels.align import align
from onnxprune.channels.values import Shape, Value
from onnxprune.model.tape import Tensor
from onnxprune.operators.card import INTEGERS, describe, rewrites, traces, written_out
from onnxprune.operators.differentiated import GradientNode
from onnxprune.operators.node import Node
from onnxprune.operators.rewritten import RewriteNode
from onnxprune.operators.traced import TraceNode

_CHOSEN = "its experts are chosen token by token"
_RANKED = "the experts with the highest scores are chosen among these"
_LAYERS = {"MoE": (2, 4, 6), "QMoE": (2, 5, 8)}  # the weights of the first layer, of the second, and of a gate
_PAIRED = ("swiglu", "geglu")


def _bits(node: Node, layer: int) -> int:
    """Return the bits of a weight of layer 1, 2 or 3."""
    return int(node.attr(f"fc{layer}_expert_weight_bits") or node.attr("expert_weight_bits", 4))


def _macs(node: Node, x: list[Shape], y: Shape) -> int:
    """Count the experts that each token is multiplied by."""
    quantized = node.node.op_type == "QMoE"
    weights = ((i, x[layer]) for i, layer in enumerate(_LAYERS[node.node.op_type], 1) if layer < len(x) and x[layer])
    each = sum(prod(shape[1:]) * (8 // _bits(node, i) if quantized else 1) for i, shape in weights)
    return prod(y[:-1]) * min(int(node.attr("k", 1)), x[1][-1]) * each


def _zero_bytes(node: Node) -> Mapping[int, int]:
    """Return the byte that stands for zeros in each packed weight: the middle of the range, repeated."""
    return {
        layer: sum(1 << (bits * part + bits - 1) for part in range(8 // bits))
        for i, layer in enumerate(_LAYERS["QMoE"], 1)
        if (bits := _bits(node, i))
    }


describe("com.microsoft:MoE com.microsoft:QMoE", factors=(0, 2), macs=_macs)
describe("com.microsoft:MoE", weights=tuple(range(2, 8)), reasons={"linear": _CHOSEN})
describe("com.microsoft:QMoE", zero_bytes=_zero_bytes, reasons=INTEGERS)


@traces("com.microsoft:MoE")
def mixture(op: TraceNode) -> None:
    """Experts of two layers, the first perhaps with a gate, weighted by a router's scores."""
    rows = _rows(op, "i")
    first = {2: f"e {rows} h", 3: f"e {rows}", 6: "e i h", 7: "e i"}
    _mix(op, "h", "i", first, {4: "e h i", 5: "e h"}, op.shape(4)[2], g=2)


def _fusion(op: Node) -> int:
    """Return how a gate is fused into the first layer: 0 for not at all, 1 row by row, 2 one half after the other."""
    return int(op.attr("swiglu_fusion", 0)) if op.attr("activation_type", "relu") in _PAIRED else 0


def _rows(op: TraceNode, inner: str) -> str:
    """Return the spec of the first layer's outputs: with a fused gate, two for each inner channel."""
    return (f"({inner})", f"({inner} g)", f"(g {inner})")[_fusion(op)]


@traces("com.microsoft:QMoE")
def quantized_mixture(op: TraceNode) -> None:
    """As MoE, the weights in blocks of a few bits along the inputs, each with its scale: whole blocks leave.

    Without blocks, channels whose weights share a byte leave together. Zero points may be packed as well, those of
    several blocks in a byte.
    """
    block, bits = max(0, op.attr("block_size", 0)), [_bits(op, layer) for layer in (1, 2, 3)]
    width, inner = op.shape(0)[-1], op.shape(3)[1] // (2 if _fusion(op) else 1)
    zero_points = any(op.has(i) for i in (11, 12, 13))
    step = block * (8 // min(bits) if zero_points else 1) or 8 // min(bits)
    plain = op.attr("quant_type", "int") in ("int", b"int") and not any(op.has(i) for i in range(15, 21))
    if not plain or not {2, 4, 8}.issuperset(bits) or (zero_points and not block) or width % step or inner % step:
        op.give_up("OP211", "this form of quantization is left alone, or its blocks don't come out even")
        return
    if not _is_raw(op, width, inner, bits):
        hint = "set its attribute weights_prepacked to 0 if each row holds the weights of an output"
        op.give_up("OP211", "its weights are or may be packed for one execution provider", hint)
        return
    rows = _rows(op, "j q")
    sizes = {f"w{i}": step * b // 8 for i, b in enumerate(bits, 1)}
    sizes |= {"s": step // (block or 1)} | {f"z{i}": step // (block or 1) * b // 8 for i, b in enumerate(bits, 1)}
    across, along = (" (c s)", " (j s)") if block else ("", "")
    first = {2: f"e {rows} (c w1)", 3: f"e {rows}{across}", 4: f"e {rows}", 11: f"e {rows} (c z1)"}
    first |= {8: "e (j q) (c w3)", 9: f"e (j q){across}", 10: "e (j q)", 13: "e (j q) (c z3)"}
    second = {5: "e (c a) (j w2)", 6: f"e (c a){along}", 7: "e (c a)", 12: "e (c a) (j z2)", 14: "r e"}
    _mix(op, "(c a)", "(j q)", first, second, inner, g=2, a=step, q=step, **sizes)


def _is_raw(op: TraceNode, width: int, inner: int, bits: list[int]) -> bool:
    """Whether rows of the weights are outputs and bytes hold neighboring inputs.

    The layout for CUDA that the default of ``weights_prepacked`` may also mean holds inputs first.
    """
    shapes = [op.shape(2)[1:], op.shape(5)[1:]]
    rows = op.shape(3)[1]
    raw = [(rows, width * bits[0] // 8), (width, inner * bits[1] // 8)]
    packed = [(width, rows * bits[0] // 8), (inner, width * bits[1] // 8)]
    stated = op.attr("weights_prepacked", -1)
    return shapes == raw and (stated == 0 or (stated == -1 and shapes != packed))


def _mix(
    op: TraceNode, h: str, i: str, first: Mapping[int, str], second: Mapping[int, str], inner: int, **given: int
) -> None:
    """Apply the specs of both layers, and tie the output's channels to the input's: their number is the same.

    Args:
        op: the node.
        h: the spec of the width around.
        i: the spec of an expert's inner width.
        first: the specs of the inputs that belong to the first layer, by number.
        second: those of the second layer.
        inner: an expert's inner width.
        given: sizes of names inside parentheses.
    """
    x, scores = op.x(0), op.x(1)
    experts = scores.shape[-1]

    def layer(data: Value, spec: str, operands: Mapping[int, str], made: str, shape: Shape) -> Value:
        present = [n for n in operands if op.has(n)]
        full = ", ".join([spec, "r e", *(operands[n] for n in present)])
        return align(op, f"{full} -> {made}", [data, scores, *map(op.x, present)], {0: shape}, given=given)[0]

    hidden = layer(x, f"*t {h}", first, f"*t e {i}", (*x.shape[:-1], experts, inner))
    made = layer(hidden, f"*t e {i}", second, f"*t {h}", x.shape)
    op.approximate(scores, [1], _RANKED)
    op.align("*t h, *t h -> *t h", [x, made])


@rewrites("com.microsoft:MoE com.microsoft:QMoE")
def chosen(edit: RewriteNode) -> None:
    """No more experts are chosen than there are."""
    if edit.attr("k", 1) > (remaining := edit.new_shape(1)[-1]):
        edit.set_attr("k", remaining)


@written_out("com.microsoft:MoE")
def weighted_experts(op: GradientNode) -> list[Tensor]:
    """Return what all experts make, weighted by the router: zero for those that aren't chosen.

    The weights are the Softmax of the scores, over the chosen experts only if `normalize_routing_weights` is set. Which
    experts are chosen passes no gradient; their weights do. W. Fedus, B. Zoph and N. Shazeer, "Switch Transformers:
    Scaling to trillion parameter models with simple and efficient sparsity" (JMLR 2022).

    Raises:
        NotImplementedError: the node has a form that isn't supported.
    """
    if op.has(6) or op.attr("use_sparse_mixer", 0):
        raise NotImplementedError("it has a third layer, or another choice of experts")
    x, scores = op.x(), op.x(1)
    experts, width, _ = op.shape(4)
    rows = x.reshape((1, -1, width))

    def layer(data: Tensor, weight: int, bias: int) -> Tensor:
        made = data @ op.x(weight).mT
        return made + op.x(bias).reshape((experts, 1, -1)) if op.has(bias) else made

    made = layer(_activated(op, layer(rows, 2, 3)), 4, 5)
    fixed = op.tape.stop_gradient(scores)
    count = min(op.attr("k", 1), experts)
    best, _ = op.tape.emits("TopK", fixed, op.tape.ints([count]), count=2, axis=-1)
    chosen = fixed.op("GreaterOrEqual", best.slice([-1], [count - 1], [count]))
    powers = (scores - fixed.reduce("ReduceMax", [-1])).op("Exp")
    kept = chosen.where(powers, 0.0)
    shares = kept / (kept if op.attr("normalize_routing_weights", 0) else powers).sum([-1])
    return [(made * shares.reshape((-1, experts)).mT.reshape((experts, -1, 1))).sum([0]).reshape(x.shape)]


def _activated(op: GradientNode, x: Tensor) -> Tensor:
    """Return the sums of the first layer behind their activation."""
    kind = op.attr("activation_type", "relu")
    if kind == "swiglu" and _fusion(op) == 1:
        gate, linear = (x.slice([-1], [i], [x.shape[-1]], [2]) for i in range(2))
        if (limit := op.attr("swiglu_limit")) is not None:
            gate, linear = gate.op("Min", limit), linear.op("Min", limit).op("Max", -limit)
        slope, shift = float(op.attr("activation_alpha", 1.0)), float(op.attr("activation_beta", 0.0))
        return gate * (gate * slope).op("Sigmoid") * (linear + shift)
    if kind == "gelu":  # by a tangent, as ONNX Runtime computes it
        return 0.5 * x * (1 + ((x + 0.044715 * x * x * x) * sqrt(2 / pi)).op("Tanh"))
    if kind == "silu":
        return x * x.op("Sigmoid")
    if kind not in ("identity", "relu"):
        raise NotImplementedError(f"its activation is {kind}")
    return x.op("Relu") if kind == "relu" else x
