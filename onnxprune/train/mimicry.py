"""Repair with gradients, without labels: a pruned model is trained until its inner tensors are those of the original.

The tensors are cut points of the network: all that follows is computed from one of them, so that they separate its
blocks. All blocks are trained together. A block gets the inputs that the pruned network gives it, its target is what
the original has there, and the blocks behind it correct what it can't. The outputs follow as well. Where images are
resized inside, the original is the network that resizes them: its maps have the same sizes.

Wang et al., "Practical network acceleration with tiny sets" (CVPR 2023), and Wang et al., "Compressing models with few
samples: mimicking then replacing" (CVPR 2022), mimic the features in front of the head; Li et al., "BRECQ" (ICLR 2021),
reconstruct block by block.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace

import numpy as np
from onnx import ModelProto

from onnxprune.model.graph import OF_SHAPE, reads
from onnxprune.normalize import normalize
from onnxprune.operators.card import card_of
from onnxprune.planning.residual_blocks import find_blocks
from onnxprune.settings.training import Augmentation, TrainSettings
from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.pruned_graph import PrunedGraph

_MOST = 16  # cut points that are compared: each costs time in every step
_COLORS = 3  # channels of images that may be mirrored and shifted
_SHIFTED = 8  # part of an image's side by which it is shifted at most
_EPOCHS = 400  # most, however much time there is
_BATCH, _RATE = 32, 4e-3
_OUTPUTS = 0.1  # weight of the outputs beside all cut points together: with few samples, they invite overfitting


def cut_points(proto: ModelProto, also: Container[str] = ()) -> list[str]:
    """Return the tensors that carry all that was computed so far, the last one in front of each layer, in order.

    What doesn't depend on weights, such as masks, and what depends on shapes only doesn't count. Outputs of the model
    and what follows its last layer aren't cut points.

    Args:
        proto: a normalized model.
        also: tensors that count as well, as the sums of residual blocks do where skips pass them by.

    Examples:
        >>> from onnx import parser
        >>> text = '''<ir_version: 8, opset_import: ["": 17]>
        ... net (float[1, 2] x) => (float[1, 2] y) <float[2, 2] a = {1, 0, 0, 1}> {
        ...     h = MatMul(x, a)
        ...     r = Relu(h)
        ...     s = Add(r, x)
        ...     y = MatMul(s, a)
        ... }'''
        >>> cut_points(parser.parse_model(text))
        ['s']
    """
    nodes = list(proto.graph.node)
    last = {name: i for i, node in enumerate(nodes) for name in reads(node)}
    outputs = {output.name for output in proto.graph.output}
    constant, computed = {tensor.name for tensor in proto.graph.initializer}, set[str]()
    live, found, layers = set[str](), dict[int, str](), 0
    for i, node in enumerate(nodes):
        given, made = [*reads(node)], [name for name in node.output if name]
        if given and constant.issuperset(given):
            constant.update(made)
            continue
        factors = {node.input[k] for k in card_of(node.domain, node.op_type).factors if k < len(node.input)}
        layer = not constant.isdisjoint(factors)
        layers += layer
        if node.op_type not in OF_SHAPE and (layer or not computed.isdisjoint(given)):
            computed.update(made)
            live.update(made)
        live = {name for name in live if last.get(name, -1) > i}
        ends = live if len(live) == 1 else [name for name in made if name in also]
        if ends and outputs.isdisjoint(ends):
            found[layers] = next(iter(ends))
    return list(dict.fromkeys(name for number, name in found.items() if number < layers))


def mimicked(kept: PrunedGraph, pruned: ModelProto, teacher: ModelProto | None = None) -> tuple[str, ...]:
    """Return the tensors of a pruned model that are to follow the original's: cut points and residual blocks.

    Args:
        kept: the traced original and what was removed from it.
        pruned: the pruned model.
        teacher: the network that they follow, if it isn't the traced one.
    """
    found = cut_points(normalize(pruned), {block.output for block in find_blocks(kept.graph)})
    nodes = (kept.graph.proto if teacher is None else teacher).graph.node
    made = {name for node in nodes for name in node.output}
    known = [name for name in found if kept.graph.shapes.shapes.get(name) is not None and name in made]
    some = np.unique(np.linspace(0, len(known) - 1, min(_MOST, len(known))).round().astype(int))
    return tuple(known[i] for i in some.tolist())


def mimicry(graph: ChannelGraph, *, epochs: int | None, minutes: float | None, seed: int) -> TrainSettings:
    """Return how pruned versions of a model are trained to mimic it; `following` adds what each of them follows.

    Args:
        graph: the traced original.
        epochs: the largest number of epochs; as many as fit into the time if None.
        minutes: the time for training; None for no limit.
        seed: random seed.
    """
    shapes = [shape for shape in graph.shapes.inputs.values() if len(shape) == 4]
    sides = [min(s[2:] if s[1] == _COLORS else s[1:3]) for s in shapes if _COLORS in (s[1], s[3])]
    return TrainSettings(
        epochs=epochs or _EPOCHS,
        minutes=minutes,
        batch=_BATCH,
        losses={"nmse": _OUTPUTS},
        optimizer="lamb",
        rate=_RATE,
        decay=0.0,
        norms="frozen",
        augmentation=Augmentation(flip=True, crop=max(min(sides) // _SHIFTED, 1)) if sides else Augmentation(),
        seed=seed,
    )


def following(
    settings: TrainSettings, kept: PrunedGraph, pruned: ModelProto, teacher: ModelProto | None = None
) -> TrainSettings:
    """Return settings with the tensors of a pruned model that are to follow the original's.

    Args:
        settings: of `mimicry`.
        kept: the traced original and what was removed from it.
        pruned: the pruned model.
        teacher: the network that they follow, if it isn't the traced one.
    """
    features = mimicked(kept, pruned, teacher)
    return replace(settings, features=features, feature_weight=1 / max(len(features), 1))
