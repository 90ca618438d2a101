"""The models of `benchmarks.coverage`: real trained ones, architectures of real exporters, onnx's light models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import ModelProto

from benchmarks.common import ROOT
from models.fill import fill

_SHARED = ROOT.parent / "shared" / "models"
_LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


@dataclass(frozen=True, slots=True)
class Family:
    """Models of one kind in one folder.

    Attributes:
        name: the kind of models.
        folder: the folder with their files.
        where: the folder as shown in reports.
        finish: applied to each model that is read.
    """

    name: str
    folder: Path
    where: str
    finish: Callable[[ModelProto], ModelProto] = lambda model: model

    def models(self) -> dict[str, Path]:
        """Return the models' files by name, in order; none if the folder is absent."""
        return {path.stem: path for path in sorted(self.folder.glob("*.onnx"))}

    def read(self, path: Path) -> ModelProto:
        """Read one of the models."""
        return self.finish(onnx.load(path))


FAMILIES: Sequence[Family] = (
    Family("Trained models", _SHARED, "../shared/models"),
    Family(
        "Architectures as exported, random weights", _SHARED / "architectures", "../shared/models/architectures", fill
    ),
    Family("onnx's light models, random weights", _LIGHT, "the onnx package", fill),
)
