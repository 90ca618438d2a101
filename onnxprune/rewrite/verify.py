"""Verify a pruned model: it must compute what the original computes with everything removed set to zero.

Nothing is shared with the rewriter but the plan: ONNX Runtime runs the masked original (see `masked`) and the pruned
model on the same inputs. Because the consumers' weights are zeroed along with the producers', this holds even if an
activation function maps zero to another value.

Three things can stand between two models that compute the same and outputs that agree, and the result says which did:

- ONNX Runtime refuses an operator or a type. Then float32 copies are compared (`arithmetic`), or the part that runs
  (`onnxprune.shapes.runnable`): what every refused node reads must agree, and both models get the same generated
  values in place of what it makes. The refused nodes themselves aren't proved.
- The model amplifies rounding, so that two orders of the same sums disagree. Then float64 decides, on onnx's reference
  implementation.
- The model draws random numbers. Both models get the same ones (`randomness`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from onnxprune.cost.cost import cost
from onnxprune.errors import ModelError, VerificationError
from onnxprune.model.session import run, session
from onnxprune.model.tensors import leaves_of_statistic
from onnxprune.model.values import form
from onnxprune.operators.card import INTEGERS, card_of
from onnxprune.rewrite.arithmetic import run_reference
from onnxprune.rewrite.difference import difference
from onnxprune.rewrite.randomness import randomness
from onnxprune.rewrite.running import Arithmetic, Outputs, Proof, Way, finite
from onnxprune.rewrite.selection import Selection
from onnxprune.rewrite.states import STEPS
from onnxprune.shapes.runnable import UnrunNode
from onnxprune.trace.pruned_graph import PrunedGraph

Arrays = Mapping[str, NDArray[Any]]

# Largest difference relative to the output's largest magnitude, by the coarsest weight type of the model. Sums are
# taken in another order after channels are removed, so rounding differs by a few units in the last place per layer.
TOLERANCES: Mapping[int, float] = {
    TensorProto.DOUBLE: 1e-9,
    TensorProto.FLOAT: 1e-4,
    TensorProto.FLOAT16: 2e-2,
    TensorProto.BFLOAT16: 1e-1,
}

# For recurrent layers that round their state to 8 bits at every step: sums that differ in the last place of a float may
# then differ by a step of 1/255.
ROUNDED = 2e-2

# Float64 decides if the error there is this much smaller than the error allowed, and than the error found; and if
# rounding explains the latter: at most so many times the error of the masked original itself. It is tried up to a
# number of multiply-accumulates, as the reference implementation is slow.
_FAR_BELOW = (1e-2, 1e-4)
_ROUNDING = 100
_REFERENCE_MACS = 10**9

_OVERFLOW = (
    "Its layers sum up products of 8-bit numbers. On x86 processors without VNNI, these sums may overflow in ONNX "
    "Runtime. What they give then depends on which channels there are. With 7-bit weights they don't overflow: ONNX "
    "Runtime's quantizer makes these with reduce_range."
)


@dataclass(frozen=True, slots=True)
class OutputCheck:
    """Comparison of one output.

    Attributes:
        name: the output.
        error: largest absolute difference relative to the masked output's largest magnitude.
        change: the same measure between the masked and the dense original, the effect of pruning on this output. If it
            is within the tolerance, the comparison can't distinguish a right plan from a wrong one.
    """

    name: str
    error: float
    change: float


@dataclass(frozen=True, slots=True)
class Verification:
    """Result of the comparison with the masked original.

    Attributes:
        passed: whether every output agrees within the tolerance.
        tolerance: the tolerance used.
        outputs: the comparison of each output.
        seed: seed of generated inputs, or None for the user's.
        arithmetic: the type that the models computed in: as they store their weights, or a copy of both in another.
        unproved: the nodes that ONNX Runtime refuses, and those that couldn't be run without them; empty if the whole
            models were compared. Otherwise ``outputs`` are the tensors at which the part that runs ends.
        notes: what else a reader must know, in sentences.
        steps: how often the models were run, each time with the states that the last run returned.
    """

    passed: bool
    tolerance: float
    outputs: tuple[OutputCheck, ...]
    seed: int | None = None
    arithmetic: Arithmetic = "stored"
    unproved: tuple[UnrunNode, ...] = ()
    notes: tuple[str, ...] = ()
    steps: int = 1

    @property
    def error(self) -> float:
        """The largest error of all outputs."""
        return max((o.error for o in self.outputs), default=0.0)

    @property
    def informative(self) -> bool:
        """Whether pruning changes an output by more than the tolerance: otherwise a wrong plan might pass too."""
        return any(o.change > self.tolerance for o in self.outputs)


def verify(
    kept: PrunedGraph,
    pruned: ModelProto,
    inputs: Arrays,
    *,
    tolerance: float | None = None,
    seed: int | None = None,
    optimize: bool = False,
    exact: Callable[[], ModelProto] | None = None,
) -> Verification:
    """Compare a pruned model with its masked original.

    Outputs behind a selection, such as NonMaxSuppression, are compared, and so are the tensors in front of it. Where
    rounding changes what is selected, these outputs are compared once more: both models are given the selection that
    the masked original makes.

    Args:
        kept: the traced original and what was removed from it.
        pruned: the pruned model.
        inputs: an array for each input.
        tolerance: largest error allowed; by default that of the model's coarsest weight type.
        seed: seed the inputs were drawn with, for the record.
        optimize: whether ONNX Runtime may optimize the graphs.
        exact: returns the pruned model in float64, if rounding to the type of its weights is part of the rewriting.

    Returns:
        The result; a failed comparison isn't raised.

    Raises:
        ModelError: ONNX Runtime can't run a model (OP122).
        VerificationError: the outputs' names or shapes changed (OP503), or no output is finite (OP504).
    """
    draws, selection = randomness(kept), Selection(kept, pruned)

    def compute(model: ModelProto, feeds: Arrays) -> dict[str, Any]:
        opened = session(model, optimize=optimize, configure=_sparing)
        return run(opened, {i.name: feeds[i.name] for i in opened.get_inputs()})

    proof = Proof(kept, pruned, inputs, draws, compute, selection.fronts)
    way, found = proof.first_that_runs()
    limit = default_tolerance(kept.original.proto, way.element) if tolerance is None else tolerance
    checks = tuple(_checks(found, selection, limited=way.cut is not None))
    notes = [note for note in (way.note, selection.note) if note]
    doubtful = [c.name for c in checks if c.error > limit and c.name in selection.uncertain]
    if doubtful and way == Way():
        same = selection.same(way, proof, doubtful)
        checks = tuple(replace(c, error=same.get(c.name, c.error)) for c in checks)
        if alike := ", ".join(f'"{name}"' for name, error in same.items() if error <= limit):
            notes.append(f"Rounding changes what is selected: {alike} compared with the same selection.")
    passed = all(c.error <= limit for c in checks)
    if draws.drawn:
        names = [n for n in kept.original.proto.graph.node if n.output and n.output[0] in draws.drawn]
        words = ", ".join(f'{n.op_type} "{n.name}"' for n in names[:3]) + (", ..." if len(names) > 3 else "")
        notes.append(f"The model draws random numbers ({words}): both models got the same ones.")
    if frozen := _frozen(kept):
        words = ", ".join(frozen[:3]) + (", ..." if len(frozen) > 3 else "")
        notes.append(f"Statistics of pruned weights ({words}) are those of the whole weights, in both models.")
    missing = way.cut.missing if way.cut else ()
    steps = STEPS if kept.graph.states and way.cut is None else 1
    result = Verification(passed, limit, checks, seed, way.arithmetic, missing, tuple(notes), steps)
    if passed:
        return result
    if draws.free:
        cause = (
            f"The model draws random numbers that can't be fixed ({', '.join(draws.free[:3])}): outputs differ anyway."
        )
        return replace(result, notes=(*notes, cause))
    exactly = proof.pruned if exact is None else exact()
    decided = _in_float64(result, way, found, replace(proof, pruned=exactly, compute=run_reference), selection)
    return decided if decided.passed or not _sums_bytes(kept) else replace(decided, notes=(*decided.notes, _OVERFLOW))


def _sums_bytes(kept: PrunedGraph) -> bool:
    """Whether layers of a model sum up products of integers."""
    cards = (card_of(node.domain, node.op_type) for node in kept.original.proto.graph.node)
    return any(card.reasons.get("linear") == INTEGERS["linear"] for card in cards)


def _frozen(kept: PrunedGraph) -> list[str]:
    """Return the statistics of pruned weights that were computed beforehand: zeroing weights doesn't change them."""
    pruned = kept.positions()
    computed = ((t.name, leaves_of_statistic(t)) for t in kept.original.proto.graph.initializer)
    return [name for name, leaves in computed if not pruned.keys().isdisjoint(leaves)]


