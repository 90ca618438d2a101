"""What a run brought: how much faster and smaller the result is than the user's file, and how far its answers are kept.

What the run has measured already isn't measured again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.benchmarking.layer_changes import LayerChange, layer_changes
from onnxprune.benchmarking.session import Feeds, TimedSession, samples_of
from onnxprune.benchmarking.settings import SessionSettings
from onnxprune.benchmarking.speed import Speed, speed_of, typical_seconds
from onnxprune.data import open_data, some
from onnxprune.errors import OnnxPruneError
from onnxprune.evaluation import Estimate, Evaluation, evaluate
from onnxprune.evaluation.disagreement import Example
from onnxprune.evaluation.fidelity import Fidelity, better, fidelity, perhaps_trained_on
from onnxprune.model.session import with_threads
from onnxprune.model.states import fitted, state_inputs
from onnxprune.progress import Progress, counted, silent
from onnxprune.runtime.library import custom_ops
from onnxprune.runtime.provider import parse_provider
from onnxprune.settings import PruneSettings
from onnxprune.shapes import runnable_inputs
from onnxprune.workflow.prune_model import Judged, PruneResult

log = logging.getLogger(__name__)

_LONGEST = 1.0  # seconds of a run of both models, above which they aren't timed
_COMPARING = 5.0  # seconds of running both models on samples
_SAMPLES = 8, 500
_GENERATED = 64


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run brought.

    Attributes:
        speed: the speed; None if it wasn't measured.
        untimed: why the speed wasn't measured.
        fidelity: how far the answers are those of the original; None if that wasn't measured.
        uncompared: why it wasn't measured.
        judged: the samples that the answers were compared on.
        unchanged: whether the model computes the same as the original: nothing was removed.
        fitted: whether the weights were repaired or trained.
        trained: whether they were trained.
        examples: samples on which the result and the original disagree most, if any were to be kept; those of the
            evaluation of a search or of training are in that.
        calibrated: how far the answers are kept on the samples that repaired the model, where these aren't the ones
            judged by.
        layers: the layers of both with their times, if they were asked for.
    """

    speed: Speed | None
    untimed: str
    fidelity: Fidelity | None
    uncompared: str
    judged: Judged
    unchanged: bool
    fitted: bool
    trained: bool
    examples: tuple[Example, ...] = ()
    calibrated: Fidelity | None = None
    layers: tuple[LayerChange, ...] = ()

    @property
    def overfitted(self) -> bool:
        """Whether the answers are kept better on the samples that repaired the model, beyond chance."""
        own, other = self.calibrated, self.fidelity
        return own is not None and other is not None and better(own, other)


def outcome(
    result: PruneResult,
    settings: PruneSettings,
    *,
    examples: int = 0,
    layers: bool = False,
    progress: Progress = silent,
) -> Outcome:
    """Measure what a run brought, in a few seconds.

    Args:
        result: the run's result.
        settings: its settings: where models are run.
        examples: number of samples on which the result and the original disagree most to keep.
        layers: whether to measure the time of each layer.
        progress: called with the samples that are compared.

    Examples:
        >>> import onnxprune as op
        >>> settings = op.PruneSettings(planning=op.PlanSettings(ratio=0.5))
        >>> found = outcome(op.prune_model("models/digits_resnet.onnx", settings), settings)
        >>> found.judged, found.fidelity.metric
        ('generated', 'agreement')
    """
    plan, trained = result.plan, result.tuned is not None and result.tuned.kept == "after"
    unchanged = not (plan.removed or plan.blocks or result.analysis.moves or result.repairs or trained)
    found, judged, uncompared, calibrated = None, result.judged, "nothing was removed", None
    with custom_ops(*settings.running.custom_ops), with_threads(settings.latency.threads):
        speed, untimed, seconds = _speed(result, settings, counted(progress, "time the result"))
        if layers and speed is not None:
            progress("time the layers", 0, None)
        timed = _layers(result, settings) if layers and speed is not None else ()
        if not unchanged:
            progress("compare the answers", 0, None)
            found, judged, uncompared = _compared(result, settings, seconds, examples, progress)
        close = None if found is None else fidelity(found)
        if close is not None and judged == "held out" and result.fitted_on is not None:
            calibrated = _on_calibration(result, settings, close.samples, progress)
    if close is not None and result.evaluation is None and (doubt := perhaps_trained_on(close.accuracy)) is not None:
        log.warning("%s", doubt)  # a limited drop was warned of before the search
    told = found is result.evaluation or (result.tuned is not None and result.tuned.after is not None)
    return Outcome(
        speed=speed,
        untimed=untimed,
        fidelity=close,
        uncompared=uncompared,
        judged=judged,
        unchanged=unchanged,
        fitted=bool(result.repairs) or trained,
        trained=trained,
        examples=() if found is None or told else found.examples,
        calibrated=calibrated,
        layers=timed,
    )


