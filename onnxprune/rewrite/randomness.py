"""Make operators that draw random numbers draw the same ones in the original and in the pruned model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from onnxprune.model.checks import DEFAULT_DOMAINS, subgraphs
from onnxprune.model.graph import attribute
from onnxprune.model.wire import copy_model
from onnxprune.shapes import Shapes
from onnxprune.shapes.walk import RANDOM
from onnxprune.trace.pruned_graph import PrunedGraph

_LIKE = {"RandomNormalLike", "RandomUniformLike"}


@dataclass(frozen=True, slots=True)
class Randomness:
    """The random operators of a traced model, by their first output.

    Attributes:
        kept: the traced model, and what was removed from it.
        drawn: a seed for each that can draw the same numbers in both models.
        free: names of the others: those in bodies, and those whose size changes and that can't be replaced.
    """

    kept: PrunedGraph
    drawn: dict[str, int]
    free: tuple[str, ...]

    def fixed(self, model: ModelProto, *, narrow: bool) -> ModelProto:
        """Return a model whose random operators draw fixed numbers; the model itself if it has none.

        Where no channel left an operator's output, the operator gets a seed. Elsewhere the draws of the two models
        would differ in size, so that the output is replaced: a Dropout by a product with the mask drawn for the
        original, others by the tensor drawn for it. The pruned model gets the positions that remain.

        Args:
            model: the original, the masked original or the pruned model.
            narrow: whether it is the pruned model.
        """
        if not self.drawn:
            return model
        copy = copy_model(model, "node")
        for node in model.graph.node:
            seed = self.drawn.get(node.output[0]) if node.output else None
            copy.graph.node.append(node)
            if seed is None:
                continue
            own = copy.graph.node[-1]
            if not _shrinks(self.kept, node.output[0]):
                kept = [a for a in own.attribute if a.name != "seed"]
                del own.attribute[:]
                own.attribute.extend(kept)
                dropout = node.op_type == "Dropout"
                own.attribute.append(helper.make_attribute("seed", seed if dropout else float(seed)))
                continue
            del copy.graph.node[-1]
            for name, op, inputs, value in self._replacement(node, seed):
                constant = f"{name}::drawn"
                value = self.kept.cut(node.output[0], value) if narrow else value
                copy.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), constant))
                copy.graph.node.append(helper.make_node(op, [*inputs, constant], [name], name=f"{name}::fixed"))
        return copy

    def _replacement(self, node: NodeProto, seed: int) -> Iterator[tuple[str, str, list[str], np.ndarray]]:
        """Yield what computes each output of a node instead: its name, operator, inputs, and constant."""
        shapes = self.kept.original.shapes
        rng, tensor = np.random.default_rng(seed), node.output[0]
        shape, kind = shapes.shapes[tensor], helper.tensor_dtype_to_np_dtype(shapes.types[tensor])
        if node.op_type == "Dropout":
            ratio = _ratio(node, shapes)
            mask = rng.random(shape) >= ratio
            yield tensor, "Mul", [node.input[0]], (mask / max(1 - ratio, 1e-6)).astype(kind)
            if len(node.output) > 1 and node.output[1]:
                yield node.output[1], "Identity", [], mask
        elif node.op_type == "RandomUniformLike":
            low, high = attribute(node, "low", 0.0), attribute(node, "high", 1.0)
            yield tensor, "Identity", [], rng.uniform(low, high, shape).astype(kind)
        else:
            mean, scale = attribute(node, "mean", 0.0), attribute(node, "scale", 1.0)
            yield tensor, "Identity", [], rng.normal(mean, scale, shape).astype(kind)


def randomness(kept: PrunedGraph) -> Randomness:
    """Find the operators of a traced model that draw random numbers."""
    drawn: dict[str, int] = {}
    free: list[str] = []
    shapes = kept.original.shapes
    for node in kept.original.proto.graph.node:
        bodies = [inner for graph in subgraphs(node) for inner in graph.node]
        free += [_words(n) for n in bodies if _is_random(n, shapes)]
        if _is_random(node, shapes):
            tensor = node.output[0]
            replaceable = node.op_type in _LIKE or (node.op_type == "Dropout" and _ratio(node, shapes) >= 0)
            if replaceable or not _shrinks(kept, tensor):
                drawn[tensor] = len(drawn) + 1
            else:
                free.append(_words(node))
    return Randomness(kept, drawn, tuple(free))


def _shrinks(kept: PrunedGraph, tensor: str) -> bool:
    shapes = kept.original.shapes.shapes
    return tensor in shapes and kept.shape(tensor) != shapes[tensor]


def _is_random(node: NodeProto, shapes: Shapes) -> bool:
    if node.op_type not in RANDOM or node.domain not in DEFAULT_DOMAINS:
        return False
    if node.op_type != "Dropout":
        return True
    if len(node.input) < 3 or not node.input[2]:  # before opset 12, Dropout is the identity
        return False
    training = shapes.values.get(node.input[2])
    return training is None or bool(training.all())


def _ratio(node: NodeProto, shapes: Shapes) -> float:
    """Return a Dropout's ratio; -1 if it, or whether it is in training, isn't known."""
    if node.input[2] not in shapes.values:
        return -1.0
    if len(node.input) < 2 or not node.input[1]:
        return 0.5
    value = shapes.values.get(node.input[1])
    return -1.0 if value is None else float(value.ravel()[0])


def _words(node: NodeProto) -> str:
    return f'{node.op_type} "{node.name or node.output[0]}"'
