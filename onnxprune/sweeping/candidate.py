"""From a recipe to a model and what is measured of it: one trial of a sweep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from onnxprune.benchmarking.speed import Speed
from onnxprune.cost.cost import cost
from onnxprune.errors import VerificationError
from onnxprune.evaluation import Estimate, Evaluation
from onnxprune.model.file import Model, file_size, load
from onnxprune.model.session import with_threads
from onnxprune.model.wire import pieces
from onnxprune.progress import Progress, silent, within
from onnxprune.quantization.search import KINDS
from onnxprune.resolution.resize import text
from onnxprune.runtime.library import custom_ops
from onnxprune.runtime.provider import parse_provider
from onnxprune.sensitivity import Curve, drop
from onnxprune.settings import ShrinkSettings
from onnxprune.settings.planning import Target, parse_size
from onnxprune.settings.pruning import LIMIT
from onnxprune.sweeping.space import (
    CHANNELS,
    ERROR,
    FORM,
    NONE,
    RESOLUTION,
    WHOLE,
    Choice,
    Space,
    possible,
    space_of,
)
from onnxprune.trace.pruned_graph import PrunedGraph
from onnxprune.workflow.analysis import analyze, at_resolution
from onnxprune.workflow.goals import Costs, Goals
from onnxprune.workflow.inputs import calibration_batches, open_samples
from onnxprune.workflow.pipeline import Pipeline, again
from onnxprune.workflow.planning import sensitivities, settled
from onnxprune.workflow.prune_model import PruneResult
from onnxprune.workflow.resolution import Sizes, alike, sizes_of, sizes_to_try
from onnxprune.workflow.stages import STAGES, Task
from onnxprune.workflow.verdicts import ShrinkResult, Verdict, sign

_EVERYTHING = Target("macs", 1.0)  # no limit: what a recipe loses is measured, not judged
_RESOLUTIONS = 4
_PRUNE, _QUANTIZE = (next(stage for stage in STAGES if stage.name == name) for name in ("prune", "quantize"))


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A model that a recipe gave.

    Attributes:
        model: the model.
        settings: the recipe as the settings of `shrink` have it.
        result: which stages it went through, with what makes each again.
        costs: its costs: macs, params, memory (peak of activations, bytes), size (bytes of the file).
        proved: whether the pruning is proved; None if nothing was pruned.
    """

    model: Model
    settings: ShrinkSettings
    result: ShrinkResult
    costs: Mapping[str, float]
    proved: bool | None

    @property
    def told(self) -> str:
        """What was done, in words."""
        return "; ".join(verdict.why for verdict in self.result.verdicts) or "the file"


@contextmanager
def bench(
    model: Path, settings: ShrinkSettings, curves: Sequence[Curve] = (), progress: Progress = silent
) -> Iterator[Bench]:
    """Yield a model and its data, on which recipes can be tried.

    Args:
        model: the file.
        settings: the data, and what all recipes have in common.
        curves: sensitivities measured before.
        progress: called with phases and their parts.

    Raises:
        OnnxPruneError: see `onnxprune.shrink`.
    """
    with custom_ops(*settings.running.custom_ops), with_threads(settings.threads):
        yield Bench(model, settings, curves, progress)


