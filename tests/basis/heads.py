"""Attentions in the forms that exporters write, for tests of bases and of repairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from tests.toolbox import Net

Form = Literal["matmul", "einsum", "packed", "split"]
FORMS: tuple[Form, ...] = ("matmul", "einsum", "packed", "split")
STEPS, FEATURES = 7, 10


@dataclass(frozen=True)
class Attention:
    """A network of one attention.

    ``rank`` is the number of dimensions that queries, keys and values of a head have; all of them by default. ``form``:
    "matmul" and "einsum" project apart; "packed" has one projection in the order (3, heads, width), "split" one that is
    split.
    """

    heads: int = 3
    width: int = 4
    form: Form = "matmul"
    bias: bool = True
    rank: int | None = None
    seed: int = 0

    def weight(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return weights of shape (features + 1, heads, width), the last the bias; all of a head are of the rank."""
        full = rng.standard_normal((FEATURES + 1, self.heads, self.width))
        if self.rank is not None:
            mix = rng.standard_normal((self.heads, self.rank, self.width))
            full = np.einsum("fhr,hrw->fhw", full[..., : self.rank], mix)
        return full / FEATURES**0.5

    def model(self) -> ModelProto:
        """Return the model: input x [batch, steps, features]."""
        net = Net(17, self.seed)
        size = self.heads * self.width
        x = net.input((2, STEPS, FEATURES), "x")
        hidden = net.op("Tanh", net.linear(x, FEATURES, name="first"), name="tanh")
        made = [self.weight(net.rng) for _ in range(3)]
        flat = [w[:-1].reshape(FEATURES, size).astype(np.float32) for w in made]
        biases = [w[-1].reshape(size).astype(np.float32) for w in made]
        names = ("query", "key", "value")
        if self.form in ("packed", "split"):
            y = net.op("MatMul", hidden, net.const(np.concatenate(flat, axis=1), "packed_w"), name="packed")
            if self.bias:
                y = net.op("Add", net.const(np.concatenate(biases), "packed_b"), y)
            if self.form == "split":
                parts = [net.reshape(part, (2, STEPS, self.heads, self.width)) for part in net.split(y, [size] * 3, 2)]
            else:
                y = net.op("Transpose", net.reshape(y, (2, STEPS, 3, self.heads, self.width)), perm=[2, 0, 1, 3, 4])
                parts = [net.op("Gather", y, net.const(np.array(i, np.int64)), axis=0) for i in range(3)]
        else:
            parts = list[str]()
            for name, w, b in zip(names, flat, biases, strict=True):
                y = net.op("MatMul", hidden, net.const(w, f"{name}_w"), name=name)
                y = net.op("Add", net.const(b, f"{name}_b"), y) if self.bias else y
                parts.append(net.reshape(y, (2, STEPS, self.heads, self.width)))
        q, k, v = parts
        q = net.op("Mul", q, net.const(self.width**-0.5))
        if self.form == "einsum":
            logits = net.op("Einsum", q, k, equation="bqhd,bkhd->bhqk", name="logits")
            mixed = net.op("Einsum", self._softmax(net, logits), v, equation="bhqk,bkhd->bqhd")
        else:
            q, v = (net.op("Transpose", t, perm=[0, 2, 1, 3]) for t in (q, v))
            k = net.op("Transpose", k, perm=[0, 2, 3, 1])
            logits = net.op("MatMul", q, k, name="logits")
            mixed = net.op("MatMul", self._softmax(net, logits), v)
            mixed = net.op("Transpose", mixed, perm=[0, 2, 1, 3])
        out = net.linear(net.reshape(mixed, (2, STEPS, size)), 6, name="output")
        net.output(net.op("Tanh", out))
        return net.model()

    def _softmax(self, net: Net, logits: str) -> str:
        return net.op("Softmax", net.op("Add", logits, net.weight(1, 1, STEPS, STEPS)), axis=-1, name="softmax")


def batches(count: int = 12, seed: int = 1) -> list[dict[str, NDArray[np.float32]]]:
    """Return batches of two samples each."""
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((2, STEPS, FEATURES)).astype(np.float32)} for _ in range(count)]
