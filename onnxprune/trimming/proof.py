"""The result of a trimming, and the proof that what is left is what the original computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.errors import VerificationError
from onnxprune.model.session import run, session
from onnxprune.rewrite.difference import largest_difference
from onnxprune.rewrite.verify import default_tolerance

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Trimmed:
    """A trimmed model.

    Attributes:
        proto: the model, normalized.
        what: what was trimmed, in words.
        error: the largest difference from the original's outputs, relative to an output's largest value.
        inputs: the inputs that it was compared on, as the trimmed model takes them.
        new_ids: the new id of each token that is kept, by its old one; None unless a vocabulary was trimmed.
    """

    proto: ModelProto
    what: str
    error: float
    inputs: Arrays
    new_ids: Mapping[int, int] | None = None


def compare(
    original: ModelProto,
    trimmed: ModelProto,
    inputs: Arrays,
    given: Arrays,
    left: Callable[[str, NDArray[Any]], NDArray[Any]],
) -> float:
    """Return the largest difference between what is left of the original's outputs and a trimmed model's.

    Args:
        original: the model before.
        trimmed: the model after.
        inputs: the original's inputs.
        given: the same inputs, as the trimmed model takes them.
        left: returns what is left of an output, by its name.

    Raises:
        VerificationError: an output differs by more than rounding (OP501).
        ModelError: ONNX Runtime can't run a model (OP122).
    """
    expected, found = run(session(original, optimize=False), inputs), run(session(trimmed, optimize=False), given)
    expected = {name: left(name, v) if isinstance(v, np.ndarray) else v for name, v in expected.items()}
    limit = default_tolerance(original)

    def differs(error: float, name: str) -> VerificationError:
        cause = f"the trimmed model isn't the original: relative error {error:.3g} exceeds {limit:.3g}"
        return VerificationError("OP501", cause, where=f'output "{name}"')

    return largest_difference(found, expected, limit, differs)