def _on_calibration(result: PruneResult, settings: PruneSettings, most: int, progress: Progress) -> Fidelity | None:
    """Return how far the answers are kept on samples that repaired the model, at most as many as it is judged by."""
    assert result.fitted_on is not None
    seed = settings.planning.seed
    data = some(result.fitted_on, most, seed)
    try:
        return fidelity(
            evaluate(result.model.proto, data, against=result.analysis.original, seed=seed, progress=progress)
        )
    except OnnxPruneError as error:
        log.debug("not compared on the samples of the repair: %s", error)
        return None


def _ways(result: PruneResult, settings: PruneSettings) -> tuple[Feeds, Feeds, SessionSettings]:
    """Return inputs to run the original and the result on, and how to run them.

    Raises:
        OnnxPruneError: there is no such provider, or there are no inputs that run.
    """
    graph, pruned = result.analysis.graph, result.model.proto
    feeds = runnable_inputs(graph.proto, graph.shapes.inputs, settings.planning.seed)
    samples = samples_of(feeds)
    opening = SessionSettings(parse_provider(settings.latency.provider or "cpu"), settings.latency.threads)
    return feeds, fitted(state_inputs(pruned), feeds, samples), opening


def _layers(result: PruneResult, settings: PruneSettings) -> tuple[LayerChange, ...]:
    """Return the layers with their times; none if these can't be measured."""
    try:
        feeds, own, opening = _ways(result, settings)
        before, after = (result.analysis.original, feeds, None), (result.model.proto, own, None)
        return layer_changes(before, after, opening)[0]
    except OnnxPruneError as error:
        log.debug("no times of layers: %s", error)
        return ()


def _speed(
    result: PruneResult, settings: PruneSettings, progress: Callable[[float], None]
) -> tuple[Speed | None, str, float]:
    """Return the speed or why it wasn't measured, and the seconds that both models take for a sample; 0 if unknown."""
    known: dict[str, Any] | None = None if settings.plan is not None else result.plan.settings.get("latency")
    if known is not None:
        share, before = Estimate(**known["measured_share"]), known["original_seconds"]
        after = before * share.value
        return Speed(share.inverse, before, after, known["provider"]), "", before + after
    try:
        feeds, own, opening = _ways(result, settings)
        path = result.analysis.model.path
        original = TimedSession(
            path if path is not None and path.is_file() else result.analysis.original, feeds, opening
        )
        subjects = original, TimedSession(result.model.proto, own, opening)
    except OnnxPruneError as error:
        return None, error.cause, 0.0
    samples = samples_of(feeds)
    typical = typical_seconds(subjects)
    seconds = sum(typical)
    if seconds > _LONGEST:
        return None, f"a run takes {max(typical):.1f} s; the command `benchmark` measures it", seconds / samples
    found = speed_of(*subjects, typical, opening.provider.short, settings.planning.seed, progress)
    return found, "", (found.before + found.after) / samples


def _compared(
    result: PruneResult, settings: PruneSettings, seconds: float, examples: int, progress: Progress
) -> tuple[Evaluation | None, Judged, str]:
    """Return the evaluation of the result against the original, on which samples, or why there is none."""
    tuned = result.tuned if result.data is None else None  # samples that chose no epoch are better
    if result.evaluation is not None:
        return result.evaluation, "held out", ""
    if tuned is not None and (known := tuned.after if tuned.kept == "after" else tuned.before) is not None:
        return known, "held out", ""
    most = int(np.clip(_COMPARING / seconds, *_SAMPLES)) if seconds else _SAMPLES[0]
    seed, judged, data = settings.planning.seed, result.judged, result.data
    proto = result.analysis.original
    try:
        if data is None:
            sizes = (result.analysis.whole or result.analysis).graph.shapes.inputs
            judged, most = "generated", min(most, _GENERATED)
            data = open_data("random", proto, limit=most, seed=seed, sizes=sizes)
        data = some(data, most, seed)
        found = evaluate(result.model.proto, data, against=proto, seed=seed, examples=examples, progress=progress)
        return found, judged, ""
    except OnnxPruneError as error:
        log.debug("not compared: %s", error)
        return None, judged, error.cause
