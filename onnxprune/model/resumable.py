"""Finished work on file, so that an interrupted run can resume: arrays and notes by name in one zip archive.

The file is replaced as a whole, so that it is complete at any moment. `np.load` reads it.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import TrainingError
from onnxprune.errors.words import one_line
from onnxprune.model.file import written_whole

Arrays = Mapping[str, NDArray[Any]]

_NOTES = "notes"
_RARELY = 20  # the least ratio of the time between two writes to the time of one


def write_archive(path: Path, notes: Mapping[str, Any], arrays: Arrays) -> None:
    """Write notes, which JSON can hold, and arrays.

    Raises:
        TrainingError: the file can't be written (OP905).
    """
    text = np.frombuffer(json.dumps(notes).encode(), np.uint8)
    try:
        with written_whole(path) as (draft,), zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED) as archive:
            for name, array in {_NOTES: text, **arrays}.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)
    except OSError as error:
        cause = f"the checkpoint can't be written: {error.strerror or error}"
        raise TrainingError("OP905", cause, where=str(path)) from error


def read_archive(path: Path) -> tuple[Any, dict[str, NDArray[Any]]]:
    """Return the notes and the arrays of a file.

    Raises:
        TrainingError: it can't be read (OP905).
    """
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {name.removesuffix(".npy"): _array(archive.read(name)) for name in archive.namelist()}
        return json.loads(arrays.pop(_NOTES).tobytes()), arrays
    except OSError as error:
        cause = f"the checkpoint can't be read: {error.strerror or error}"
        raise TrainingError("OP905", cause, where=str(path)) from error
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, AttributeError) as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> TrainingError:
    """Return the error for a checkpoint with contents that aren't valid."""
    cause = f"not a valid checkpoint: {one_line(error)}"
    return TrainingError("OP905", cause, where=str(path))


def of_other_work(path: Path) -> TrainingError:
    """Return the error for a checkpoint of other work."""
    hint = "resume with the same model, data and settings, or start again without `resume`"
    return TrainingError("OP905", "the checkpoint is of other work", where=str(path), hint=hint)


def _array(content: bytes) -> NDArray[Any]:
    array: NDArray[Any] = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    return array


class Records:
    """Finished parts of some work, by name.

    Used as a context, the records are written at its end, whatever ends it.

    Attributes:
        path: the file; None keeps parts without arrays only, and for this run only.
        resumes: whether the file of an earlier run is used.
    """

    def __init__(self, path: Path | None = None, identity: str = "", *, resume: bool = False) -> None:
        """Start without records, or with those of a file.

        Args:
            path: the file, see above.
            identity: what tells the work from others: a digest of model, data and settings.
            resume: whether to read the file, if it exists.

        Raises:
            TrainingError: the file can't be read, or is of other work (OP905).
        """
        self.path, self._identity, self.resumes = path, identity, resume
        self._notes: dict[str, Any] = {}
        self._arrays: dict[str, NDArray[Any]] = {}
        self._changed = False
        self._cost, self._written = 0.0, perf_counter()
        if path is not None and resume and path.exists():
            notes, arrays = read_archive(path)
            try:
                own, self._notes = str(notes["identity"]), dict(notes["records"])
            except (KeyError, TypeError, ValueError) as error:
                raise damaged(path, error) from error
            if own != identity:
                raise of_other_work(path)
            self._arrays = arrays

    def __enter__(self) -> Records:
        """Return the records."""
        return self

    def __exit__(self, *_: object) -> None:
        """Write what isn't written yet."""
        self.write()

    def __contains__(self, name: str) -> bool:
        """Whether a part is finished."""
        return name in self._notes

    def __getitem__(self, name: str) -> Any:
        """Return the notes of a part.

        Raises:
            KeyError: it isn't finished.
        """
        return self._notes[name]

    def arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """Return the arrays of a part."""
        start = f"{name}/"
        return {key.removeprefix(start): array for key, array in self._arrays.items() if key.startswith(start)}

    def keep(self, name: str, notes: Any = None, arrays: Arrays | None = None) -> None:
        """Add a finished part; it is written at once unless that would take much of the time.

        Raises:
            TrainingError: the file can't be written (OP905).
        """
        if self.path is None:
            if not arrays:
                self._notes[name] = notes
            return
        self._notes[name] = notes
        self._arrays |= {f"{name}/{key}": array for key, array in (arrays or {}).items()}
        self._changed = True
        if perf_counter() - self._written >= _RARELY * self._cost:
            self.write()

    def drop(self, name: str) -> None:
        """Forget a part, and all parts whose names begin with its name and a slash."""
        start = f"{name}/"
        for kept in (self._notes, self._arrays):
            for key in [key for key in kept if key == name or key.startswith(start)]:
                del kept[key]
        self._changed = True

    def write(self) -> None:
        """Write all records, if some are new.

        Raises:
            TrainingError: the file can't be written (OP905).
        """
        if self.path is None or not self._changed:
            return
        began = perf_counter()
        write_archive(self.path, {"identity": self._identity, "records": self._notes}, self._arrays)
        self._changed, self._written = False, perf_counter()
        self._cost = self._written - began
