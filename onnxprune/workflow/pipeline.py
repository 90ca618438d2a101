"""From a file to what is deployed: clean, prune and repair, quantize; each stage judged, and kept only if it pays.

A stage makes a model of the best one so far. It is kept if the drop in accuracy against the file stays within what is
allowed in all, and if it makes the model faster or smaller, and never slower. Samples are divided once: stages work
with the first part, the second decides whether each is kept, and the third judges the result, once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
from onnx import ModelProto

from onnxprune.benchmarking.layer_changes import LayerChange, layer_changes
from onnxprune.benchmarking.session import Feeds, TimedSession
from onnxprune.benchmarking.settings import SessionSettings
from onnxprune.data import Data, Dataset
from onnxprune.errors import DataError, OnnxPruneError, PlanError, UsageError
from onnxprune.model.file import Model, Source, file_size, load
from onnxprune.model.session import with_threads
from onnxprune.model.wire import PROTOBUF_LIMIT, pieces
from onnxprune.progress import Progress, counted, silent, time_left, within
from onnxprune.recover.repair import repair_runs
from onnxprune.runtime.library import custom_ops
from onnxprune.runtime.provider import CPU, Provider, parse_provider
from onnxprune.settings.declare import Settings, flat
from onnxprune.settings.hardware import HARDWARE
from onnxprune.settings.pipeline import ShrinkSettings, StageName
from onnxprune.settings.reading import either, plain
from onnxprune.shapes import runnable_inputs
from onnxprune.workflow.analysis import TracedModel, analyze
from onnxprune.workflow.checkpoints import records_of
from onnxprune.workflow.drop import Parts, divide
from onnxprune.workflow.elsewhere import Elsewhere, elsewhere
from onnxprune.workflow.goals import SHARED, Goals
from onnxprune.workflow.hardware import block, place
from onnxprune.workflow.inputs import calibration_batches, open_all
from onnxprune.workflow.judging import Judge
from onnxprune.workflow.outlook import outlook
from onnxprune.workflow.stage_settings import StageSettings
from onnxprune.workflow.stages import STAGES, Made, Situation, Stage, Task
from onnxprune.workflow.together import WHOLE, Share, Together
from onnxprune.workflow.verdicts import Reached, ShrinkResult, Verdict, recorded_verdict, sign

log = logging.getLogger(__name__)

_COMPARED = 64  # largest number of samples to compare providers on
_TRIES = 3  # of a stage that changes answers too much
_COMMON = frozenset(d.name for d in flat(ShrinkSettings)) - {"limit", "max_drop", "target", "timed", "objective"}


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
        where = provider, here, self.notes = place(HARDWARE[settings.hardware] if settings.hardware else None)
        self.own = StageSettings(settings, provider, settings.timed and here, settings.samples.data)
        self.own.check()
        self.others = tuple(map(parse_provider, settings.also))
        self.parts: Parts | None = None
        progress("trace", 0, None)
        self.analysis: TracedModel = analyze(loaded, data=settings.samples)
        graph = self.analysis.graph
        self.own = replace(self.own, multiple=block(len(group.sets) * min(group.widths) for group in graph.groups))
        if settings.samples.data is not None:
            everything = open_all(settings.samples, graph, near=loaded.path, seed=settings.seed)
            self.parts = divide(everything, len(everything), settings.seed, training=True)
            if settings.max_drop is None and not settings.targets:  # answers tell what goes unnoticed, labels don't
                work, choosing = _unlabeled(self.parts.training), _unlabeled(self.parts.choosing)
                self.parts = replace(self.parts, training=work, choosing=choosing)
        self.example: Feeds = (
            dict(next(iter(calibration_batches(self.parts.choosing.subset([0]), graph.proto)())))
            if self.parts is not None
            else runnable_inputs(graph.proto, graph.shapes.inputs, settings.seed)
        )
        if self.parts is not None:
            self.own = replace(self.own, data=self.parts.training, example=self.example)
        self.judge = Judge(self.analysis.original, settings, self.parts, self.example, where)
        speed = partial(self.judge.known_speed, loaded.proto)
        self.goals = Goals(settings.targets, self.analysis, settings.samples, speed)
        situation = Situation(
            outlook(self.analysis),
            seconds=self._seconds(),
            layers=len(self.analysis.cost.layers),
            groups=len(graph.groups),
            repair_runs=repair_runs(self.analysis.cost),
            samples=0 if self.parts is None else len(self.parts.training),
            limited=bool(settings.targets) or self.own.budgeted,
        )
        self.expected = tuple(stage.expected(situation) for stage in self.stages)
        if self._together():  # quantized alone first, and again once it is pruned
            twice = (replace(e, seconds=2 * e.seconds) if e.stage == "quantize" else e for e in self.expected)
            self.expected = tuple(twice)
        self.reached = Reached(loaded)

    def run(self) -> ShrinkResult:
        """Run the stages, and judge the result."""
        self.judge.prepare(self.progress)
        stopped = False
        records = records_of(self.settings, self.settings.samples, self.original.sha256, self.analysis)
        with records as self.records:
            self.judge.records = self.records
            try:
                for stage in self.stages:
                    if stage.name == "prune" and (together := self._together()):
                        for reached in together.steps(self.reached):
                            self.reached = reached
                        break
                    self.reached = self._run(stage.name, self.reached)
                self.reached = self._not_slower(self.reached)
            except KeyboardInterrupt:
                stopped = True
        try:
            return self._judged(self.reached, stopped)
        except KeyboardInterrupt:
            return self._judged(self.reached, True)

    def _not_slower(self, reached: Reached) -> Reached:
        """Leave out the last stages while the result is slower than the file: losses too small to be sure of add up.

        With targets, what they need is kept.
        """
        if self.judge.timed and self.settings.objective == "latency" and not self.goals.targets:
            while reached.before is not None:
                told = counted(self.progress, "time the result")
                speed, _ = self.judge.known_speed(self.original.proto, reached.model.proto, told)
                if speed is None or speed.speedup.high >= 1:
                    break
                why = f"with the stages before it, it makes the model slower than the file: {speed.speedup.value:.2f}x"
                log.info("left out after all: %s", why)
                reached = reached.without_last(why)
        return reached

    def _together(self) -> Together | None:
        """Return how pruning and quantization share what is allowed; None if they don't, or the user says how much."""
        if self.own.budgeted or self.own.exact:
            return None
        names = {stage.name for stage, e in zip(self.stages, self.expected, strict=True) if not e.skipped}
        if not names >= {"prune", "quantize"} or not (SHARED & self.goals.quantities or not self.goals.targets):
            return None
        return Together(self.goals, self.judge, self._run, self.progress)

    def _seconds(self) -> float:
        """Return the seconds of running the file on a sample, roughly."""
        how = SessionSettings(Provider(CPU), self.settings.threads)
        try:
            return TimedSession(self.analysis.original, self.example, how).first
        except OnnxPruneError:
            return 0.0

    def _run(self, name: StageName, reached: Reached, record: str | None = None, share: Share = WHOLE) -> Reached:
        """Run a stage, or take what an earlier run has of it.

        Args:
            name: the stage.
            reached: what it starts from.
            record: the name of the stage's record; by default that of the stage.
            share: what it may lose and must reach.
        """
        stage = next(stage for stage in self.stages if stage.name == name)
        record, records, began = record or name, self.records, perf_counter()
        if record in records:
            verdict = recorded_verdict(records[record])
            model = load(records.arrays(record)["model"].tobytes()) if verdict.kept else None
            return reached.then(verdict, model)
        expected = next(e for e in self.expected if e.stage == stage.name)
        if expected.skipped:
            return reached.then(Verdict(stage.name, False, expected.skipped))
        number = self.stages.index(stage)
        left = sum(e.seconds for e in self.expected[number:] if not e.skipped)
        told = f"{record}, stage {number + 1} of {len(self.stages)}{time_left(left)}"
        verdict, made = self._tried(stage, reached, share, within(self.progress, told))
        verdict = replace(verdict, seconds=perf_counter() - began)
        if not verdict.kept:
            log.info("%s is left out: %s", stage.name, verdict.why)
            records.keep(record, asdict(verdict))
            return reached.then(verdict)
        assert made is not None
        verdict = replace(verdict, document=self.describe(made.found))
        size, parts = pieces(made.model.proto)
        if size <= PROTOBUF_LIMIT:
            records.keep(record, asdict(verdict), {"model": np.frombuffer(b"".join(parts), np.uint8)})
        return reached.then(verdict, made.model)

    def _tried(self, stage: Stage, reached: Reached, share: Share, progress: Progress) -> tuple[Verdict, Made | None]:
        """Run a stage, and run it again milder while answers change too much; return its verdict and what it made."""
        best, milder, tries, short, targets = reached.model, dict[str, Any](), 0, "", share.targets
        drop = self._part() if share.drop is None else share.drop
        if stage.name == "prune" and targets is None and self.goals.targets:
            targets = self.goals.left(self.goals.costs(best.proto), {})
            if not (targets or self.own.budgeted):
                return Verdict(stage.name, False, f"{self.goals.text} holds without removing channels"), None
        try:
            while True:
                tries += 1
                settings = self.own.of(stage, drop, targets or (), milder)
                try:
                    made = stage.run(Task(best, settings, progress))
                except PlanError as error:
                    if error.code != "OP301" or not targets or self.own.budgeted or tries == _TRIES:
                        raise
                    short = short or error.cause
                    milder["target"] = self.goals.eased(milder.get("target", targets), self.goals.costs(best.proto))
                    continue
                made = replace(made, model=load(made.model.proto))
                loss, harm = self.judge.answers(made.model.proto, progress) if stage.lossy else (None, "")
                if not (harm and made.milder) or tries == _TRIES:
                    break
                milder |= made.milder
        except (DataError, UsageError):
            raise
        except OnnxPruneError as error:
            return Verdict(stage.name, False, _after(tries, error.cause), tries=tries), None
        sizes = pieces(best.proto)[0], pieces(made.model.proto)[0]
        why = _after(tries, "; ".join(filter(None, (harm or made.told, short))))
        verdict = Verdict(stage.name, not harm, why, size=sizes, drop=loss, tries=tries)
        if verdict.kept:
            told = counted(progress, "time")
            verdict = self.judge.pays(verdict, best.proto, made.model.proto, told, lossy=stage.lossy)
        return replace(verdict, again=again(settings, made)), made

    def _part(self) -> float | None:
        """Return the drop that one stage may add: an equal part for each that may lose."""
        lossy = sum(s.lossy and not e.skipped for s, e in zip(self.stages, self.expected, strict=True))
        return None if self.judge.allowed is None else self.judge.allowed / max(1, lossy)

    def _judged(self, reached: Reached, stopped: bool) -> ShrinkResult:
        """Measure the result against the file, once."""
        original, best, judge = self.original, reached.model, self.judge
        sizes = file_size(original) or pieces(original.proto)[0], pieces(best.proto)[0]
        counts = None
        if (p := self.parts) is not None:
            counts = len(p.training), len(p.choosing), len(p.judging)
        result = ShrinkResult(
            *(best, reached.verdicts, self.expected, sizes),
            metric="" if judge.measure is None else judge.measure.metric,
            allowed=judge.allowed,
            basis=judge.basis,
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
        speed, untimed = judge.speed(original.proto, best.proto, counted(self.progress, "time the result"))
        layers = self._layers(best.proto) if self.layers and speed is not None else ()
        evaluation, loss = judge.evaluation(best.proto, self.progress, examples=self.examples)
        result = replace(result, speed=speed, untimed=untimed, layers=layers, evaluation=evaluation, drop=loss)
        result = replace(result, also=tuple(self._elsewhere(other, best) for other in self.others))
        return replace(result, missed=self._missed(result))

    def _layers(self, model: ModelProto) -> tuple[LayerChange, ...]:
        """Return the layers of the file and of a model with their times; none if they can't be measured."""
        self.progress("time the layers", 0, None)
        how = SessionSettings(self.judge.provider, self.settings.threads)
        try:
            return layer_changes((self.original.proto, self.example, None), (model, self.example, None), how)[0]
        except OnnxPruneError as error:
            log.debug("no times of layers: %s", error)
            return ()

    def _elsewhere(self, other: Provider, best: Model) -> Elsewhere:
        """Run the result on another provider, on samples that chose nothing."""
        self.progress(f"run on {other.short}", 0, None)
        batches: Iterable[Feeds] = [self.example]
        if self.parts is not None:
            some = self.parts.judging.subset(np.arange(min(_COMPARED, len(self.parts.judging))))
            batches = calibration_batches(some, self.analysis.graph.proto)()
        how: dict[str, Any] = {"threads": self.settings.threads, "seed": self.settings.seed}
        return elsewhere(other, self.original.proto, best.proto, batches, self.example, **how)

    def _missed(self, result: ShrinkResult) -> tuple[str, ...]:
        """Return the limits that the result doesn't meet."""
        found = self.goals.missed(self.goals.costs(result.model.proto, result.speed, result.untimed))
        allowed = self.settings.max_drop
        if allowed is not None and result.drop is not None and result.drop.low > allowed:
            found.append(f"the drop is {result.drop.value:.2%} on new samples, and {allowed:.2%} was allowed")
        return tuple(found)


def again(settings: Settings, made: Made) -> dict[str, Any]:
    """Return the settings of a stage that make the same again, as recipes have them.

    Args:
        settings: those that it ran with.
        made: what it made.
    """
    found = {name: value for name, value in plain(settings).items() if name not in _COMMON} | dict(made.again)
    return {name: value for name, value in found.items() if value is not None}


def _unlabeled(data: Dataset) -> Dataset:
    return replace(data, recipe=replace(data.recipe, labels="none")) if isinstance(data, Data) else data


def _after(tries: int, why: str) -> str:
    """Say how often a stage was tried."""
    return why if tries == 1 else f"{why}; {tries} tries, each milder than the one before"
