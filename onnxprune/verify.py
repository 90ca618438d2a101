"""The masked oracle: a pruned model must compute what the original computes with everything removed set to zero.

Nothing is shared with the rewriter but the plan: ONNX Runtime runs the masked original (see `masked`) and the pruned
model on the same inputs. Because the consumers' weights are zeroed along with the producers', this holds whatever the
activation function makes of a zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto
from onnx.helper import tensor_dtype_to_np_dtype

from onnxprune._runtime import run, session
from onnxprune.errors import VerificationError
from onnxprune.kept import Kept
from onnxprune.masked import masked

Arrays = Mapping[str, NDArray[Any]]

# Largest difference relative to the output's largest magnitude, by the coarsest weight type of the model. Sums are
# taken in another order once channels are gone, so rounding differs by a few units in the last place per layer.
TOLERANCES: Mapping[int, float] = {
    TensorProto.DOUBLE: 1e-9,
    TensorProto.FLOAT: 1e-4,
    TensorProto.FLOAT16: 2e-2,
    TensorProto.BFLOAT16: 1e-1,
}


@dataclass(frozen=True, slots=True)
class OutputCheck:
    """How one output compares.

    Attributes:
        name: the output.
        error: largest absolute difference relative to the masked output's largest magnitude.
        change: the same measure between the masked and the dense original: what pruning does to this output. A
            change of zero says that the comparison can't tell a right plan from a wrong one.
    """

    name: str
    error: float
    change: float


@dataclass(frozen=True, slots=True)
class Verification:
    """The oracle's verdict.

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


def generate_inputs(proto: ModelProto, shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, NDArray[Any]]:
    """Draw inputs: standard normal floats, zeros and ones for integers and flags.

    Args:
        proto: the model.
        shapes: concrete shapes of its inputs.
        seed: seed of the draw.
    """
    rng = np.random.default_rng(seed)
    types = {i.name: i.type.tensor_type.elem_type for i in proto.graph.input}
    inputs: dict[str, NDArray[Any]] = {}
    for name, shape in shapes.items():
        dtype = tensor_dtype_to_np_dtype(types[name])
        floating = types[name] in TOLERANCES
        draw = rng.standard_normal(shape) if floating else rng.integers(0, 2, shape)
        inputs[name] = draw.astype(dtype)
    return inputs


def verify(
    kept: Kept,
    pruned: ModelProto,
    inputs: Arrays,
    *,
    tolerance: float | None = None,
    seed: int | None = None,
    optimise: bool = False,
) -> Verification:
    """Compare a pruned model with its masked original.

    Args:
        kept: the traced original and what was removed from it.
        pruned: the pruned model.
        inputs: an array for each input.
        tolerance: largest error allowed; by default that of the model's coarsest weight type.
        seed: seed the inputs were drawn with, for the record.
        optimise: whether ONNX Runtime may optimise the graphs.

    Returns:
        The verdict; a failed one isn't raised.

    Raises:
        ModelError: ONNX Runtime can't run a model (OP122).
        VerificationError: the outputs' names or shapes changed (OP503).
    """
    original = kept.graph.proto
    limit = default_tolerance(original) if tolerance is None else tolerance
    dense, expected, actual = (run(session(m, optimise=optimise), inputs) for m in (original, masked(kept), pruned))
    if any(_poisoned(expected[name], dense[name]) for name in dense):
        expected = run(session(masked(kept, readers_only=True), optimise=optimise), inputs)
    if list(expected) != list(actual):
        raise VerificationError("OP503", f"outputs are {list(actual)}, not {list(expected)}")
    checks = []
    for name, reference in expected.items():
        if isinstance(reference, np.ndarray) and reference.shape != actual[name].shape:
            cause = f"output has shape {actual[name].shape}, not {reference.shape}"
            raise VerificationError("OP503", cause, where=name)
        checks.append(OutputCheck(name, difference(actual[name], reference), difference(dense[name], reference)))
    passed = all(c.error <= limit for c in checks)
    return Verification(passed, limit, tuple(checks), seed=seed)


def _poisoned(masked_output: Any, dense_output: Any) -> bool:
    """Whether masking has made an output infinite or undefined that wasn't."""
    arrays = [np.asarray(a) for a in (masked_output, dense_output)]
    if any(a.dtype.kind not in "fc" and a.dtype.name not in ("bfloat16", "float16") for a in arrays):
        return False
    masked_finite, dense_finite = (np.isfinite(a.astype(np.float64)) for a in arrays)
    return bool((dense_finite & ~masked_finite).any()) if masked_finite.shape == dense_finite.shape else False


def default_tolerance(proto: ModelProto) -> float:
    """Return the tolerance for a model's coarsest weight type."""
    types = {t.data_type for t in proto.graph.initializer if t.data_type in TOLERANCES}
    return max((TOLERANCES[t] for t in types), default=TOLERANCES[TensorProto.FLOAT])


def difference(a: Any, reference: Any) -> float:
    """Return the largest absolute difference relative to the reference's largest magnitude; NaN meets NaN."""
    if not isinstance(reference, np.ndarray) or reference.dtype.kind in "OSU":
        return 0.0 if np.array_equal(np.asarray(a, dtype=object), np.asarray(reference, dtype=object)) else 1.0
    if not reference.size:
        return 0.0
    x, y = np.asarray(a, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    if same.all():
        return 0.0
    finite = np.isfinite(y)
    scale = float(np.abs(y[finite]).max()) if finite.any() else 0.0
    gap = np.where(same, 0.0, np.abs(x - y))
    worst = float(gap.max())
    if not np.isfinite(worst):
        return float("inf")
    return worst / scale if scale > 0 else (0.0 if worst == 0 else float("inf"))
