"""Verify a pruned model: it must compute what the original computes with everything removed set to zero.

Nothing is shared with the rewriter but the plan: ONNX Runtime runs the masked original (see `masked`) and the pruned
model on the same inputs. Because the consumers' weights are zeroed along with the producers', this holds even if an
activation function maps zero to another value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from onnxprune.errors import VerificationError
from onnxprune.model.session import run, session
from onnxprune.operators.card import card_of
from onnxprune.rewrite.masked import masked
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

# An output whose elements are all smaller than this is compared in absolute terms: a Sigmoid near zero is rounded in
# steps of 1e-7 whatever its size, as ONNX Runtime with and without graph optimizations shows.
FLOOR = 1e-2


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
    """

    passed: bool
    tolerance: float
    outputs: tuple[OutputCheck, ...]
    seed: int | None = None

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
) -> Verification:
    """Compare a pruned model with its masked original.

    Args:
        kept: the traced original and what was removed from it.
        pruned: the pruned model.
        inputs: an array for each input.
        tolerance: largest error allowed; by default that of the model's coarsest weight type.
        seed: seed the inputs were drawn with, for the record.
        optimize: whether ONNX Runtime may optimize the graphs.

    Returns:
        The result; a failed comparison isn't raised.

    Raises:
        ModelError: ONNX Runtime can't run a model (OP122).
        VerificationError: the outputs' names or shapes changed (OP503), or no output is finite (OP504).
    """
    original = kept.original.proto
    limit = default_tolerance(original) if tolerance is None else tolerance

    def outputs(model: ModelProto) -> dict[str, Any]:
        return run(session(model, optimize=optimize, configure=_sparing), inputs)

    # Run one at a time, so that few copies of a large model are in memory.
    dense, expected, actual = outputs(original), outputs(masked(kept)), outputs(pruned)
    if any((_finite(dense[n]) & ~_finite(expected[n])).any() for n in dense):
        expected = outputs(masked(kept, readers_only=True))
    if list(expected) != list(actual):
        raise VerificationError("OP503", f"outputs are {list(actual)}, not {list(expected)}")
    if not any(_finite(e).any() for e in expected.values()):
        hint = "give `inputs` as the model expects them"
        raise VerificationError("OP504", "the masked original gives no finite output", hint=hint)
    checks = []
    for name, reference in expected.items():
        if np.shape(reference) != np.shape(actual[name]):
            cause = f"output has shape {np.shape(actual[name])}, not {np.shape(reference)}"
            raise VerificationError("OP503", cause, where=f'output "{name}"')
        checks.append(OutputCheck(name, difference(actual[name], reference), difference(dense[name], reference)))
    passed = all(c.error <= limit for c in checks)
    return Verification(passed, limit, tuple(checks), seed=seed)


def _sparing(options: Any) -> None:
    """Keep ONNX Runtime from making a second, prepacked copy of the weights."""
    options.add_session_config_entry("session.disable_prepacking", "1")


def default_tolerance(proto: ModelProto) -> float:
    """Return the tolerance for a model's coarsest weight type, or for operators that round their state."""
    types = {t.data_type for t in proto.graph.initializer if t.data_type in TOLERANCES}
    limit = max((TOLERANCES[t] for t in types), default=TOLERANCES[TensorProto.FLOAT])
    rounds = any(card_of(node.domain, node.op_type).rounds for node in proto.graph.node)
    return max(limit, ROUNDED) if rounds else limit


def difference(a: Any, reference: Any) -> float:
    """Return the largest absolute difference relative to the reference's largest magnitude.

    A reference whose elements are all nearly zero is measured against `FLOOR` instead. Strings and sequences differ by
    0 or infinity, and so does a finite number from one that isn't.
    """
    if not _numeric(reference):
        return 0.0 if _listed(a) == _listed(reference) else float("inf")
    x, y = np.asarray(a, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    if same.all():
        return 0.0
    if not (np.isfinite(x) & np.isfinite(y))[~same].all():
        return float("inf")
    scale = np.abs(y[np.isfinite(y)]).max(initial=FLOOR)
    return float(np.abs(x[~same] - y[~same]).max() / scale)


def _finite(value: Any) -> NDArray[np.bool_]:
    """Return which elements of an output are finite; anything but numbers is."""
    if not _numeric(value):
        return np.array(True)
    return np.isfinite(np.asarray(value, dtype=np.float64))


def _numeric(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind not in "OSU"


def _listed(value: Any) -> Any:
    return [_listed(v) for v in value] if isinstance(value, list) else np.asarray(value).tolist()
