"""Small vision transformers in the forms that exporters write, and the same with means in place of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from tests.toolbox import Net

WIDTH, HEADS, PATCH = 8, 2, 2


@dataclass(frozen=True)
class Form:
    """How a transformer is built.

    Attributes:
        grid: rows and columns of patches.
        extra: tokens in front: for the class, and registers.
        blocks: the number of blocks.
        fused: whether queries, keys and values come from one layer, by a Split.
        end: what the answer is made of: the "class" token, the "mean" of the patches, the "max" of all, or one for each
            of all "tokens" or of "some", or of two "parts".
        bias: whether logits have a bias for each pair of positions.
        symbolic: whether the batch size is left open.
        opset: the opset.
    """

    grid: tuple[int, int] = (4, 4)
    extra: int = 1
    blocks: int = 2
    fused: bool = True
    end: str = "class"
    bias: bool = False
    symbolic: bool = False
    opset: int = 17

    @property
    def tokens(self) -> int:
        return self.extra + self.grid[0] * self.grid[1]


def random_form(rng: np.random.Generator) -> Form:
    """Draw how to build a transformer."""
    extra = int(rng.integers(0, 3))
    return Form(
        grid=(int(rng.integers(2, 6)), int(rng.integers(2, 6))),
        extra=extra,
        fused=bool(rng.integers(2)),
        end=str(rng.choice([*(["class", "parts"] if extra else []), "mean", "max", "some", "tokens"])),
        bias=bool(rng.integers(5) == 0),
        symbolic=bool(rng.integers(2)),
        opset=int(rng.choice([12, 13, 17, 18])),
    )


def transformer(form: Form, seed: int = 0, means: Mapping[int, NDArray[Any]] | None = None) -> ModelProto:
    """Return a transformer.

    Args:
        form: how it is built.
        seed: of its weights.
        means: matrices that multiply the tokens behind some sums, numbered from 0.
    """
    net, sums, replaced = Net(form.opset, seed), 0, means or {}
    size = [n * PATCH for n in form.grid]
    x = net.input((2, 3, *size), "image", symbols={0: "n"} if form.symbolic else None)
    x = net.conv(x, WIDTH, PATCH, strides=[PATCH, PATCH], pads=[0] * 4)
    x = net.op("Transpose", net.reshape(x, (0, WIDTH, -1)), perm=[0, 2, 1])
    if form.extra:
        shape = net.slice(net.op("Shape", x), [0], [1], [0])
        shape = net.op("Concat", shape, net.const(np.array([1, 1])), axis=0)
        made = [[2, form.extra, WIDTH]]
        token = net.ops("Expand", net.weight(1, form.extra, WIDTH), shape, count=1, shapes=made)[0]
        x = net.op("Concat", token, x, axis=1)
    x = net.op("Add", x, net.weight(1, form.tokens, WIDTH))

    def added(x: str, branch: str) -> str:
        nonlocal sums
        x = net.op("Add", x, branch, name=f"sum{sums}")
        if sums in replaced:
            x = net.op("MatMul", net.const(replaced[sums].astype(np.float32)), x)
        sums += 1
        return x

    for _ in range(form.blocks):
        x = added(x, _attention(net, form, _norm(net, x)))
        x = added(x, net.linear(net.op("Relu", net.linear(_norm(net, x), 2 * WIDTH)), WIDTH))
    x = _norm(net, x)
    match form.end:
        case "class":
            x = net.op("Gather", x, net.const(np.array(0)), axis=1)
        case "mean":
            x = net.slice(x, [form.extra], [2**31], [1]) if form.extra else x
            x = net.reduce("ReduceMean", x, [1], keepdims=0)
        case "max":
            x = net.reduce("ReduceMax", x, [1], keepdims=0)
        case "some":
            x = net.op("Gather", x, net.const(np.array([form.tokens - 1, 0, -2, 0])), axis=1)
        case "parts":
            parts = net.split(x, [form.extra, form.tokens - form.extra], 1)
            x = net.op("Add", *(net.reduce("ReduceSum", part, [1], keepdims=0) for part in parts))
    net.output(net.linear(x, 5, name="head"), {0: "n"} if form.symbolic else None)
    return net.model()


def _norm(net: Net, x: str) -> str:
    """Add a layer normalization without the operator that came with opset 17."""
    x = net.op("Sub", x, net.reduce("ReduceMean", x, [-1]))
    spread = net.op("Sqrt", net.op("Add", net.reduce("ReduceMean", net.op("Mul", x, x), [-1]), net.const(1e-5)))
    return net.op("Add", net.op("Mul", net.op("Div", x, spread), net.between(0.5, 2, WIDTH)), net.weight(WIDTH))


def _attention(net: Net, form: Form, x: str) -> str:
    head = WIDTH // HEADS
    if form.fused:
        parts = net.reshape(net.linear(x, 3 * WIDTH), (0, form.tokens, 3, HEADS, head))
        parts = net.op("Transpose", parts, perm=[2, 0, 3, 1, 4])
        q, k, v = (net.squeeze(part, [0]) for part in net.split(parts, [1, 1, 1], 0))
    else:
        q, k, v = (
            net.op("Transpose", net.reshape(net.linear(x, WIDTH), (0, -1, HEADS, head)), perm=[0, 2, 1, 3])
            for _ in range(3)
        )
    logits = net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2]))
    logits = net.op("Mul", logits, net.const(4 / sqrt(head)))  # far from the same for all
    if form.bias:
        logits = net.op("Add", logits, net.weight(1, HEADS, form.tokens, form.tokens))
    shares = net.op("Softmax", logits, axis=3 if form.opset < 13 else -1)
    merged = net.op("Transpose", net.op("MatMul", shares, v), perm=[0, 2, 1, 3])
    return net.linear(net.reshape(merged, (0, form.tokens, WIDTH)), WIDTH)


def blockwise(form: Form, block: tuple[int, int]) -> NDArray[np.float64]:
    """Return the matrix that puts the mean of its block in place of each patch, one pair of patches after the other."""
    matrix, (rows, columns) = np.eye(form.tokens), form.grid
    patches = [(r, c) for r in range(rows) for c in range(columns)]
    for i, (r, c) in enumerate(patches):
        same = [s[0] // block[0] == r // block[0] and s[1] // block[1] == c // block[1] for s in patches]
        matrix[form.extra + i, form.extra :] = np.array(same) / sum(same)
    return matrix


def images(form: Form, count: int = 8, *, blocks: int = 1) -> Callable[[], Iterator[dict[str, NDArray[Any]]]]:
    """Return batches of 2 images, the same within blocks of some patches."""
    rng = np.random.default_rng(1)
    rows, columns = form.grid
    coarse = rng.standard_normal((count, 2, 3, -(-rows // blocks), PATCH, -(-columns // blocks), PATCH))
    fine = coarse.repeat(blocks, 3)[:, :, :, :rows].repeat(blocks, 5)[:, :, :, :, :, :columns]
    data = fine.reshape(count, 2, 3, rows * PATCH, columns * PATCH).astype(np.float32)
    return lambda: ({"image": batch} for batch in data)
