"""Accuracy and compressed size of sparse models, without labels or gradients: ``python -m benchmarks.sparsity``.

What is measured is kept in the JSON file, so that an interrupted run goes on where it was.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

import click
import numpy as np
import onnx
from onnx import ModelProto, numpy_helper

from benchmarks.common import DOCS, Report, log
from benchmarks.packages import minilm_tokenizer, packaged_model, pooled
from benchmarks.recovery_cases import SEED, SUBJECTS, Calibration, Subject
from benchmarks.samples import sentences
from benchmarks.sparsity_tables import Interval, Result, report
from onnxprune.data import Dataset, open_data, read_recipe, split
from onnxprune.evaluation import evaluate
from onnxprune.evaluation.intervals import Estimate
from onnxprune.recover.layers import find_layers
from onnxprune.sensitivity import Curve
from onnxprune.settings.sparsity import Pattern, SparseMethod
from onnxprune.sparsity.budget import measure
from onnxprune.sparsity.network import candidates, sparsify
from onnxprune.sparsity.solve import Way
from onnxprune.trace.pruned_graph import PrunedGraph
from onnxprune.workflow.analysis import TracedModel, analyze
from onnxprune.workflow.inputs import calibration_batches

ENCODER = "all_minilm_l6_v2"
MODELS = ("cifar_resnet20_ts", "mlptiny_kws_dscnn", "cifar_resnet56_dynamo", "mobilenetv2_10_224_tf2_f32", ENCODER)
POINTS = ("50%", "70%", "80%", "90%", "2:4", "4:8", "block-1x2 75%")
OURS: Mapping[str, tuple[SparseMethod, bool]] = {
    "alternating": ("alternating", True),
    "obs": ("obs", True),
    "wanda": ("wanda", True),
    "magnitude": ("magnitude", True),
    "obs, not solved": ("obs", False),
}
PEERS = {"onnxsim SparseGPT": "apply_sparsegpt_pruning", "onnxsim Wanda": "apply_wanda_pruning"}
WITHOUT = "magnitude, no data"
MORE = "alternating, all samples"
UNIFORM = "alternating, all samples, uniform"
_WAYS = ("alternating", MORE, UNIFORM, *list(OURS)[1:], WITHOUT, *PEERS)
_EVERY = "cifar_resnet20_ts"  # the model for which every way is measured at every point


@dataclass(frozen=True, slots=True)
class Encoder(Subject):
    """A sentence encoder with English sentences, in a folder."""

    folder: Path = Path()

    @classmethod
    def written(cls, folder: Path) -> Encoder | None:
        """Write the encoder, its tokenizer and sentences to a folder; None if its package isn't installed."""
        model = packaged_model(ENCODER)
        if model is None:
            return None
        onnx.save(pooled(model), folder / f"{ENCODER}.onnx")
        return cls(ENCODER, sentences(folder / "sentences.txt", 1200).name, 512, recipe="length=64", folder=folder)

    @property
    def path(self) -> Path:
        """Where the model is."""
        return self.folder / f"{self.name}.onnx"

    def data(self, analysis: TracedModel) -> tuple[Mapping[Calibration, Dataset], Mapping[str, Dataset]]:
        """Return sentences to calibrate on, and others."""
        text, tokenizer = self.folder / self.calibration, minilm_tokenizer(self.folder)
        whole = open_data(text, analysis.graph.proto, recipe=read_recipe(self.recipe), tokenizer=tokenizer, seed=SEED)
        own, rest = split(whole, len(whole) - self.limit, seed=SEED)
        return {"own": own}, {"sentences": rest}


class Workshop:
    """A model with its data and the sensitivities of its layers."""

    def __init__(self, subject: Subject, limit: int, judged: int) -> None:
        self.subject, self.analysis = subject, analyze(subject.path)
        calibration, sets = subject.data(self.analysis)
        own = calibration["own"]
        self.every = calibration_batches(own, self.analysis.graph.proto)
        if len(own) > limit:
            own = own.subset(np.sort(np.random.default_rng(SEED).permutation(len(own))[:limit]))
        self.batches = calibration_batches(own, self.analysis.graph.proto)
        self.judged = {name: data.subset(range(min(judged, len(data)))) for name, data in sets.items()}
        self.whole = PrunedGraph(self.analysis.graph)
        self._curves = cache(self._measure)

    def run(self, point: str, way: str) -> Result:
        """Make the model sparse and judge it."""
        pattern, share = read_point(point)
        if way == WITHOUT:
            start = process_time()
            model = sparsify(self.whole, Way("magnitude", pattern, False), share, None).proto
        elif way in OURS or way in (MORE, UNIFORM):
            method, solved = OURS.get(way, ("alternating", True))
            how, uniform = Way(method, pattern, solved), way == UNIFORM
            curves = None if pattern.of or uniform else self._curves(method, pattern)
            batches, start = self.batches if way in OURS else self.every, process_time()
            model = sparsify(self.whole, how, share, batches, uniform=uniform, curves=curves, seed=SEED).proto
        else:
            start = process_time()
            try:
                model = self._peer(PEERS[way], pattern, share)
            except Exception as error:  # a tool may raise anything
                cause = (str(error).splitlines() or [type(error).__name__])[0][:120]
                return Result(self.subject.name, point, way, 0, {}, {}, {}, 0, process_time() - start, cause)
        return self._judge(point, way, model, process_time() - start)

    def _peer(self, name: str, pattern: Pattern, share: float) -> ModelProto:
        import onnxsim

        how: dict[str, Any] = {"n": pattern.keep, "m": pattern.of} if pattern.of else {"sparsity": share}
        inputs = [dict(batch) for batch in self.batches()]
        found: ModelProto = getattr(onnxsim, name)(onnx.load(self.subject.path), calibration_data=inputs, **how)
        return found

    def _measure(self, method: SparseMethod, pattern: Pattern) -> list[Curve]:
        graph, way = self.analysis.graph, Way(method, pattern, True)
        return measure(graph, candidates(graph, graph.proto, way)[0], self.batches, way, seed=SEED)

    def _judge(self, point: str, way: str, model: ModelProto, seconds: float) -> Result:
        top1, change, agreement = dict[str, Interval](), dict[str, Interval](), dict[str, float]()
        cosine = dict[str, Interval]()
        for name, data in self.judged.items():
            if self.subject.name == ENCODER:
                found = evaluate(model, data, against=self.analysis.original, metrics=("cosine",))
                cosine[name] = _interval(found["cosine"].model)
                continue
            metrics = ("top1", "agreement")
            found = evaluate(model, data, against=self.analysis.original, metrics=metrics, resamples=1)
            for into, estimate in ((top1, found["top1"].model), (change, found["top1"].difference)):
                assert estimate is not None
                into[name] = _interval(estimate, 100)
            agreement[name] = 100 * found["agreement"].model.value
        packed = len(zlib.compress(model.SerializeToString(), 9)) / self.subject.path.stat().st_size
        named, quality = (self.subject.name, point, way), (top1, change, agreement)
        return Result(*named, zeros_of(model), *quality, packed, seconds, cosine=cosine)


