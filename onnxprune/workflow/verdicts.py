"""What the stages of `shrink` brought, and the result."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from onnx import ModelProto

from onnxprune.benchmarking.layer_changes import LayerChange
from onnxprune.benchmarking.speed import Speed
from onnxprune.evaluation import Estimate, Evaluation
from onnxprune.model.file import Model
from onnxprune.model.metadata import STAGES, VERSION, write_notes
from onnxprune.settings.pipeline import StageName
from onnxprune.version import __version__
from onnxprune.workflow.elsewhere import Elsewhere
from onnxprune.workflow.stages import Expected


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a stage brought, and whether it was kept.

    Attributes:
        stage: the stage.
        kept: whether the result has it.
        why: what was done, or why it was left out.
        seconds: the time that it took.
        size: bytes before and after.
        speed: how much faster it made the model; None if that wasn't measured.
        drop: the drop in accuracy against the file, on samples that judge stages; None if that wasn't measured.
        tries: how often it was tried, each time milder, because answers had changed too much.
        again: the settings of the stage that make the same again, without choosing.
        document: what else reports say of it, see `Pipeline.describe`.
    """

    stage: StageName
    kept: bool
    why: str
    seconds: float = 0.0
    size: tuple[int, int] | None = None
    speed: Speed | None = None
    drop: Estimate | None = None
    tries: int = 1
    again: Mapping[str, Any] = field(default_factory=dict)
    document: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ShrinkResult:
    """The result of `shrink`.

    Attributes:
        model: the best model; the file as it was if no stage was kept.
        verdicts: what each stage brought.
        expected: what they were expected to bring.
        size: bytes of the file and of the result.
        speed: how much faster the result is than the file; None if that wasn't measured.
        untimed: why not.
        evaluation: the result against the file, on samples that chose nothing; None without data.
        drop: its drop in accuracy there.
        metric: the metric that the drop is measured in.
        allowed: the drop allowed; None if nothing limits it.
        basis: what the drop allowed comes from.
        samples: the number of samples that stages work with, that decide, and that judge.
        missed: the limits that aren't met, in words.
        stopped: whether it was interrupted.
        also: the result on other execution providers.
        notes: what else to know.
        layers: the layers of the file and of the result with their times, if they were asked for.
    """

    model: Model
    verdicts: tuple[Verdict, ...]
    expected: tuple[Expected, ...]
    size: tuple[int, int]
    speed: Speed | None = None
    untimed: str = ""
    evaluation: Evaluation | None = None
    drop: Estimate | None = None
    metric: str = ""
    allowed: float | None = None
    basis: str = ""
    samples: tuple[int, int, int] | None = None
    missed: tuple[str, ...] = ()
    stopped: bool = False
    also: tuple[Elsewhere, ...] = ()
    notes: tuple[str, ...] = ()
    layers: tuple[LayerChange, ...] = ()

    def __repr__(self) -> str:
        """Return the stages that were kept, and the sizes."""
        return f"ShrinkResult({', '.join(self.kept) or 'nothing kept'}: {self.size[0]:,} to {self.size[1]:,} bytes)"

    @property
    def kept(self) -> tuple[StageName, ...]:
        """The stages that the result has."""
        return tuple(verdict.stage for verdict in self.verdicts if verdict.kept)


@dataclass(frozen=True, slots=True, eq=False)
class Reached:
    """How far a pipeline is.

    Attributes:
        model: the best model so far.
        verdicts: those of the stages so far.
        before: how far it was before the last stage that is kept; None at the start.
    """

    model: Model
    verdicts: tuple[Verdict, ...] = ()
    before: Reached | None = None

    def then(self, verdict: Verdict, model: Model | None = None) -> Reached:
        """Return what is reached after a stage; without a model, it was left out."""
        verdicts = (*self.verdicts, verdict)
        return Reached(self.model, verdicts, self.before) if model is None else Reached(model, verdicts, self)

    def without_last(self, why: str) -> Reached:
        """Return what is reached if the last stage that was kept is left out, for a reason."""
        assert self.before is not None
        last = max(number for number, verdict in enumerate(self.verdicts) if verdict.kept)
        left_out = replace(self.verdicts[last], kept=False, why=why)
        verdicts = (*self.verdicts[:last], left_out, *self.verdicts[last + 1 :])
        return Reached(self.before.model, verdicts, self.before.before)


def sign(model: ModelProto, result: ShrinkResult) -> None:
    """Write into the model's metadata which stages it went through."""
    write_notes(model, {VERSION: __version__, STAGES: json.dumps(result.kept)})


def recorded_speed(notes: Mapping[str, Any] | None) -> Speed | None:
    """Return a speed that was recorded."""
    return None if notes is None else Speed(**{**notes, "speedup": Estimate(**notes["speedup"])})


def recorded_verdict(notes: Mapping[str, Any]) -> Verdict:
    """Return a verdict that was recorded."""
    loss, size = notes["drop"], notes["size"]
    return Verdict(
        **{
            **notes,
            "speed": recorded_speed(notes["speed"]),
            "drop": None if loss is None else Estimate(**loss),
            "size": None if size is None else tuple(size),
        }
    )
