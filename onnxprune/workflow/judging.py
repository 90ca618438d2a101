"""Whether a stage of `shrink` is kept: by answers on samples that the stage hasn't seen, by time, and by size."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import asdict, replace
from math import isfinite

from onnx import ModelProto

from onnxprune.benchmarking.session import Feeds, TimedSession
from onnxprune.benchmarking.settings import SessionSettings
from onnxprune.benchmarking.speed import Speed, speed_of, typical_seconds
from onnxprune.errors import OnnxPruneError
from onnxprune.evaluation import Estimate, Evaluation
from onnxprune.evaluation.fidelity import largest_kept
from onnxprune.model.file import load
from onnxprune.model.resumable import Records
from onnxprune.model.wire import pieces
from onnxprune.progress import Progress, within
from onnxprune.quantization.disturbed import disturbed
from onnxprune.quantization.quantizers import prepare
from onnxprune.runtime.provider import Provider
from onnxprune.sensitivity import drop
from onnxprune.settings.pipeline import ShrinkSettings
from onnxprune.workflow.drop import DropMeasure, Parts
from onnxprune.workflow.verdicts import Verdict, recorded_speed

log = logging.getLogger(__name__)

_ALLOWED = 0.01  # drop, where nothing is asked for and no input can be disturbed
_CHANGED = 0.98  # of the bytes, above which a model isn't smaller
_LONGEST = 2.0  # seconds of a run of both models, above which they aren't timed


class Judge:
    """Measures what stages make, against the file and against the model before.

    Attributes:
        example: the inputs that models are timed on.
        timed: whether time decides what is kept.
        measure: how a drop is measured; None without data.
        allowed: the drop allowed; None if nothing limits it.
        basis: what it comes from.
        records: speeds that were measured, which a resumed run doesn't measure again.
    """

    def __init__(
        self,
        original: ModelProto,
        settings: ShrinkSettings,
        parts: Parts | None,
        example: Feeds,
        place: tuple[Provider, bool, tuple[str, ...]],
    ) -> None:
        """Take what is judged by; nothing is measured yet.

        Args:
            original: the file.
            settings: the settings.
            parts: the samples; None without data.
            example: inputs to time models on.
            place: where they are timed, see `onnxprune.workflow.hardware.place`.
        """
        self.original, self.settings, self.parts, self.example = original, settings, parts, example
        self.provider, self.here, self.notes = place
        self.timed = settings.timed and self.here
        self.measure: DropMeasure | None = None
        self.allowed = settings.max_drop
        self.basis = "asked for" if settings.max_drop is not None else ""
        self.records = Records()

    def prepare(self, progress: Progress) -> None:
        """Find out how a drop is measured, and what drop is allowed if the user doesn't say.

        Raises:
            DataError: the samples allow no measure (OP711), or tell nothing of the model (OP713).
        """
        if self.parts is None:
            return
        measure = DropMeasure(self.original, self.parts, self.settings.max_drop or 0.0, self.settings.seed)
        measure.check(within(progress, "data"))
        if self.allowed is None and self.settings.target is None:
            self.allowed, self.basis = self._unnoticed(measure, progress)
        measure.max_drop = 1.0 if self.allowed is None else self.allowed
        self.measure = measure

    def _unnoticed(self, measure: DropMeasure, progress: Progress) -> tuple[float, str]:
        """Return the drop that goes unnoticed: that of the file on inputs shifted by a hair, but not a large one."""
        most = largest_kept(measure.metric)
        try:
            moved = disturbed(prepare(self.original), self.example, self.settings.seed)
            if moved is not None:
                told = within(progress, "measure what goes unnoticed")
                found = max(0.0, drop(measure(load(moved).proto, told, whole=True), measure.metric).value)
                if isfinite(found):
                    basis = "what the file's own answers lose when its inputs are shifted by a hair"
                    return min(found, most), basis if found <= most else f"{basis} ({found:.1%}), but no more than this"
        except OnnxPruneError as error:
            log.debug("not disturbed: %s", error)
        return min(_ALLOWED, most), "one percent, as the inputs can't be shifted by a hair"

    def answers(self, model: ModelProto, progress: Progress) -> tuple[Estimate | None, str]:
        """Return the drop of a model against the file, and why that is too much; "" if it isn't."""
        if (measure := self.measure) is None:
            return None, ""
        found = measure(model, within(progress, "judge"))
        loss = drop(found, measure.metric)
        if found.not_finite:
            return loss, "it gives outputs that aren't finite"
        if measure.accepts(found):
            return loss, ""
        if loss.value <= measure.max_drop:
            return loss, "more right answers become wrong than the drop explains"
        return loss, f"the drop would be {loss.value:.2%}, more than the {measure.max_drop:.2%} allowed"

    def pays(
        self, verdict: Verdict, before: ModelProto, after: ModelProto, progress: Callable[[float], None], *, lossy: bool
    ) -> Verdict:
        """Return the verdict on a model whose answers are good enough: it must be faster or smaller, never slower."""
        assert verdict.size is not None
        size, objective = verdict.size, self.settings.objective
        if self.timed:
            speed, untimed = self.known_speed(before, after, progress)
            verdict = replace(verdict, speed=speed)
            if speed is None:
                log.info("note: %s isn't timed: %s", verdict.stage, untimed)
            elif speed.speedup.high < 1 and objective == "latency":
                why = f"it makes the model slower: {speed.speedup.value:.2f}x as fast"
                return replace(verdict, kept=False, why=why)
        smaller, larger = size[1] < _CHANGED * size[0], size[1] > size[0] / _CHANGED
        faster = verdict.speed is not None and verdict.speed.speedup.low > 1
        if larger and (objective == "size" or not faster):
            return replace(verdict, kept=False, why="it makes the model larger")
        if self.timed and lossy and not smaller and not faster:
            return replace(verdict, kept=False, why="it makes the model neither faster nor smaller")
        return verdict

    def known_speed(
        self, before: ModelProto, after: ModelProto, progress: Callable[[float], None] | None = None
    ) -> tuple[Speed | None, str]:
        """Return `speed`, of records if they have it."""
        name = f"speed of {_digest(after)} against {_digest(before)}"
        if name not in self.records:
            speed, untimed = self.speed(before, after, progress)
            self.records.keep(name, {"speed": None if speed is None else asdict(speed), "untimed": untimed})
        notes = self.records[name]
        return recorded_speed(notes["speed"]), notes["untimed"]

    def speed(
        self, before: ModelProto, after: ModelProto, progress: Callable[[float], None] | None = None
    ) -> tuple[Speed | None, str]:
        """Time two models in turns; return why not if that can't be done."""
        if not self.here:
            return None, self.notes[-1]
        how = SessionSettings(self.provider, self.settings.threads)
        try:
            subjects = TimedSession(before, self.example, how), TimedSession(after, self.example, how)
        except OnnxPruneError as error:
            return None, error.cause
        typical = typical_seconds(subjects)
        if sum(typical) > _LONGEST:
            return None, f"a run takes {max(typical):.1f} s; the command `benchmark` measures it"
        return speed_of(*subjects, typical, self.provider.short, self.settings.seed, progress), ""

    def evaluation(
        self, model: ModelProto, progress: Progress, *, examples: int = 0
    ) -> tuple[Evaluation | None, Estimate | None]:
        """Return the evaluation of the result on samples that chose nothing, and its drop there."""
        if self.measure is None:
            return None, None
        found = self.measure.judge(model, within(progress, "judge the result"), examples=examples)
        return found, drop(found, self.measure.metric)


def _digest(model: ModelProto) -> str:
    found = hashlib.sha256()
    for part in pieces(model)[1]:
        found.update(part)
    return found.hexdigest()[:16]
