"""Compare the weights of a pruned model with the slices that its plan leaves, where a repair or training changed some.

A repair changes weights by design, so the model no longer computes what the masked original computes. What can still be
checked is each part by itself: the rewriting, on a copy with the changed weights put back; and every weight, as a slice
or by the fingerprint that was noted when it was changed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, TensorProto, numpy_helper

from onnxprune.normalize import normalize
from onnxprune.planning.signature import fingerprints, noted_changes
from onnxprune.rewrite.difference import difference
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.shapes.batch import free_batch
from onnxprune.trace.pruned_graph import PrunedGraph

_ROUNDING = 16  # units in the last place of the largest value


@dataclass(frozen=True, slots=True)
class WeightCheck:
    """The weights of a model that was repaired or trained.

    Attributes:
        slices: number of initializers that are those of the original without what the plan removes.
        changed: what changed each of the others, as the model's metadata say.
        altered: those that aren't what they were after the noted change, or that differ without one.
        missing: those that the plan leaves or the metadata name, but the model lacks.
        not_finite: those that hold NaN or infinity, though their slices don't.
    """

    slices: int
    changed: Mapping[str, tuple[str, ...]]
    altered: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    not_finite: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every weight is a slice of the original, or as the noted change left it, and finite."""
        return not (self.altered or self.missing or self.not_finite)


def check_weights(
    kept: PrunedGraph, pruned: ModelProto, computed: Collection[str] = ()
) -> tuple[WeightCheck | None, ModelProto]:
    """Compare a model's weights with those that its plan leaves.

    Args:
        kept: the traced original and what was removed from it.
        pruned: the model.
        computed: initializers of the original that were computed, as another machine may round them otherwise.

    Returns:
        The comparison, None if no change of weights is noted; and the model as it was before the changes.

    Raises:
        PlanError: the metadata is damaged (OP305).
        RewriteError: the plan can't be applied.
    """
    noted = noted_changes(pruned)
    if not noted:
        return None, pruned
    sliced = rewrite(kept)
    opened = normalize(sliced)  # training normalizes a model
    slices = {t.name: t for model in (opened, sliced) for t in model.graph.initializer}
    freed = free_batch(opened)  # a repair runs samples together, whose number some sizes then leave open
    together = {} if freed is None else fingerprints(freed)
    expected = fingerprints(opened) | fingerprints(sliced)
    before = ModelProto()
    before.CopyFrom(pruned)
    changed, altered, not_finite = dict[str, tuple[str, ...]](), list[str](), list[str]()
    found = fingerprints(pruned)
    for tensor in before.graph.initializer:
        name, now = tensor.name, found[tensor.name]
        change, slice_ = noted.get(name), slices.get(name)
        if now in (expected.get(name), together.get(name)):
            continue
        if change is None and name in computed and _alike(tensor, slice_):
            continue
        if change is None or change.fingerprint != now:
            altered.append(name)
        if change is None or slice_ is None:
            continue
        changed[name] = change.by
        if _finite(numpy_helper.to_array(slice_)) and not _finite(numpy_helper.to_array(tensor)):
            not_finite.append(name)
        tensor.CopyFrom(slice_)
    known = {t.name for t in sliced.graph.initializer} & {t.name for t in opened.graph.initializer} | noted.keys()
    missing = tuple(name for name in known if name not in found)
    count = len(found) - len(changed.keys() | set(altered))
    return WeightCheck(count, changed, tuple(altered), tuple(sorted(missing)), tuple(not_finite)), before


def _alike(tensor: TensorProto, slice_: TensorProto | None) -> bool:
    """Whether two initializers differ by rounding at most."""
    if slice_ is None or (tensor.data_type, tensor.dims) != (slice_.data_type, slice_.dims):
        return False
    found, expected = map(numpy_helper.to_array, (tensor, slice_))
    return difference(found, expected) <= _ROUNDING * float(np.finfo(expected.dtype).eps)


def _finite(array: np.ndarray) -> bool:
    return array.dtype.kind not in "fc" or bool(np.isfinite(array).all())
