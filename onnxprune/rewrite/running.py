"""Run the original, the masked original and the pruned model: whole, or in another type or in part where that fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto
from onnx.helper import tensor_dtype_to_np_dtype

from onnxprune.errors import ModelError
from onnxprune.model.graph import extract, reads
from onnxprune.model.values import numbers
from onnxprune.rewrite.arithmetic import FLOATS, cast_arrays, cast_copy
from onnxprune.rewrite.masked import masked
from onnxprune.rewrite.randomness import Randomness
from onnxprune.rewrite.states import run_steps
from onnxprune.shapes.generated import check_elements
from onnxprune.shapes.runnable import Cut, runnable_part
from onnxprune.trace.pruned_graph import PrunedGraph

Arrays = Mapping[str, NDArray[Any]]
Arithmetic = Literal["stored", "float32", "float64"]
Compute = Callable[[ModelProto, Arrays], dict[str, Any]]

_UNCOMMON = (TensorProto.BFLOAT16, TensorProto.DOUBLE)


@dataclass(frozen=True, slots=True)
class Outputs:
    """The outputs of the three models."""

    dense: dict[str, Any]
    masked: dict[str, Any]
    pruned: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Way:
    """A way to run the models.

    Attributes:
        element: the floating-point type of the copies that are run; None for the models themselves.
        cut: the part that is run; None for all.
        note: what to tell about it.
    """

    element: int | None = None
    cut: Cut | None = None
    note: str = ""

    @property
    def arithmetic(self) -> Arithmetic:
        """The floating-point type in words."""
        return "stored" if self.element is None else "float32" if self.element == TensorProto.FLOAT else "float64"


@dataclass(frozen=True, slots=True)
class Proof:
    """A pruned model and its original, and what they are compared on.

    Attributes:
        kept: the traced original and what was removed from it.
        pruned: the pruned model.
        inputs: an array for each input.
        draws: the random numbers.
        compute: runs a model.
        fronts: tensors to return beside the outputs, if the models are run as a whole.
    """

    kept: PrunedGraph
    pruned: ModelProto
    inputs: Arrays
    draws: Randomness
    compute: Compute
    fronts: Sequence[str] = ()

    def first_that_runs(self) -> tuple[Way, Outputs]:
        """Return the outputs of the models, and the way in which they could be run: whole, cast, or in part.

        Raises:
            ModelError: none runs; the error is that of the whole models (OP122).
        """
        refusal: ModelError | None = None
        for way in _ways(self.kept):
            try:
                return way, self.outputs(way)
            except ModelError as error:
                if error.code != "OP122":
                    raise
                refusal = refusal or error
        assert refusal is not None
        raise refusal

    def outputs(self, way: Way, *, only: Sequence[str] = (), given: Arrays | None = None) -> Outputs:
        """Run the original, the masked original and the pruned model, one at a time: few copies of weights are held.

        Args:
            way: how.
            only: the tensors to return; the outputs by default.
            given: arrays of tensors that aren't computed, in the original's shapes.
        """
        kept, cut = self.kept, way.cut
        fed = given if given is not None else {} if cut is None else _feeds(kept, cut)
        own_outputs = [value.name for value in self.pruned.graph.output]
        ends = list(only) if only else [*own_outputs, *self.fronts] if cut is None else cut.outputs
        part = cut is not None or bool(only or self.fronts)
        gone = {
            o
            for block in kept.blocks
            for n in kept.original.proto.graph.node
            if n.name in block.nodes
            for o in n.output
        }

        def outputs(model: ModelProto, *, narrow: bool = False) -> dict[str, Any]:
            model = self.draws.fixed(model, narrow=narrow)
            feeds = dict(self.inputs)
            if part:
                own = {name: kept.cut(name, value) if narrow else value for name, value in fed.items()}
                model, feeds = extract(model, [n for n in ends if n not in gone], own), feeds | own
            if way.element is not None:
                model, feeds = cast_copy(model, way.element), cast_arrays(feeds, way.element)
            found = run_steps(kept, partial(self.compute, model), feeds, pruned=narrow)
            if not part or narrow:
                return found
            return {n: kept.cut(n, v) if isinstance(v, np.ndarray) else v for n, v in found.items()}

        dense, expected = outputs(kept.original.proto), outputs(masked(kept))
        actual = outputs(self.pruned, narrow=True)
        if any(_loses_numbers(expected[n], dense[n]) for n in dense):
            expected = outputs(masked(kept, readers_only=True))
        return Outputs(dense, expected, actual)


def _ways(kept: PrunedGraph) -> Iterator[Way]:
    """Yield ways to run the models, the best first."""
    yield Way()
    model, shapes = kept.original.proto, kept.original.shapes
    part = kept.original.part
    if part is None:
        return
    missing = {node.node for node in part.front.missing}
    types = {shapes.types.get(name) for node in model.graph.node if node.name in missing for name in reads(node)}
    lacking = sorted(TensorProto.DataType.Name(t).lower() for t in types if t in _UNCOMMON)
    if lacking:
        element = TensorProto.FLOAT
        why = f"ONNX Runtime's CPU provider lacks operators for {' and '.join(lacking)}"
        note = f"Float32 copies of both models were compared: {why}."
        yield Way(element, None, note)
        model = cast_copy(model, element)
        shapes = replace(shapes, types={n: element if t in FLOATS else t for n, t in shapes.types.items()})
        if own := runnable_part(model, shapes):
            yield from (Way(element, cut, note) for cut in (own.islands, own.front) if cut.outputs)
    yield from (Way(None, cut) for cut in (part.islands, part.front) if cut.outputs)


def _feeds(kept: PrunedGraph, cut: Cut) -> dict[str, NDArray[Any]]:
    """Draw what is fed in place of the outputs of nodes that don't run, in the original's shapes."""
    shapes, rng = kept.original.shapes, np.random.default_rng(0)
    feeds = {}
    for name in cut.fed:
        kind, shape = tensor_dtype_to_np_dtype(shapes.types[name]), shapes.shapes[name]
        check_elements(name, shape)
        draw = rng.standard_normal(shape) if shapes.types[name] in FLOATS else rng.integers(0, 2, shape)
        feeds[name] = np.asarray(draw).astype(kind)
    return feeds


def finite(value: Any) -> NDArray[np.bool_]:
    """Return which numbers of an output are finite; an output without any has nothing that isn't."""
    return np.isfinite(numbers(value)) if numbers(value).size else np.ones(1, bool)


def _loses_numbers(found: Any, reference: Any) -> bool:
    """Whether a value isn't finite where a reference is; if their sizes differ, whether it isn't anywhere."""
    x, y = finite(found), finite(reference)
    return bool((y & ~x).any()) if x.shape == y.shape else bool(y.all() and not x.all())
