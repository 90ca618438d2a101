"""From a file to what is deployed: clean, prune and repair, quantize; each stage judged, and kept only if it pays.

A stage makes a model of the best one so far. It is kept if the drop in accuracy against the file stays within what is
allowed in all, and if it makes the model faster or smaller, and never slower. Samples are divided once: stages work
with the first part, the second decides whether each is kept, and the third judges the result, once.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from onnx import ModelProto

from onnxprune.benchmarking.layer_changes import LayerChange, layer_changes
from onnxprune.benchmarking.session import Feeds, TimedSession
from onnxprune.benchmarking.settings import SessionSettings
from onnxprune.benchmarking.speed import Speed, speed_of, typical_seconds
from onnxprune.cost.cost import stored_weights
from onnxprune.data import Data, Dataset
from onnxprune.errors import DataError, OnnxPruneError, UsageError
from onnxprune.evaluation.fidelity import largest_kept
from onnxprune.model.file import Model, Source, file_size, load
from onnxprune.model.resumable import Records
from onnxprune.model.session import with_threads
from onnxprune.model.wire import PROTOBUF_LIMIT, pieces
from onnxprune.progress import Progress, duration, silent, within
from onnxprune.quantization.disturbed import disturbed
from onnxprune.quantization.quantizers import prepare
from onnxprune.runtime.library import custom_ops
from onnxprune.runtime.provider import CPU, Provider
from onnxprune.sensitivity import drop
from onnxprune.settings.declare import build, either, flat, given, plain, read
from onnxprune.settings.hardware import HARDWARE, Hardware
from onnxprune.settings.pipeline import EFFORTS, ShrinkSettings
from onnxprune.settings.planning import Target
from onnxprune.shapes import runnable_inputs
from onnxprune.version import __version__
from onnxprune.workflow.analysis import TracedModel, analyze
from onnxprune.workflow.drop import DropMeasure, Parts, divide
from onnxprune.workflow.hardware import place
from onnxprune.workflow.inputs import calibration_batches, first_inputs, open_samples
from onnxprune.workflow.outlook import outlook
from onnxprune.workflow.stages import CHOICES, STAGES, Made, Situation, Stage, Task
from onnxprune.workflow.verdicts import ShrinkResult, Verdict, recorded_verdict, sign

log = logging.getLogger(__name__)

_ALLOWED = 0.01  # drop, where nothing is asked for and no input can be disturbed
_CHANGED = 0.98  # of the bytes, above which a model isn't smaller
_BUDGETS = frozenset({"ratio", "plan", "target", "remove_blocks"})  # settings of `prune` that say how much to remove
_COMMON = frozenset(d.name for d in flat(ShrinkSettings)) - {"limit", "max_drop", "target", "timed", "objective"}
_LONGEST = 2.0  # seconds of a run of both models, above which they aren't timed


def shrink(
    model: Source, settings: ShrinkSettings | None = None, *, progress: Progress = silent, **options: Any
) -> ShrinkResult:
    """Clean a model, prune and repair it, and quantize it: each as far as it pays, within an allowed loss.

    Args:
        model: a path, bytes, a ModelProto or an onnx-graphsurgeon graph.
        settings: the settings; `options` are an alternative.
        progress: called with phases and their parts.
        **options: fields of `ShrinkSettings` and `DataSettings`: data, max_drop, target, stages, effort, ...

    Raises:
        PlanError: settings are contradictory (OP302) or out of range (OP303).
        UsageError: a setting is unknown (OP602).
        ModelError: the model can't be read or run.
        DataError: the data can't be read or don't fit, are too few (OP712), or tell nothing of the model (OP713).

    Examples:
        >>> import onnxprune as op
        >>> small = op.shrink("models/digits_resnet.onnx", stages=("clean",), timed=False)
        >>> small.kept, small.size[1] < small.size[0]
        (('clean',), True)
    """
    settings = either(ShrinkSettings, settings, options)
    with planned(load(model), settings, progress) as pipeline:
        return pipeline.run()


@contextmanager
def planned(model: Model, settings: ShrinkSettings, progress: Progress = silent) -> Iterator[Pipeline]:
    """Yield the pipeline of a model, before any stage ran; ``expected`` says what stages are expected to bring.

    Raises:
        OnnxPruneError: see `shrink`.
    """
    with custom_ops(*settings.running.custom_ops), with_threads(settings.threads):
        yield Pipeline(model, settings, progress)


class Pipeline:
    """One run of the stages on one model.

    Attributes:
        describe: returns what reports say of the result of a stage that is kept, as JSON has it; nothing by default.
            The result itself isn't kept, as it holds models.
        examples: number of samples on which the file and the result disagree most to keep.
        layers: whether to measure the time of each layer of the file and the result.
    """

    describe: Callable[[Any], Mapping[str, Any]] = staticmethod(lambda _: {})
    examples: int = 0
    layers: bool = False

    def __init__(self, loaded: Model, settings: ShrinkSettings, progress: Progress) -> None:
        """Check the settings of all stages, read the model and the data, and estimate what is to be had."""
        self.settings, self.progress, self.original = settings, progress, loaded
        self.stages = [stage for stage in STAGES if not settings.stages or stage.name in settings.stages]
        unknown = settings.options.keys() - {stage.name for stage in STAGES}
        if unknown:
            cause = f"there is no stage {min(unknown)!r}"
            raise UsageError("OP602", cause, hint=f"stages are {', '.join(stage.name for stage in STAGES)}")
        self.hardware: Hardware | None = HARDWARE[settings.hardware] if settings.hardware else None
        self.provider, self.here, self.notes = place(self.hardware)
        self.timed = settings.timed and self.here
        self.targets = settings.target if isinstance(settings.target, tuple) else tuple(filter(None, [settings.target]))
        self.parts: Parts | None = None
        for stage in STAGES:  # what is wrong is refused before the work
            try:
                self._settings(stage, None if settings.samples.data is None else 0.0)
            except OnnxPruneError as error:
                where = error.where or f"settings of {stage.name}"
                raise type(error)(error.code, error.cause, where=where, hint=error.hint) from error
        progress("trace", 0, None)
        self.analysis: TracedModel = analyze(loaded, data=settings.samples)
        graph = self.analysis.graph
        if settings.samples.data is not None:
            samples = settings.samples
            whole = samples if samples.data == "random" else replace(samples, limit=None)
            everything = open_samples(whole, graph, near=loaded.path, seed=settings.seed)
            self.parts = divide(everything, len(everything), settings.seed, training=True)
            if settings.max_drop is None and not self.targets:  # what goes unnoticed is told by answers, not by labels
                work, choosing = _unlabeled(self.parts.training), _unlabeled(self.parts.choosing)
                self.parts = replace(self.parts, training=work, choosing=choosing)
        self.example: Feeds = (
            dict(next(iter(calibration_batches(self.parts.choosing.subset([0]), graph.proto)())))
            if self.parts is not None
            else runnable_inputs(graph.proto, graph.shapes.inputs, settings.seed)
        )
        situation = Situation(
            outlook(self.analysis),
            seconds=self._seconds(),
            layers=len(self.analysis.cost.layers),
            groups=len(graph.groups),
            samples=0 if self.parts is None else len(self.parts.training),
            limited=bool(self.targets or _BUDGETS & settings.options.get("prune", {}).keys()),
        )
        self.expected = tuple(stage.expected(situation) for stage in self.stages)
        self.measure: DropMeasure | None = None
        self.allowed: float | None = settings.max_drop
        self.basis = "asked for" if settings.max_drop is not None else ""

    def run(self) -> ShrinkResult:
        """Run the stages, and judge the result."""
        if self.parts is not None:
            self._prepare_judgment(self.parts)
        best, verdicts, stopped = self.original, list[Verdict](), False
        with self._records() as records:
            for number, stage in enumerate(self.stages):
                left = sum(e.seconds for e in self.expected[number:] if not e.skipped)
                name = f"{stage.name}, stage {number + 1} of {len(self.stages)}, about {duration(left)} left"
                try:
                    verdict, best = self._stage(stage, best, verdicts, records, within(self.progress, name))
                except KeyboardInterrupt:
                    stopped = True
                    break
                verdicts.append(verdict)
        try:
            return self._judged(best, tuple(verdicts), stopped)
        except KeyboardInterrupt:
            return self._judged(best, tuple(verdicts), True)

    def _settings(self, stage: Stage, left: float | None = None, targets: Sequence[Target] = ()) -> Any:
        """Return the settings of a stage: those common to all, of the effort, of the hardware, and the user's own."""
        settings, hardware = self.settings, self.hardware
        values: dict[str, Any] = {
            "seed": settings.seed,
            "threads": settings.threads,
            "custom_ops": settings.running.custom_ops,
            "timed": self.timed and self.provider.name == CPU,  # stages know the CPU's times only
            "provider": None if self.provider.short == "cpu" else self.provider.short,
            **EFFORTS[settings.effort].get(stage.name, {}),
        }
        if hardware is not None:
            values |= {"round_to": hardware.channels, "kind": hardware.kinds, "weight_bits": hardware.weight_bits}
        if stage.name == "quantize" and values["timed"]:
            values["objective"] = settings.objective
        if stage.name == "prune":
            values |= {"max_drop": left, "target": tuple(targets) or None}
            if settings.objective == "size" and left is not None and not targets:
                values["minimize"] = "size"
        own = read(stage.settings, settings.options.get(stage.name, {}))
        known = {declared.name for declared in flat(stage.settings)}
        common = {name: value for name, value in values.items() if name in known and value is not None}
        if _BUDGETS & own.keys():
            common = {name: value for name, value in common.items() if name not in ("max_drop", "target", "minimize")}
        if "form" in own:
            common = {name: value for name, value in common.items() if name not in CHOICES}
        if stage.name == "clean" and self.parts is not None:
            common["inputs"] = self.example
        data = settings.samples.data if self.parts is None else self.parts.training
        if stage.lossy and data is not None:
            common["data"] = data
            if settings.samples.limit is not None:
                common["limit"] = settings.samples.limit
        else:
            common = {n: v for n, v in common.items() if n not in ("limit", "calibration", "max_drop")}
        return build(stage.settings, {**common, **own})

    def _seconds(self) -> float:
        """Return the seconds of running the file on a sample, roughly."""
        how = SessionSettings(Provider(CPU), self.settings.threads)
        try:
            return TimedSession(self.analysis.original, self.example, how).first
        except OnnxPruneError:
            return 0.0

    def _prepare_judgment(self, parts: Parts) -> None:
        """Find out how a drop is measured, and what drop is allowed if the user doesn't say."""
        settings = self.settings
        measure = DropMeasure(self.analysis.original, parts, settings.max_drop or 0.0, settings.seed)
        measure.check(within(self.progress, "data"))
        if self.allowed is None and not self.targets:
            self.allowed, self.basis = self._unnoticed(measure)
        measure.max_drop = 1.0 if self.allowed is None else self.allowed
        self.measure = measure

    def _unnoticed(self, measure: DropMeasure) -> tuple[float, str]:
        """Return the drop that goes unnoticed: that of the file on inputs shifted by a hair, but not a large one."""
        most = largest_kept(measure.metric)
        try:
            moved = disturbed(prepare(self.analysis.original), self.example, self.settings.seed)
            if moved is not None:
                progress = within(self.progress, "measure what goes unnoticed")
                found = max(0.0, drop(measure(load(moved).proto, progress, whole=True), measure.metric).value)
                if isfinite(found):
                    basis = "what the file's own answers lose when its inputs are shifted by a hair"
                    return min(found, most), basis if found <= most else f"{basis} ({found:.1%}), but no more than this"
        except OnnxPruneError as error:
            log.debug("not disturbed: %s", error)
        return min(_ALLOWED, most), "one percent, as the inputs can't be shifted by a hair"

    def _stage(
        self, stage: Stage, best: Model, before: Sequence[Verdict], records: Records, progress: Progress
    ) -> tuple[Verdict, Model]:
        """Run a stage, or take what an earlier run has of it; return its verdict and the best model."""
        if stage.name in records:
            verdict = recorded_verdict(records[stage.name])
            return verdict, load(records.arrays(stage.name)["model"].tobytes()) if verdict.kept else best
        began = perf_counter()
        expected = next(e for e in self.expected if e.stage == stage.name)
        if expected.skipped:
            return Verdict(stage.name, False, expected.skipped), best
        try:
            settings = self._settings(stage, self._left(stage, before), self._targets_for(stage, before))
            made = stage.run(Task(best, settings, progress))
            made = replace(made, model=load(made.model.proto))
            verdict = self._verdict_on(stage, made, best, progress)
            again = {name: value for name, value in plain(settings).items() if name not in _COMMON} | dict(made.again)
            verdict = replace(verdict, again={name: value for name, value in again.items() if value is not None})
        except (DataError, UsageError):
            raise
        except OnnxPruneError as error:
            verdict = Verdict(stage.name, False, error.cause)
        verdict = replace(verdict, seconds=perf_counter() - began)
        if not verdict.kept:
            log.info("%s is left out: %s", stage.name, verdict.why)
            records.keep(stage.name, asdict(verdict))
            return verdict, best
        verdict = replace(verdict, document=self.describe(made.found))
        size, parts = pieces(made.model.proto)
        if size <= PROTOBUF_LIMIT:
            records.keep(stage.name, asdict(verdict), {"model": np.frombuffer(b"".join(parts), np.uint8)})
        return verdict, made.model

    def _left(self, stage: Stage, before: Sequence[Verdict]) -> float | None:
        """Return the drop that a stage may add: an equal share of what is left, for each stage that may lose."""
        if self.allowed is None:
            return None
        spent = max([v.drop.value for v in before if v.kept and v.drop is not None][-1:], default=0.0)
        place = [s.name for s in self.stages].index(stage.name)
        coming = [s for s, e in zip(self.stages, self.expected, strict=True) if s.lossy and not e.skipped]
        sharing = sum(s in self.stages[place:] for s in coming)
        return max(0.0, self.allowed - max(0.0, spent)) / max(1, sharing)

    def _targets_for(self, stage: Stage, before: Sequence[Verdict]) -> tuple[Target, ...]:
        """Return the limits for pruning; shares are of the file, which may have been cleaned since."""
        if stage.name != "prune" or not any(v.kept for v in before):
            return self.targets
        whole: dict[str, float] = dict(self.analysis.cost.totals())
        if before and before[0].speed is not None:
            whole["latency"] = before[0].speed.before
        return tuple(
            Target(t.quantity, t.limit(whole[t.quantity]), True) if t.quantity in whole else t for t in self.targets
        )

    def _verdict_on(self, stage: Stage, made: Made, best: Model, progress: Progress) -> Verdict:
        """Judge what a stage made: it must keep the answers, and pay."""
        sizes = pieces(best.proto)[0], pieces(made.model.proto)[0]
        verdict = Verdict(stage.name, True, made.told, size=sizes)
        measure = self.measure
        if stage.lossy and measure is not None and self.parts is not None:
            found = measure(made.model.proto, within(progress, "judge"))
            verdict = replace(verdict, drop=drop(found, measure.metric))
            if found.not_finite:
                return replace(verdict, kept=False, why="it gives outputs that aren't finite")
            if not measure.accepts(found):
                loss = drop(found, measure.metric).value
                why = f"the drop would be {loss:.2%}, more than the {measure.max_drop:.2%} allowed"
                if loss <= measure.max_drop:
                    why = "more right answers become wrong than the drop explains"
                return replace(verdict, kept=False, why=why)
        if self.timed:
            progress("time", 0, None)
            speed, untimed = self._speed(best.proto, made.model.proto)
            verdict = replace(verdict, speed=speed)
            if speed is None:
                log.info("note: %s isn't timed: %s", stage.name, untimed)
            elif speed.speedup.high < 1 and self.settings.objective == "latency":
                return replace(
                    verdict, kept=False, why=f"it makes the model slower: {speed.speedup.value:.2f}x as fast"
                )
        smaller, larger = sizes[1] < _CHANGED * sizes[0], sizes[1] > sizes[0] / _CHANGED
        faster = verdict.speed is not None and verdict.speed.speedup.low > 1
        if larger and (self.settings.objective == "size" or not faster):
            return replace(verdict, kept=False, why="it makes the model larger")
        if self.timed and stage.lossy and not smaller and not faster:
            return replace(verdict, kept=False, why="it makes the model neither faster nor smaller")
        return verdict

    def _speed(self, before: ModelProto, after: ModelProto) -> tuple[Speed | None, str]:
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
        return speed_of(*subjects, typical, self.provider.short, self.settings.seed), ""

    def _layers(self, model: ModelProto) -> tuple[LayerChange, ...]:
        """Return the layers of the file and of a model with their times; none if they can't be measured."""
        if not self.layers:
            return ()
        self.progress("time the layers", 0, None)
        how = SessionSettings(self.provider, self.settings.threads)
        try:
            return layer_changes((self.original.proto, self.example, None), (model, self.example, None), how)[0]
        except OnnxPruneError as error:
            log.debug("no times of layers: %s", error)
            return ()

    def _judged(self, best: Model, verdicts: tuple[Verdict, ...], stopped: bool) -> ShrinkResult:
        """Measure the result against the file, once."""
        original = self.original
        sizes = file_size(original) or pieces(original.proto)[0], pieces(best.proto)[0]
        counts = None
        if (p := self.parts) is not None:
            counts = len(p.training), len(p.choosing), len(p.judging)
        result = ShrinkResult(
            *(best, verdicts, self.expected, sizes),
            metric="" if self.measure is None else self.measure.metric,
            allowed=self.allowed,
            basis=self.basis,
            samples=counts,
            stopped=stopped,
            notes=self.notes,
        )
        if not result.kept:
            return replace(result, model=original, size=(sizes[0], sizes[0]), missed=self._missed(result))
        sign(best.proto, result)
        best = replace(best, path=None, external=original.external)
        result = replace(result, model=best)
        if stopped:
            return replace(result, untimed="interrupted")
        self.progress("time the result", 0, None)
        speed, untimed = self._speed(original.proto, best.proto)
        result = replace(result, speed=speed, untimed=untimed, layers=() if speed is None else self._layers(best.proto))
        if self.measure is not None and self.parts is not None:
            found = self.measure.judge(best.proto, within(self.progress, "judge the result"), examples=self.examples)
            result = replace(result, evaluation=found, drop=drop(found, self.measure.metric))
        return replace(result, missed=self._missed(result))

    def _missed(self, result: ShrinkResult) -> tuple[str, ...]:
        """Return the limits that the result doesn't meet."""
        whole: dict[str, float] = dict(self.analysis.cost.totals())
        costs: dict[str, float] = dict(zip(("params", "size"), stored_weights(result.model.proto.graph), strict=True))
        if result.speed is not None:
            whole["latency"], costs["latency"] = result.speed.before, result.speed.after
        if {t.quantity for t in self.targets} & {"macs", "memory"}:
            try:
                costs |= analyze(result.model.proto).cost.totals()
            except OnnxPruneError as error:
                log.debug("not counted: %s", error)
        found = []
        for target in self.targets:
            if target.quantity not in costs:
                found.append(f"{target.quantity} wasn't measured{result.untimed and f' ({result.untimed})'}")
            elif costs[target.quantity] > target.limit(whole[target.quantity]):
                is_ = replace(target, value=max(costs[target.quantity], 1e-12), absolute=True)
                limit = replace(target, value=target.limit(whole[target.quantity]), absolute=True)
                found.append(f"{target.quantity} is {is_.shown}, and {limit.shown} was asked for")
        if self.settings.max_drop is not None and result.drop is not None and result.drop.low > self.settings.max_drop:
            found.append(
                f"the drop is {result.drop.value:.2%} on new samples, and {self.settings.max_drop:.2%} was allowed"
            )
        return tuple(found)

    def _records(self) -> Records:
        """Return what an earlier run has done, and where this one records what it does."""
        settings = self.settings
        if settings.checkpoint is None:
            return Records()
        chosen = {name: value for name, value in given(settings).items() if name not in ("checkpoint", "resume")}
        if not isinstance(chosen.get("data", ""), str | os.PathLike):
            chosen["data"] = type(chosen["data"]).__name__
        first = first_inputs(settings.samples, self.analysis.normalized) or {}
        arrays = [(name, hashlib.sha256(array.tobytes()).hexdigest()) for name, array in first.items()]
        identity = hashlib.sha256(repr((self.original.sha256, __version__, chosen, arrays)).encode()).hexdigest()
        return Records(Path(settings.checkpoint), identity, resume=settings.resume)


def _unlabeled(data: Dataset) -> Dataset:
    return replace(data, recipe=replace(data.recipe, labels="none")) if isinstance(data, Data) else data