class Bench:
    """A model and its data, opened once.

    Attributes:
        pipeline: the stages of the model, with its samples.
        curves: the sensitivities that channels are chosen by.
        costs: what the file costs, see `Candidate`.
    """

    def __init__(self, model: Path, settings: ShrinkSettings, curves: Sequence[Curve], progress: Progress) -> None:
        """Open a model and its data; see `bench`."""
        self._common = replace(settings, stages=("prune", "quantize"), timed=False, target=_EVERYTHING)
        self.pipeline, self.curves = Pipeline(load(model), self._common, progress), tuple(curves)
        self.pipeline.judge.prepare(progress)
        self._counted = self._count(self.original)
        self.costs = self._costs(self.original, self._counted)
        self._macs = cache(self._macs_at)

    @property
    def original(self) -> Model:
        """The file."""
        return self.pipeline.original

    @property
    def metric(self) -> str:
        """The metric that drops are measured in."""
        assert self.pipeline.judge.measure is not None
        return self.pipeline.judge.measure.metric

    def explore(self, progress: Progress, *, forms: bool = True) -> Space:
        """Return what can be tried on the model, after measuring its sensitivities.

        Args:
            progress: called with phases and their parts.
            forms: whether forms in fewer bits are tried, too.
        """
        analysis = self.pipeline.analysis
        if analysis.graph.groups:
            self.curves = tuple(self._sensitivities(progress))
        sizes = self._resolutions()
        some = sizes[:: max(1, -(-len(sizes) // _RESOLUTIONS))]

        def make(kind: str) -> None:
            self.make({FORM: kind}, within(progress, f"try {kind}"))

        kinds = self.pipeline.own.of(_QUANTIZE).kind or KINDS  # those of the effort
        return space_of(
            analysis, [text(next(iter(own.values()))) for own in some], possible(kinds if forms else (), make)
        )

    def _sensitivities(self, progress: Progress) -> Sequence[Curve]:
        """Measure the sensitivities as the stage that prunes would."""
        settings = self.pipeline.own.of(_PRUNE, None, [_EVERYTHING])
        samples, planning = settings.calibration, settled(settings.planning, data=True)
        analysis = analyze(self.original, data=samples, in_batches=True)
        opened = open_samples(samples, analysis.graph, near=self.original.path, seed=planning.seed, limit=LIMIT)
        return sensitivities(analysis, planning, calibration_batches(opened, analysis.graph.proto), progress=progress)

    def _resolutions(self) -> list[Sizes]:
        """Return smaller sizes of images that leave the groups of channels as they are, the largest first."""
        analysis, parts = self.pipeline.analysis, self.pipeline.parts
        assert parts is not None
        planning = settled(self.pipeline.own.of(_PRUNE, None, [_EVERYTHING]).planning, data=True)
        batches = calibration_batches(parts.training, analysis.original)
        found = sizes_to_try(analysis, planning, batches, parts.training)
        return [sizes for sizes in found if alike(at_resolution(analysis, sizes), analysis)]

    def _macs_at(self, size: str) -> int:
        sizes = sizes_of(self.pipeline.analysis, parse_size(size))
        return cost(PrunedGraph(at_resolution(self.pipeline.analysis, sizes).graph)).macs

    def settings_of(self, choice: Choice) -> ShrinkSettings:
        """Return a recipe as the settings of `shrink` have it."""
        share, size = choice.get(CHANNELS, 100) / 100, choice.get(RESOLUTION, WHOLE)
        where: dict[str, Any] = {"axes": ("channels",)}
        if size != WHOLE:
            share *= self._macs(size) / max(self.pipeline.analysis.cost.macs, 1)
            share, where = min(1.0, share * (1 + 1e-5)), {"resolution": size}
        options = {name: dict(own) for name, own in self._common.options.items()}
        stages = list[Any]()
        if share < 1 or size != WHOLE:
            stages.append("prune")
            options["prune"] = {**options.get("prune", {}), **where, "sensitivity": self.curves or None}
        if (form := choice.get(FORM, NONE)) != NONE:
            stages.append("quantize")
            own = {"kind": (form,), "max_error": float(choice.get(ERROR, 1.0))}
            options["quantize"] = {**options.get("quantize", {}), **own}
        return replace(self._common, stages=tuple(stages), target=Target("macs", share), options=options)

    def make(self, choice: Choice, progress: Progress = silent) -> Candidate:
        """Make the model of a recipe, and prove it as far as it is pruned.

        Raises:
            OnnxPruneError: there is no such model: the channels can't be removed (OP301), no form of numbers is within
                the error (OP507), or what `prune_model` and `quantize` raise.
        """
        settings = self.settings_of(choice)
        own, targets = (
            replace(self.pipeline.own, shrink=settings),
            self._goals(settings.targets).left(self._counted, {}),
        )
        model, verdicts, proved = self.original, list[Verdict](), None
        for stage in (stage for stage in STAGES if stage.name in settings.stages):
            given = own.of(stage, None, targets or [_EVERYTHING])
            made = stage.run(Task(model, given, within(progress, stage.name)))
            model = load(made.model.proto)
            verdicts.append(Verdict(stage.name, True, made.told, again=again(given, made)))
            if isinstance(made.found, PruneResult):
                proof = made.found.pruned.verification
                proved = proof is not None and proof.passed and not proof.unproved
        sizes = int(self.costs["size"]), pieces(model.proto)[0]
        result = ShrinkResult(model, tuple(verdicts), (), sizes, notes=self.pipeline.notes)
        if verdicts:
            sign(model.proto, result)
        model = replace(load(model.proto), path=None, external=self.original.external)  # its digest is that of its copy
        result = replace(result, model=model)
        return Candidate(model, settings, result, self._costs(model, self._count(model)), proved)

    def loss(self, candidate: Candidate, limit: float, progress: Progress = silent) -> tuple[Estimate, int]:
        """Return the drop in accuracy on samples that choose, and their number: few if it surely is above a limit.

        Raises:
            VerificationError: outputs aren't finite (OP507).
        """
        measure = self.pipeline.judge.measure
        assert measure is not None
        measure.max_drop = limit
        found = measure(candidate.model.proto, within(progress, "judge"))
        if found.not_finite:
            raise VerificationError("OP507", "it gives outputs that aren't finite")
        return drop(found, measure.metric), found.samples

    def judged(self, candidate: Candidate, progress: Progress = silent) -> tuple[Evaluation | None, Estimate | None]:
        """Return the evaluation of a model on samples that chose nothing, and its drop there."""
        return self.pipeline.judge.evaluation(candidate.model.proto, progress)

    def speed(self, model: Model, provider: str) -> tuple[Speed | None, str]:
        """Time a model against the file on an execution provider; return why not if that can't be done.

        Raises:
            UsageError: there is no such provider (OP608).
        """
        judge = self.pipeline.judge
        judge.provider, judge.here = parse_provider(provider), True
        return judge.speed(self.original.proto, model.proto)

    def _goals(self, targets: Sequence[Target]) -> Goals:
        samples = self.pipeline.settings.samples
        return Goals(targets, self.pipeline.analysis, samples, lambda _: (None, "not timed here"))

    def _count(self, model: Model) -> Costs:
        return self._goals([_EVERYTHING]).costs(model.proto)

    def _costs(self, model: Model, counted: Costs) -> dict[str, float]:
        size = file_size(model) or pieces(model.proto)[0]
        return {
            **{name: counted.own[name] for name in ("macs", "params", "memory") if name in counted.own},
            "size": size,
        }
