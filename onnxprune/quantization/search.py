"""The search for the form of a model in fewer bits that pays: by measured error, size and time.

Each form is made in a few variants. Layers whose rounding costs more than the error allowed stay in float, and so do
layers that INT8 makes slower, if that makes the whole model faster. What is left is timed against the model, in turns.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import islice
from typing import Any

from onnx import ModelProto

from onnxprune.benchmarking.profile import profile
from onnxprune.benchmarking.session import Feeds, TimedSession
from onnxprune.benchmarking.settings import SessionSettings
from onnxprune.benchmarking.speed import speedups
from onnxprune.errors import ModelError, PlanError
from onnxprune.evaluation.intervals import Estimate
from onnxprune.model.file import load
from onnxprune.model.graph import behind
from onnxprune.model.stream import Batches, Inputs
from onnxprune.operators.contractions import contracts
from onnxprune.planning.budget import check_patterns
from onnxprune.progress import Progress, counted
from onnxprune.quantization.correction import correct
from onnxprune.quantization.disturbed import disturbed
from onnxprune.quantization.quantizers import WHOLE, calibrate, layers, prepare, refused, static
from onnxprune.runtime.provider import CPU, Provider
from onnxprune.sensitivity.outputs import OutputError
from onnxprune.settings.quantization import Calibration, Kind, QuantizeSettings
from onnxprune.trace.outputs import followed, unsquashed

log = logging.getLogger(__name__)

KINDS: tuple[Kind, ...] = ("static", "dynamic", "int8-weights", "int4-weights", "float16")
_CALIBRATIONS: tuple[Calibration, ...] = ("minmax", "percentile", "entropy")
_ALLOWED = 0.01  # relative squared error, where no input can be disturbed
_FEWER_BITS = 0.8  # of the error that weights of 7 bits must leave to be taken: they matter where sums overflow
_CORRECTION = 0.8  # likewise for weights and biases that make up for rounding
_CORRECTED = {"weights": "solved for"}
_AS_FAST = 0.97  # times as fast, from which on a smaller form isn't slower: runs of a model differ by as much
_SLOWER = 1.05  # of its time in float, from which a layer counts as slower
_CHANGED = 0.98  # of the model's bytes, above which a form changes nothing
_PROFILE = 0.5  # seconds

Make = Callable[[Collection[str]], ModelProto]


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """A form of the model, and what was measured of it.

    Attributes:
        kind: the kind of numbers.
        model: the model.
        size: its bytes.
        error: squared error of its outputs relative to their variance, see `OutputError`.
        kept: the layers that stay in float.
        about: details: the calibration, the bits of the weights, which operators.
        speedup: how many times as fast as the original; None if it wasn't timed.
        failure: why there is no such form; its model is then the original.
    """

    kind: Kind
    model: ModelProto
    size: int
    error: float
    kept: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)
    speedup: Estimate | None = None
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """The result of a search.

    Attributes:
        trials: what was tried.
        best: the trial that pays most; None if none does.
        allowed: the error allowed.
        why: what the error allowed comes from.
    """

    trials: tuple[Trial, ...]
    best: Trial | None
    allowed: float
    why: str


class Search:
    """A search for the best form of one model."""

    def __init__(
        self,
        original: ModelProto,
        cleaned: ModelProto,
        batches: Batches,
        held: Batches,
        example: Inputs,
        settings: QuantizeSettings,
        progress: Progress,
    ) -> None:
        """Prepare the model, and find out what error is allowed.

        Args:
            original: the model that forms are compared with.
            cleaned: a model that computes the same, from which they are made.
            batches: inputs to find ranges by.
            held: other inputs, to measure errors on.
            example: the inputs of one sample, to measure time on.
            settings: what to try.
            progress: called with phases and their parts.

        Raises:
            ModelError: ONNX Runtime can't run or prepare the model (OP122, OP128).
            DataError: the data can't be read.
            UsageError: no output varies with the inputs (OP604).
            PlanError: a pattern of layers to keep matches nothing (OP304).
        """
        self.original, self.batches, self.settings = original, batches, settings
        self._progress = progress
        progress("prepare", 0, None)
        self.prepared = prepare(cleaned)
        self.names = layers(self.prepared)
        # Nodes behind what is compared stay as they are: INT8 would round the small probabilities of a softmax to 0.
        compared = behind(unsquashed(self.prepared, followed(self.prepared).tensors), self.prepared.graph.node)
        names = {node.name for node in compared}
        after = (node.name for node in self.prepared.graph.node if node.name not in names)
        self.kept = tuple(dict.fromkeys((*after, *refused(self.prepared), *self._matching(settings.keep))))
        # What is measured is compared with the prepared model, whose tensors the forms keep the names of.
        self.error = OutputError(self.prepared, held)
        self._rough = OutputError(self.prepared, lambda: islice(held(), 1))
        self._example = dict(example)
        self.allowed, self.why = self._allowance()

    def run(self) -> Found:
        """Try the forms; return what was found."""
        if self.settings.form is not None:
            made = self._exactly(self.settings.form)
            return Found((made,), made if self._fits(made) else None, self.allowed, self.why)
        kinds = self.settings.kind or KINDS
        trials = list[Trial]()
        for number, kind in enumerate(kinds):
            self._progress(f"try forms: {kind}", number, len(kinds))
            trials += self._tried(kind)
        trials = self._timed(trials) if self.settings.timed else trials
        best = self._best(trials)
        return Found(tuple(trials), best, self.allowed, self.why)

    def _matching(self, patterns: Sequence[str]) -> tuple[str, ...]:
        names = [node.name for node in self.prepared.graph.node]
        check_patterns("keep", patterns, names)
        return tuple(name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns))

    def _allowance(self) -> tuple[float, str]:
        if self.settings.max_error is not None:
            return self.settings.max_error, "as asked for"
        moved = disturbed(self.prepared, self._example, self.settings.seed)
        if moved is not None:
            self._progress("measure what goes unnoticed", 0, None)
            error = self.error(moved)
            if 0 < error < float("inf"):
                return error, "what the original's own outputs change by when its inputs change by a hair"
        return _ALLOWED, "one percent of the variance, as the inputs can't be disturbed"

    def _trial(self, kind: Kind, make: Make, kept: Collection[str], **about: Any) -> Trial:
        try:
            model = load(make((*self.kept, *kept))).proto  # checks it, and puts its nodes in order
            error = self.error(model)
        except ModelError as refused:
            return Trial(
                kind,
                self.original,
                0,
                float("inf"),
                tuple(kept),
                about,
                failure=": ".join(filter(None, (refused.cause, refused.hint))),
            )
        failure = (
            None if model.ByteSize() < _CHANGED * self.original.ByteSize() else "no layer of the model has this form"
        )
        return Trial(kind, model, model.ByteSize(), error, (*self.kept, *kept), about, failure=failure)

    def _tried(self, kind: Kind) -> Iterator[Trial]:
        if kind == "static":
            yield from self._static()
            return

        def make(kept: Collection[str]) -> ModelProto:
            return WHOLE[kind](self.prepared, keep=kept)

        whole = self._trial(kind, make, ())
        yield whole if kind == "float16" else self._within(whole, make)

    def _exactly(self, form: Mapping[str, Any]) -> Trial:
        """Make a form as the metadata of a quantized model describes it."""
        about = {name: value for name, value in form.items() if name not in ("kind", "kept")}
        kind = form.get("kind")
        if kind not in KINDS or (kind == "static" and about.get("calibration") not in _CALIBRATIONS):
            raise PlanError("OP303", f"{dict(form)} describes no form that is known", where="form")
        self._progress(kind, 0, None)

        def make(kept: Collection[str]) -> ModelProto:
            if kind != "static":
                return WHOLE[kind](self.prepared, keep=kept)
            ranges = calibrate(self.prepared, self.batches(), about["calibration"])
            only = {"everything": False} if about.get("operators") == "layers" else {}
            how = {"reduced": about.get("bits") == 7, "corrected": "weights" in about, **only}
            return self._maker(ranges, **how)(kept)

        return self._trial(kind, make, [name for name in form.get("kept", ()) if name not in self.kept], **about)

    def _static(self) -> Iterator[Trial]:
        wanted = self.settings.calibration
        methods = _CALIBRATIONS if wanted == "auto" else (wanted,)
        tried: list[tuple[Trial, Any]] = []
        for number, method in enumerate(methods):
            self._progress("static: ranges", number, len(methods))
            try:
                ranges = calibrate(self.prepared, self.batches(), method)
            except ModelError as failure:
                yield Trial(
                    "static", self.original, 0, float("inf"), about={"calibration": method}, failure=failure.cause
                )
                continue
            tried.append((self._trial("static", self._maker(ranges), (), calibration=method, bits=8), ranges))
        if not tried:
            return
        best, ranges = min(tried, key=lambda pair: pair[0].error)
        method = best.about["calibration"]
        narrow, bits = best, self.settings.weight_bits
        if bits != 8:
            narrow = self._trial("static", self._maker(ranges, reduced=True), (), calibration=method, bits=7)
        reduced = bits == 7 or narrow.error < _FEWER_BITS * best.error
        best, how = narrow if reduced else best, {"reduced": reduced}
        plain = self._maker(ranges, **how)
        if best.failure is None and best.error > self.allowed:
            self._progress("static: solve for weights", 0, None)
            made = self._trial("static", self._maker(ranges, **how, corrected=True), (), **best.about, **_CORRECTED)
            if made.failure is None and made.error < _CORRECTION * best.error:
                best, how = made, {**how, "corrected": True}
        best = self._within(best, self._maker(ranges, **how), plain)
        yield best
        if best.failure is not None or best.error > self.allowed:
            return
        only = self._maker(ranges, **how, everything=False)
        yield self._trial("static", only, best.kept, **best.about, operators="layers")
        if self.settings.timed and (slower := self._slower(best)):
            yield self._trial("static", self._maker(ranges, **how), [*best.kept, *slower], **best.about)

    def _maker(self, ranges: Any, *, corrected: bool = False, **how: Any) -> Make:
        def make(kept: Collection[str]) -> ModelProto:
            model = static(self.prepared, ranges, keep=kept, **how)
            if corrected:
                model = load(model).proto  # puts its nodes in order
                correct(model, self.prepared, self.batches)
            return model

        return make

    def _within(self, whole: Trial, make: Make, plain: Make | None = None) -> Trial:
        """Keep as few layers in float as bring the error down to what is allowed, the worst first.

        Args:
            whole: the model with every layer in fewer bits.
            make: makes a model of the names of nodes that stay in float.
            plain: the same for ranking layers, which makes many; `make` by default.
        """
        if whole.failure is not None or whole.error <= self.allowed or len(self.names) < 2:
            return whole
        alone: dict[str, float] = {}
        for number, name in enumerate(self.names):
            self._progress(f"{whole.kind}: rank layers", number, len(self.names))
            try:
                model = (plain or make)([*self.kept, *(other for other in self.names if other != name)])
                alone[name] = self._rough(model)
            except ModelError:
                alone[name] = float("inf")
        ranked = sorted(alone, key=lambda name: -alone[name])

        def keeping(count: int) -> Trial:
            self._progress(f"{whole.kind}: keep layers in float", count, len(ranked))
            return self._trial(whole.kind, make, ranked[:count], **whole.about)

        low, high, best = 0, 1, whole
        while high < len(ranked) and (best := keeping(high)).error > self.allowed:
            low, high = high, 2 * high
        if high >= len(ranked):
            return whole
        while high - low > 1:
            middle = (low + high) // 2
            trial = keeping(middle)
            if trial.error <= self.allowed:
                best, high = trial, middle
            else:
                low = middle
        return best

    def _slower(self, trial: Trial) -> list[str]:
        """Return the layers that take longer than in float."""
        how = SessionSettings(Provider(CPU), threads=self.settings.threads)
        times: list[dict[int, float]] = []
        for model in (self.prepared, trial.model):
            self._progress("static: time layers", len(times), 2)
            kernels = profile(model, self._example, how, seconds=_PROFILE).by_layer()
            times.append({layer: sum(k.seconds for k in own) for layer, own in kernels.items() if layer})
        before, after = times
        names = {number: name for number, name in enumerate(_contractions(self.prepared), 1)}
        found = [names[n] for n in sorted(before.keys() & after.keys()) if after[n] > _SLOWER * before[n]]
        return [name for name in found if name not in trial.kept]

    def _fits(self, trial: Trial) -> bool:
        return trial.failure is None and trial.error <= self.allowed

    def _timed(self, trials: list[Trial]) -> list[Trial]:
        """Time the trials within the error allowed, in turns with the original."""
        fit = [i for i, t in enumerate(trials) if self._fits(t)]
        if not fit:
            return trials
        how = SessionSettings(Provider(CPU), threads=self.settings.threads)
        feeds: Feeds = self._example
        subjects = [TimedSession(m, feeds, how) for m in (self.original, *(trials[i].model for i in fit))]
        found = list(trials)
        for i, faster in zip(fit, speedups(subjects, progress=counted(self._progress, "time")), strict=True):
            found[i] = replace(trials[i], speedup=faster)
        return found

    def _best(self, trials: Sequence[Trial]) -> Trial | None:
        if not self.settings.timed:
            return min(filter(self._fits, trials), key=lambda t: t.size, default=None)
        fit = [t for t in trials if t.speedup is not None]
        if self.settings.objective == "latency":
            faster = [t for t in fit if t.speedup is not None and t.speedup.low > 1]
            return max(faster, key=lambda t: t.speedup.value if t.speedup else 0.0, default=None)
        size = self.original.ByteSize()
        smaller = [t for t in fit if t.speedup is not None and t.speedup.high >= _AS_FAST and t.size < size]
        return min(smaller, key=lambda t: t.size, default=None)


def _contractions(model: ModelProto) -> list[str]:
    return [node.name for node in model.graph.node if contracts(node)]