def _checks(found: Outputs, selection: Selection, *, limited: bool) -> Iterator[OutputCheck]:
    """Compare the outputs of the pruned model with those of the masked original."""
    expected, actual = found.masked, found.pruned
    if list(expected) != list(actual):
        raise VerificationError("OP503", f"outputs are {list(actual)}, not {list(expected)}")
    if not any(finite(e).any() for e in expected.values()):
        hint = "give `inputs` as the model expects them"
        raise VerificationError("OP504", "the masked original gives no finite output", hint=hint)
    for name, reference in expected.items():
        if form(reference) != form(actual[name]) and name not in selection.uncertain:
            shapes = [np.shape(v) if isinstance(v, np.ndarray) else "other parts" for v in (actual[name], reference)]
            cause = f"output has shape {shapes[0]}, not {shapes[1]}"
            raise VerificationError("OP503", cause, where=f'{"tensor" if limited else "output"} "{name}"')
        yield OutputCheck(name, difference(actual[name], reference), difference(found.dense[name], reference))


def _in_float64(result: Verification, way: Way, found: Outputs, proof: Proof, selection: Selection) -> Verification:
    """Decide a comparison that failed in float64, where rounding is 10^9 times smaller.

    If both models agree there, and the masked original alone is as far from its own float64 outputs as the two are from
    each other, then rounding is what they differ by. Where it can't be decided, the result says why.
    """
    if cost(PrunedGraph(proof.kept.original)).macs > _REFERENCE_MACS:
        note = f"It wasn't decided in float64, which is done up to {_REFERENCE_MACS:.0e} multiply-accumulates."
        return replace(result, notes=(*result.notes, note))
    exact = replace(way, element=TensorProto.DOUBLE)
    try:
        outputs = proof.outputs(exact)
        checks = tuple(_checks(outputs, selection, limited=way.cut is not None))
    except (ModelError, VerificationError) as error:
        return replace(result, notes=(*result.notes, f"It couldn't be decided in float64: {error.cause}."))
    left = max(c.error for c in checks)
    rounding = max(difference(value, outputs.masked[name]) for name, value in found.masked.items())
    if left > min(_FAR_BELOW[0] * result.tolerance, _FAR_BELOW[1] * result.error):
        return replace(result, notes=(*result.notes, f"In float64 they differ as well, by {left:.2g}."))
    if result.error > _ROUNDING * rounding:
        note = (
            f"In float64, on onnx's reference implementation, they agree to {left:.2g}, but the original's own "
            f"rounding ({rounding:.2g}) doesn't explain the difference: ONNX Runtime computes an operator of the "
            "pruned model otherwise."
        )
        return replace(result, notes=(*result.notes, note))
    note = (
        f"On these inputs the model amplifies rounding: the original's own outputs are off by {rounding:.2g}, and the "
        f"two models differ by {result.error:.2g}. In float64, on onnx's reference implementation, they agree to "
        f"{left:.2g}, which decides."
    )
    return replace(result, passed=True, outputs=checks, arithmetic="float64", notes=(*result.notes, note))


def _sparing(options: Any) -> None:
    """Keep ONNX Runtime from making a second, prepacked copy of the weights."""
    options.add_session_config_entry("session.disable_prepacking", "1")


def default_tolerance(proto: ModelProto, element: int | None = None) -> float:
    """Return the tolerance for a model's coarsest weight type, or for operators that round their state.

    Args:
        proto: the model.
        element: the floating-point type of the copy that is run, if it isn't the model itself.
    """
    stored = {t.data_type for t in proto.graph.initializer if t.data_type in TOLERANCES}
    types = stored if element is None else {element}
    limit = max((TOLERANCES[t] for t in types), default=TOLERANCES[TensorProto.FLOAT])
    rounds = any(card_of(node.domain, node.op_type).rounds for node in proto.graph.node)
    return max(limit, ROUNDED) if rounds else limit
