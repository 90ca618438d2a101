"""Checkpoints: everything that a training needs to resume exactly."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import TrainingError
from onnxprune.model.file import written_whole
from onnxprune.train.history import Epoch, to_fields

_VERSION = 1
_NOTES, _STATE, _BEST = "notes", "state/", "best/"
_PLAIN = ("fingerprint", "step", "value", "best_epoch", "losses", "seconds", "skipped", "in_a_row")

Arrays = Mapping[str, NDArray[Any]]


@dataclass(slots=True)
class Checkpoint:
    """The state of a training.

    Attributes:
        fingerprint: digest of the model, the settings and the data; checkpoints of other trainings are refused.
        step: number of completed steps.
        state: weights, statistics and optimizer state.
        history: the completed epochs.
        best: the weights of the best epoch so far.
        value: their validation value.
        best_epoch: the number of that epoch, 0 if none was better than the start.
        losses: sums of the current epoch's losses.
        seconds: seconds of the current epoch so far.
        skipped: steps of the current epoch that were skipped.
        in_a_row: steps that were skipped since the last one that wasn't.
    """

    fingerprint: str
    step: int = 0
    state: Arrays = field(default_factory=dict)
    history: list[Epoch] = field(default_factory=list)
    best: Arrays = field(default_factory=dict)
    value: float | None = None
    best_epoch: int = 0
    losses: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    skipped: int = 0
    in_a_row: int = 0


def write(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint atomically.

    Raises:
        TrainingError: it can't be written (OP905).
    """
    notes = {name: getattr(checkpoint, name) for name in _PLAIN}
    notes |= {"version": _VERSION, "history": to_fields(checkpoint.history)}
    arrays = {_NOTES: np.frombuffer(json.dumps(notes).encode(), np.uint8)}
    arrays |= {_STATE + name: array for name, array in checkpoint.state.items()}
    arrays |= {_BEST + name: array for name, array in checkpoint.best.items()}
    try:
        with written_whole(path) as (draft,), zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED) as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)
    except OSError as error:
        cause = f"the checkpoint can't be written: {error.strerror or error}"
        raise TrainingError("OP905", cause, where=str(path)) from error


def read(path: Path, fingerprint: str) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        TrainingError: it can't be read, or is of another training (OP905).
    """
    where = str(path)
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {name.removesuffix(".npy"): _array(archive.read(name)) for name in archive.namelist()}
        notes = json.loads(arrays.pop(_NOTES).tobytes())
        history = [Epoch(**entry) for entry in notes["history"]]
        plain = {name: notes[name] for name in _PLAIN}
        found = Checkpoint(**plain, state=_named(arrays, _STATE), best=_named(arrays, _BEST), history=history)
    except OSError as error:
        cause = f"the checkpoint can't be read: {error.strerror or error}"
        raise TrainingError("OP905", cause, where=where) from error
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, AttributeError) as error:
        cause = f"not a valid checkpoint: {' '.join(str(error).split())}"
        raise TrainingError("OP905", cause, where=where) from error
    if found.fingerprint != fingerprint:
        hint = "resume with the same model, data and settings, or start again without `resume`"
        raise TrainingError("OP905", "the checkpoint is of another training", where=where, hint=hint)
    return found


def _array(content: bytes) -> NDArray[Any]:
    array: NDArray[Any] = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    return array


def _named(arrays: Arrays, prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
