"""Operators that graph optimizers fuse: the sum of what they were made of."""

from __future__ import annotations

from onnxprune.operators.contraction import conv_groups, convolve
from onnxprune.operators.registry import rewrites, rule
from onnxprune.operators.traced import TraceNode

_MOMENTS = "its mean and variance are taken over these channels"


@rule("com.microsoft:FusedConv", "com.microsoft:NhwcFusedConv")
def fused_conv(op: TraceNode) -> None:
    """A convolution, perhaps a sum, and an activation."""
    if op.node.op_type == "NhwcFusedConv":
        op.give_up("OP211", "channels-last convolutions of the runtime are left alone")
        return
    convolve(op, "n (g i) *s, g o i *k, (g o), n (g o) *t -> n (g o) *t")


rewrites("com.microsoft:FusedConv")(conv_groups)


@rule("com.microsoft:FusedGemm")
def fused_gemm(op: TraceNode) -> None:
    """Gemm and an activation."""
    a = "k m" if op.attr("transA", 0) else "m k"
    b = "n k" if op.attr("transB", 0) else "k n"
    c = " ".join("mn"[2 - len(op.shape(2)) :]) if op.has(2) else ""
    op.align(f"{a}, {b}, {c} -> m n")


@rule("com.microsoft:FusedMatMul", "com.microsoft:TransposeMatMul")
def fused_matmul(op: TraceNode) -> None:
    """MatMul of transposed matrices."""
    a = "k m" if op.attr("transA", 0) else "m k"
    b = "n k" if op.attr("transB", 0) else "k n"
    if op.attr("transBatchA", 0) or op.attr("transBatchB", 0):
        op.give_up("OP211", "transposed batches are left alone")
        return
    op.align(f"*b {a}, *b {b} -> *b m n")


@rule("com.microsoft:SkipLayerNormalization", "com.microsoft:SkipSimplifiedLayerNormalization")
def skip_layer_normalization(op: TraceNode) -> None:
    """A sum, then a normalization over the last axis."""
    vectors = "c, c" if op.node.op_type == "SkipSimplifiedLayerNormalization" else "c, c, c"
    op.align(f"*b c, *b c, {vectors} -> *b c, *m, *v, *b c", approximate={"c": _MOMENTS})


@rule("com.microsoft:EmbedLayerNormalization", "com.microsoft:QEmbedLayerNormalization")
def embed_layer_normalization(op: TraceNode) -> None:
    """A sum of three embeddings, then a normalization over the last axis; 8-bit ones have a scale for each operand."""
    tables = [op.pin_axes(op.x(i), [0], "OP205", "rows are looked up at run time") for i in (2, 3, 4) if op.has(i)]
    spec = ", ".join(f"v{i} c" for i in range(len(tables)))
    op.align(
        f"{spec}, c, c -> b s c, b, b s c",
        [*tables, op.x(5), op.x(6)],
        approximate={"c": _MOMENTS},
    )


@rule("com.microsoft:GroupNorm")
def group_norm(op: TraceNode) -> None:
    """GroupNormalization, channels last."""
    groups = op.attr("groups")
    if op.attr("channels_last", 1):
        op.align("n *s (g c), (g c), (g c) -> n *s (g c)", approximate={"c": _MOMENTS}, balanced={"g"}, g=groups)
    else:
        op.align("n (g c) *s, (g c), (g c) -> n (g c) *s", approximate={"c": _MOMENTS}, balanced={"g"}, g=groups)
