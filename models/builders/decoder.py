"""A Llama-like decoder of any size. Its weights are written to a file one by one, never all held in memory."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

_OPSET, _IR_VERSION = 17, 8
_EPSILON = 1e-5
_THETA = 10_000.0  # of the rotary embedding


@dataclass(frozen=True, slots=True)
class Decoder:
    """The sizes of a decoder.

    Attributes:
        layers: number of blocks of attention and MLP.
        width: width of the residual stream.
        heads: number of query heads.
        shared: number of key and value heads, each shared by several query heads.
        inner: width of the gated MLP.
        words: size of the vocabulary.
    """

    layers: int = 20
    width: int = 2048
    heads: int = 32
    shared: int = 8
    inner: int = 5632
    words: int = 32_000

    @property
    def head(self) -> int:
        """The width of one head."""
        return self.width // self.heads

    @property
    def params(self) -> int:
        """The number of parameters."""
        attention = 2 * self.width * self.width + 2 * self.width * self.shared * self.head
        layer = attention + 3 * self.width * self.inner + 2 * self.width
        return self.layers * layer + 2 * self.words * self.width + self.width


def write_decoder(path: Path, sizes: Decoder, *, seed: int = 0) -> None:
    """Write a decoder with random weights as float32: the graph to a file, its weights to another next to it.

    Input ``ids``, int64 [N, steps]; output ``logits`` [N, steps, words]. It has rotary embeddings, grouped
    queries, RMS normalizations written in basic operators, and causal attention.

    Args:
        path: where the graph goes; the weights go to ``<name>.data`` in the same folder.
        sizes: the sizes of the decoder.
        seed: seed of the weights.
    """
    with path.with_name(f"{path.name}.data").open("wb") as data:
        graph = _Graph(sizes, data.name, seed)
        for tensor in graph.weights:
            entries = {e.key: e.value for e in tensor.external_data}
            data.seek(int(entries["offset"]))
            _draw(graph.rng, tensor).tofile(data)
    path.write_bytes(graph.model().SerializeToString())


def _draw(rng: np.random.Generator, tensor: TensorProto) -> np.ndarray:
    """Draw a weight; vectors are gains near one."""
    shape = tuple(tensor.dims)
    if len(shape) == 1:
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(shape[0] ** -0.5)


class _Graph:
    """The nodes of a decoder, in order."""

    def __init__(self, sizes: Decoder, data: str, seed: int) -> None:
        self.sizes = sizes
        self.rng = np.random.default_rng(seed)
        self.weights: list[TensorProto] = []
        self._constants: dict[str, TensorProto] = {}
        self._nodes: list[NodeProto] = []
        self._data, self._offset = Path(data).name, 0
        self._build()

    def model(self) -> ModelProto:
        """Return the whole model, with weights as external data."""
        graph = helper.make_graph(
            self._nodes,
            "decoder",
            [helper.make_tensor_value_info("ids", TensorProto.INT64, ["N", "steps"])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", "steps", self.sizes.words])],
            [*self.weights, *self._constants.values()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)

    def _build(self) -> None:
        sizes = self.sizes
        self._op("Shape", "ids", name="sizes")
        self._op("Gather", "sizes", self._ints(1), name="steps")
        place = self._op("Range", self._ints(0), "steps", self._ints(1), name="place")
        rows, columns = (self._op("Unsqueeze", place, self._ints([axis])) for axis in (1, 0))
        self._op("LessOrEqual", columns, rows, name="allowed")
        powers = _THETA ** -(np.arange(sizes.head // 2) / (sizes.head // 2))
        turns = self._op("Mul", self._op("Cast", rows, to=TensorProto.FLOAT), self._floats([*powers, *powers]))
        self._op("Cos", turns, name="cos")
        self._op("Sin", turns, name="sin")
        x = self._op("Gather", self._weight("embedding", sizes.words, sizes.width), "ids")
        for i in range(sizes.layers):
            x = self._op("Add", x, self._attention(self._norm(x, f"layer{i}.attention"), f"layer{i}"))
            x = self._op("Add", x, self._perceptron(self._norm(x, f"layer{i}.perceptron"), f"layer{i}"))
        x = self._norm(x, "last")
        self._op("MatMul", x, self._weight("head", sizes.width, sizes.words), name="logits")

    def _norm(self, x: str, name: str) -> str:
        square = self._op("ReduceMean", self._op("Mul", x, x), axes=[-1], keepdims=1)
        root = self._op("Sqrt", self._op("Add", square, self._floats(_EPSILON)))
        return self._op("Mul", self._op("Div", x, root), self._weight(f"{name}.gain", self.sizes.width))

    def _linear(self, x: str, name: str, before: int, behind: int) -> str:
        return self._op("MatMul", x, self._weight(name, before, behind), name=f"{name}.out")

    def _attention(self, x: str, name: str) -> str:
        sizes = self.sizes
        kv = sizes.shared * sizes.head
        q = self._rotated(self._heads(self._linear(x, f"{name}.q", sizes.width, sizes.width), sizes.heads))
        k = self._repeated(self._rotated(self._heads(self._linear(x, f"{name}.k", sizes.width, kv), sizes.shared)))
        v = self._repeated(self._heads(self._linear(x, f"{name}.v", sizes.width, kv), sizes.shared))
        scores = self._op("MatMul", q, self._op("Transpose", k, perm=[0, 1, 3, 2]))
        scores = self._op("Mul", scores, self._floats(sizes.head**-0.5))
        weights = self._op("Softmax", self._op("Where", "allowed", scores, self._floats(-1e9)), axis=-1)
        merged = self._op("Transpose", self._op("MatMul", weights, v), perm=[0, 2, 1, 3])
        flat = self._op("Reshape", merged, self._ints([0, 0, sizes.width]))
        return self._linear(flat, f"{name}.o", sizes.width, sizes.width)

    def _heads(self, x: str, heads: int) -> str:
        split = self._op("Reshape", x, self._ints([0, 0, heads, self.sizes.head]))
        return self._op("Transpose", split, perm=[0, 2, 1, 3])

    def _rotated(self, x: str) -> str:
        half = self.sizes.head // 2
        first = self._op("Slice", x, self._ints([0]), self._ints([half]), self._ints([3]))
        second = self._op("Slice", x, self._ints([half]), self._ints([2 * half]), self._ints([3]))
        turned = self._op("Concat", self._op("Neg", second), first, axis=3)
        return self._op("Add", self._op("Mul", x, "cos"), self._op("Mul", turned, "sin"))

    def _repeated(self, x: str) -> str:
        """Repeat each key or value head for the query heads that share it."""
        sizes = self.sizes
        times = sizes.heads // sizes.shared
        spread = self._op("Unsqueeze", x, self._ints([2]))
        spread = self._op("Expand", spread, self._ints([1, 1, times, 1, 1]))
        return self._op("Reshape", spread, self._ints([0, sizes.heads, -1, sizes.head]))

    def _perceptron(self, x: str, name: str) -> str:
        width, inner = self.sizes.width, self.sizes.inner
        gate, up = (self._linear(x, f"{name}.{part}", width, inner) for part in ("gate", "up"))
        gated = self._op("Mul", self._op("Mul", gate, self._op("Sigmoid", gate)), up)
        return self._linear(gated, f"{name}.down", inner, width)

    def _op(self, op_type: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        output = name or f"{op_type}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(op_type, inputs, [output], name=f"{output}/{op_type}", **attributes))
        return output

    def _weight(self, name: str, *shape: int) -> str:
        size = 4 * prod(shape)
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", self._data), ("offset", self._offset), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
        self.weights.append(tensor)
        self._offset += size
        return name

    def _ints(self, value: int | list[int]) -> str:
        return self._constant(np.array(value, dtype=np.int64))

    def _floats(self, value: float | list[float]) -> str:
        return self._constant(np.array(value, dtype=np.float32))

    def _constant(self, array: np.ndarray) -> str:
        name = f"{array.dtype}_{array.tolist() if array.size < 9 else array.size}"
        self._constants.setdefault(name, numpy_helper.from_array(array, name))
        return name
