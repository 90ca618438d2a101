"""What onnxprune notes in a model's metadata. Anyone can write metadata, so a note proves nothing by itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from onnx import ModelProto

VERSION = "onnxprune.version"
CLEANED = "onnxprune.cleaned"
QUANTIZED = "onnxprune.quantized"
CLUSTERED = "onnxprune.clustered"
SPARSE = "onnxprune.sparse"
STAGES = "onnxprune.stages"
FITTED = "onnxprune.fitted"  # see `onnxprune.data.marks`


def read_note(model: ModelProto, key: str) -> str | None:
    """Return the note of a key; None if there is none."""
    return next((entry.value for entry in model.metadata_props if entry.key == key), None)


def write_notes(model: ModelProto, notes: Mapping[str, str], *, without: Sequence[str] = ()) -> None:
    """Replace notes.

    Args:
        model: the model.
        notes: the notes by key.
        without: other keys whose notes go.
    """
    kept = {e.key: e.value for e in model.metadata_props if e.key not in notes and e.key not in without}
    del model.metadata_props[:]
    for key, value in {**kept, **notes}.items():
        model.metadata_props.add(key=key, value=value)


def sparse_weights(model: ModelProto) -> dict[str, str]:
    """Return the initializers that are noted to be sparse, each with the pattern of its zeros; none if damaged."""
    try:
        found = json.loads(read_note(model, SPARSE) or "{}")
        return {str(name): str(pattern) for name, pattern in found.items()}
    except (ValueError, AttributeError, RecursionError):
        return {}
