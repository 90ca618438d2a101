"""Checkpoints: everything that a training needs to resume exactly."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from onnxprune.model.resumable import Arrays, damaged, of_other_work, read_archive, write_archive
from onnxprune.train.history import Epoch, to_fields

_VERSION = 2
_STATE, _BEST = "state/", "best/"
_PLAIN = ("fingerprint", "step", "value", "best_epoch", "losses", "seconds", "skipped", "in_a_row", "epochs")


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
        epochs: the number of epochs that fit into the time; 0 before the first step.
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
    epochs: int = 0


def write(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint atomically.

    Raises:
        TrainingError: it can't be written (OP905).
    """
    notes = {name: getattr(checkpoint, name) for name in _PLAIN}
    notes |= {"version": _VERSION, "history": to_fields(checkpoint.history)}
    arrays = {_STATE + name: array for name, array in checkpoint.state.items()}
    arrays |= {_BEST + name: array for name, array in checkpoint.best.items()}
    write_archive(path, notes, arrays)


def read(path: Path, fingerprint: str) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        TrainingError: it can't be read, or is of another training (OP905).
    """
    notes, arrays = read_archive(path)
    try:
        history = [Epoch(**entry) for entry in notes["history"]]
        plain = {name: notes[name] for name in _PLAIN}
        found = Checkpoint(**plain, state=_named(arrays, _STATE), best=_named(arrays, _BEST), history=history)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise damaged(path, error) from error
    if found.fingerprint != fingerprint:
        raise of_other_work(path)
    return found


def _named(arrays: Arrays, prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
