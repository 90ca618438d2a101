"""Which array belongs to which input of a model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from onnxprune.data.batch import Array
from onnxprune.data.ports import InputSpec
from onnxprune.errors import DataError

_INPUTS = ("images", "image", "inputs", "input", "x", "data", "features", "samples")
_LABELS = ("labels", "label", "targets", "target", "y", "y_true", "classes")


def assign(
    arrays: Mapping[str, Array], inputs: Sequence[InputSpec], where: str
) -> tuple[dict[str, Array], Array | None, tuple[str, ...]]:
    """Assign arrays to a model's inputs and to the labels, by name.

    Names are compared without regard to case and to signs that files' names can't have. The only input of a model also
    takes an array of a common name, or the only one that isn't labels.

    Returns:
        The arrays by input, the labels if there are any, and the names of arrays that belong nowhere.

    Raises:
        DataError: an input is left without an array (OP706).
    """
    rest = dict(arrays)
    found: dict[str, Array] = {}
    for spec in inputs:
        name = _find(rest, (spec.name,))
        if name is not None:
            found[spec.name] = rest.pop(name)
    label = _find(rest, _LABELS)
    labels = None if label is None else rest.pop(label)
    if len(inputs) == 1 and not found:
        name = _find(rest, _INPUTS) or (next(iter(rest)) if len(rest) == 1 else None)
        if name is not None:
            found[inputs[0].name] = rest.pop(name)
    missing = [spec for spec in inputs if spec.name not in found]
    if missing:
        hint = f"the arrays are: {', '.join(arrays)}"
        raise DataError("OP706", f"no array for input {missing[0]}", where=where, hint=hint)
    return found, labels, tuple(rest)


def _find(arrays: Mapping[str, Array], names: Sequence[str]) -> str | None:
    plain = {_plain(name): name for name in reversed(list(arrays))}
    return next((plain[_plain(name)] for name in names if _plain(name) in plain), None)


def _plain(name: str) -> str:
    return re.sub(r"\W", "_", name).lower()
