"""Put a product with a constant matrix behind a stream of tokens, and make what follows fit fewer of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper
from onnx.helper import tensor_dtype_to_np_dtype

from onnxprune.model.graph import names_in, unique, with_inputs, with_nodes
from onnxprune.model.tensors import mark_parameter
from onnxprune.shapes import Shapes
from onnxprune.shapes.walk import ShapeWalk
from onnxprune.tokens.flow import Ids
from onnxprune.tokens.merging import Merging
from onnxprune.tokens.streams import Grid, Stream, find_streams, stream_named


@dataclass(frozen=True, slots=True)
class Merged:
    """A model whose tokens merge.

    Attributes:
        proto: the model.
        original: the model before.
        blocks: rows and columns of patches that are one token behind a tensor, by its name.
        streams: these tensors, in the order of the graph.
        whole: why nodes get every token again, if any do, in order.
        dtype: the type of the tokens' values.
        groups: the group of each token, by the tensors of this type that have those along the axis before the last, and
            no others.
    """

    proto: ModelProto
    original: ModelProto
    blocks: Mapping[str, Grid]
    streams: tuple[Stream, ...]
    whole: tuple[str, ...]
    dtype: np.dtype[Any]
    groups: Mapping[str, Ids]

    @property
    def teacher(self) -> ModelProto:
        """The original with the means of groups in place of tensors with merged tokens: what a repair aims at."""
        taken = names_in(self.original.graph)
        every = {name: unique(f"{name}_whole", taken) for name in self.groups}
        means = dict[str, NDArray[Any]]()

        def nodes() -> Iterator[NodeProto]:
            for node in self.original.graph.node:
                copy = with_inputs(node, (every.get(name, name) for name in node.input))
                copy.output[:] = [every.get(name, name) for name in node.output]
                yield copy
                for name in node.output:
                    if name in every:
                        mean = unique(f"{name}_mean", taken)
                        means[mean] = _means(self.groups[name]).astype(self.dtype)
                        yield helper.make_node("MatMul", [mean, every[name]], [name], name=mean)

        result = with_nodes(self.original, nodes())
        result.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in means.items())
        return result

    def __str__(self) -> str:
        """Return how many tokens become how many."""
        shown = (
            f'{len(s.patches)} → {s.groups(self.blocks[s.tensor]).max() + 1} behind "{s.tensor}"' for s in self.streams
        )
        return f"tokens merged: {', '.join(shown)}"


def merge(proto: ModelProto, shapes: Shapes, blocks: Mapping[str, Grid]) -> Merged:
    """Return a model that computes with the means of blocks of patches behind some tensors.

    Args:
        proto: the normalized model. It isn't changed.
        shapes: its concretized shapes.
        blocks: rows and columns of patches that are one token, by the tensor behind which they are; of several, each
            has whole blocks of the one before.

    Raises:
        PlanError: a tensor is no stream of tokens (OP307), or something needs tokens that merge (OP320).
    """
    known = find_streams(proto, shapes)
    for name in blocks:
        stream_named(known, name)
    streams = tuple(stream for stream in known if stream.tensor in blocks)
    front, places = _with_places(proto, streams)
    merging = Merging(front, shapes, {places[s.tensor]: s.groups(blocks[s.tensor]) for s in streams})
    walk = ShapeWalk(front).at(shapes.inputs, at_once=False)
    walk.run(adapt=merging.adapt)
    merging.check(walk)
    result = with_nodes(front, merging.nodes(walk))
    read = {name for node in result.graph.node for name in node.input}
    kept = [t for t in result.graph.initializer if t.name in read or t.name not in merging.replaced]
    del result.graph.initializer[:], result.graph.value_info[:]
    result.graph.initializer.extend(kept)
    result.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in merging.constants.items())
    for tensor in result.graph.initializer:
        if tensor.name in merging.means:
            mark_parameter(tensor)
    element = shapes.types[streams[0].tensor]
    groups = {name: ids for name, ids in merging.groups().items() if shapes.types.get(name) == element}
    dtype = np.dtype(tensor_dtype_to_np_dtype(element))
    return Merged(result, proto, dict(blocks), streams, tuple(merging.whole), dtype, groups)


def _means(groups: Ids) -> NDArray[np.float64]:
    """Return the matrix that takes the mean of each group."""
    same = (groups == np.arange(groups.max() + 1)[:, None]).astype(np.float64)
    return np.asarray(same / same.sum(1, keepdims=True))


def _with_places(proto: ModelProto, streams: tuple[Stream, ...]) -> tuple[ModelProto, dict[str, str]]:
    """Return a model with an Identity behind each stream, and the name of its node and output, by the stream's."""
    taken = names_in(proto.graph)
    places = {stream.tensor: unique(f"{stream.tensor}_merged", taken) for stream in streams}

    def nodes() -> Iterator[NodeProto]:
        for node in proto.graph.node:
            yield with_inputs(node, (places.get(name, name) for name in node.input))
            for name in node.output:
                if name in places:
                    yield helper.make_node("Identity", [name], [places[name]], name=places[name])

    return with_nodes(proto, nodes()), places