def _interval(estimate: Estimate, scale: float = 1) -> Interval:
    return scale * estimate.value, scale * estimate.low, scale * estimate.high


def read_point(point: str) -> tuple[Pattern, float]:
    """Return the pattern and share of zeros of a point, such as 80 %, 2:4 or block-1x2 75 %."""
    *words, last = point.split()
    if ":" in last:
        return Pattern.read(last), 0.5
    return Pattern.read(words[0] if words else "unstructured"), float(last.rstrip("%")) / 100


def zeros_of(model: ModelProto) -> float:
    """Return the share of zeros in the weights of convolutions and matrix products."""
    stored = {t.name: t for t in model.graph.initializer}
    arrays = [numpy_helper.to_array(stored[layer.weight]) for layer in find_layers(analyze(model).graph.proto)]
    return 1 - sum(int(np.count_nonzero(a)) for a in arrays) / sum(a.size for a in arrays)


def cases() -> list[tuple[str, str, str]]:
    """Return what to measure: the default and the best peer everywhere first, then the other ways."""
    main = ["alternating", "onnxsim SparseGPT"]
    first = [(m, p, w) for m in MODELS for p in POINTS for w in main]
    first += [(m, p, w) for m in MODELS[:3] for p in ("80%", "90%") for w in (MORE, UNIFORM)]
    rest = [(m, p, w) for m in MODELS for w in _WAYS for p in (POINTS if m == _EVERY else ("80%", "2:4"))]
    senseless = [*((peer, "block") for peer in PEERS), (MORE, ":"), (UNIFORM, ":")]
    return [c for c in dict.fromkeys([*first, *rest]) if not any(c[2] == w and form in c[1] for w, form in senseless)]


def report_of(results: Mapping[str, Result], settings: Mapping[str, Any]) -> Report:
    """Return the report of what is known, in the order of models, points and ways."""
    keys = ("/".join(key) for key in product(MODELS, POINTS, _WAYS))
    return report([results[key] for key in keys if key in results], settings)


def read(path: Path, settings: Mapping[str, Any]) -> dict[str, Result]:
    """Read earlier results with the same settings."""
    if not path.exists():
        return {}
    document = json.loads(path.read_text(encoding="utf-8"))
    if {k: document["settings"].get(k) for k in settings} != dict(settings):
        log.print(f"{path} was measured with other settings: starting over")
        return {}
    return {r.key: r for r in (Result(**entry) for entry in document["results"]["cases"])}


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=DOCS, help="Folder to write to: docs.")
@click.option("--only", default="*", metavar="PATTERN", help="Measure cases that match MODEL/POINT/WAY.")
@click.option("--limit", type=click.IntRange(2), default=256, show_default=True, help="Samples to calibrate on.")
@click.option("--judged", type=click.IntRange(1), default=1000, show_default=True, help="Most samples of a test set.")
@click.option("--minutes", type=float, default=float("inf"), help="Start no case after this many minutes.")
def main(output: Path, only: str, limit: int, judged: int, minutes: float) -> None:
    """Measure what earlier runs haven't, print and write."""
    settings = {"seed": SEED, "limit": limit, "judged": judged, "clock": "cpu"}
    known, start = read(output / "benchmarks" / "sparsity.json", settings), perf_counter()
    todo = [c for c in cases() if "/".join(c) not in known and fnmatchcase("/".join(c), only)]
    with TemporaryDirectory() as folder:
        subjects = {s.name: s for s in SUBJECTS if s.path.exists()}
        if any(model == ENCODER for model, *_ in todo) and (encoder := Encoder.written(Path(folder))):
            subjects[ENCODER] = encoder
        workshops: dict[str, Workshop] = {}
        for model, point, way in todo:
            if model not in subjects or perf_counter() - start > 60 * minutes:
                continue
            key = f"{model}/{point}/{way}"
            log.print(key, style="dim")
            if model not in workshops:
                workshops = {model: Workshop(subjects[model], limit, judged)}
            known[key] = workshops[model].run(point, way)
            report_of(known, settings).write(output)
    report_of(known, settings).publish(output, whole=True)


if __name__ == "__main__":
    main()
