"""Prove that a network that resizes its images computes what the original does on images resized outside.

The original here is the model as it was, run at the other size. Windows that covered the whole map are replaced by
global pooling, lengths of whole sequences are left out, and a size that a Reshape had as a constant is left to ONNX
Runtime where only one differs: no number of the rewriter's is used. What then remains of its constants
(`Resized.edits`) is taken as given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from onnxprune.errors import VerificationError
from onnxprune.model.graph import RECURRENT, attributes, extract, names_in, unique, with_inputs, with_nodes
from onnxprune.model.session import run, session
from onnxprune.resolution.images import POOLS
from onnxprune.resolution.interpolation import interpolated
from onnxprune.resolution.resize import Resized
from onnxprune.rewrite.difference import difference, largest_difference
from onnxprune.rewrite.verify import default_tolerance

Arrays = Mapping[str, NDArray[Any]]

_KERNEL = 1e-3  # error of ONNX Runtime's interpolation: it computes positions in float32


def prove_resized(original: ModelProto, resized: Resized, inputs: Arrays, tolerance: float | None = None) -> float:
    """Return the largest difference from the original on resized images, relative to an output's largest value.

    The resized images are compared first, with interpolation in float64; then all that follows, on the same images. An
    output whose size is restored is compared with that of the original once it is interpolated, in float64 as well.

    Args:
        original: the normalized model.
        resized: the same with a Resize.
        inputs: an array for each input.
        tolerance: the largest error allowed; by default that of the proof of a rewriting.

    Raises:
        VerificationError: they differ by more than rounding (OP501).
        ModelError: ONNX Runtime can't run a model (OP122).
    """
    limit = default_tolerance(original) if tolerance is None else tolerance
    sites = [image.site for image in resized.images]
    given = _values(original, sites, inputs)
    images = _values(resized.proto, list(resized.places.values()), inputs)
    for image in resized.images:
        size, place = resized.sizes[image.name], resized.places[image.site]
        outside = interpolated(given[image.site], dict(zip(image.axes, size, strict=True)))
        error = difference(images[place], outside)
        if not error <= max(limit, _KERNEL):
            raise _differs(error, max(limit, _KERNEL), f'graph input "{image.name}"')
    rest = extract(_free(original, resized), [o.name for o in original.graph.output], {s: given[s] for s in sites})
    found = run(session(resized.proto, optimize=False), inputs)
    if resized.maps:
        maps = _values(resized.proto, list(resized.maps.values()), inputs)
        for name, tensor in resized.maps.items():
            outside = interpolated(maps[tensor], _changed(maps[tensor], found[name]))
            error = difference(found[name], outside)
            if not error <= max(limit, _KERNEL):
                raise _differs(error, max(limit, _KERNEL), f'graph output "{name}"')
            found[name] = maps[tensor]
    needed = {entry.name for entry in rest.graph.input}
    fed = {n: a for n, a in inputs.items() if n in needed} | {s: images[resized.places[s]] for s in sites}
    expected = run(session(rest, optimize=False), fed)
    return largest_difference(found, expected, limit, lambda error, n: _differs(error, limit, f'graph output "{n}"'))


def _changed(before: NDArray[Any], now: NDArray[Any]) -> dict[int, int]:
    """Return the new size of each axis that has another one."""
    return {axis: m for axis, (n, m) in enumerate(zip(before.shape, now.shape, strict=True)) if n != m}


def _differs(error: float, limit: float, where: str) -> VerificationError:
    cause = f"the resized network isn't the original on resized images: relative error {error:.3g} exceeds {limit:.3g}"
    return VerificationError("OP501", cause, where=where)


def _values(model: ModelProto, tensors: list[str], inputs: Arrays) -> dict[str, NDArray[Any]]:
    """Return tensors of a model; its inputs are among them."""
    found = {name: np.asarray(inputs[name]) for name in tensors if name in inputs}
    if rest := [name for name in tensors if name not in inputs]:
        part = extract(model, rest)
        needed = {entry.name for entry in part.graph.input}
        found |= run(session(part, optimize=False), {n: a for n, a in inputs.items() if n in needed})
    return found


def _free(original: ModelProto, resized: Resized) -> ModelProto:
    """Return the original for the new sizes."""
    edits, changed = {e.node: e for e in resized.edits}, {n.name: n for n in resized.proto.graph.node}
    taken = names_in(original.graph)
    stored = {t.name: t for t in resized.proto.graph.initializer}
    more: dict[str, NDArray[Any]] = {}

    def nodes() -> Iterator[NodeProto]:
        for node in original.graph.node:
            edit = edits.get(node.name)
            if edit is None:
                yield node
            elif node.op_type in POOLS and node.op_type != "QLinearAveragePool":
                kept = {k: v for k, v in attributes(node).items() if k == "p"}
                yield helper.make_node(f"Global{node.op_type}", node.input, node.output, name=node.name, **kept)
            elif node.op_type in RECURRENT:
                yield with_inputs(node, ("" if i == 4 else name for i, name in enumerate(node.input)))
            else:
                copy = NodeProto()
                copy.CopyFrom(changed[node.name])
                for place, (old, new) in enumerate(zip(node.input, copy.input, strict=True)):
                    if new not in stored or old == new:
                        copy.input[place] = old
                        continue
                    value = numpy_helper.to_array(stored[new])
                    if node.op_type == "Reshape" and len(edit.entries) == 1 and -1 not in value:
                        value = value.copy()
                        value[edit.entries[0]] = -1
                    copy.input[place] = unique(new, taken)
                    more[copy.input[place]] = value
                yield copy

    result = with_nodes(original, nodes())
    result.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in more.items())
    return result
