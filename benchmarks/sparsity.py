"""Accuracy and compressed size of sparse models, without labels or gradients: ``python -m benchmarks.sparsity``.

What is measured is kept in the JSON file, so that an interrupted run goes on where it was.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import click
import numpy as np
import onnx
from onnx import ModelProto, numpy_helper

from benchmarks.common import DOCS, Column, Report, Table, log
from benchmarks.recovery_cases import SEED, SUBJECTS, Subject
from onnxprune.evaluation import evaluate
from onnxprune.recover.layers import find_layers
from onnxprune.report.layout import percent
from onnxprune.sensitivity import Curve
from onnxprune.settings.sparsity import Pattern, SparseMethod
from onnxprune.sparsity.budget import measure
from onnxprune.sparsity.network import candidates, sparsify
from onnxprune.sparsity.solve import Way
from onnxprune.trace.pruned_graph import PrunedGraph
from onnxprune.workflow.analysis import analyze
from onnxprune.workflow.inputs import calibration_batches

MODELS = ("cifar_resnet20_ts", "mlptiny_kws_dscnn", "cifar_resnet56_dynamo", "mobilenetv2_10_224_tf2_f32")
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

_NOTES = (
    "Weights are set to zero and the others solved for, from unlabeled inputs; accuracy is measured on other samples. "
    "*Zeros* are counted in the weights of convolutions and matrix products. *Alternating* is what `sparsify --data` "
    "does. It, *obs*, *wanda* and *magnitude* end in least squares for the weights that stay, layer by layer on the "
    "outputs of the sparse layers before; the budget of each layer follows from sensitivities. *obs, not solved* is "
    "the column by column update alone, as SparseGPT does, with these budgets. *Magnitude, no data* takes layer "
    "budgets by LAMP and changes no weight that stays. *All samples* are 512, the default of `sparsify`; *uniform* "
    "is its `--allocation uniform`.",
    "onnxsim's `apply_sparsegpt_pruning` and `apply_wanda_pruning` get the same inputs. They have no blocks.",
    "Intervals are 95 %. *Change* is against the dense model on the same samples, in points. *zlib* is the size of the "
    "file compressed at level 9, as a share of the dense file's bytes. Times are those of the processor, all threads "
    "together; sensitivities are measured once for each method and pattern, and their time is not in the table.",
)

Interval = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Result:
    """One model, made sparse in one way and judged.

    Attributes:
        model: the subject's name.
        point: the pattern and share of zeros.
        way: how.
        zeros: the share of zeros that it has.
        top1: accuracy in percent with its interval, by data set.
        change: the same minus the dense model's.
        agreement: percent of equal predictions, by data set.
        compressed: bytes of the file compressed by zlib, as a share of the dense file.
        seconds: processor time.
        failure: why it failed, if so.
    """

    model: str
    point: str
    way: str
    zeros: float
    top1: Mapping[str, Interval]
    change: Mapping[str, Interval]
    agreement: Mapping[str, float]
    compressed: float
    seconds: float
    failure: str = ""

    @property
    def key(self) -> str:
        """Its name."""
        return f"{self.model}/{self.point}/{self.way}"


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
        for name, data in self.judged.items():
            metrics = ("top1", "agreement")
            found = evaluate(model, data, against=self.analysis.original, metrics=metrics, resamples=1)
            for into, estimate in ((top1, found["top1"].model), (change, found["top1"].difference)):
                assert estimate is not None
                into[name] = (100 * estimate.value, 100 * estimate.low, 100 * estimate.high)
            agreement[name] = 100 * found["agreement"].model.value
        packed = len(zlib.compress(model.SerializeToString(), 9)) / self.subject.path.stat().st_size
        return Result(self.subject.name, point, way, zeros_of(model), top1, change, agreement, packed, seconds)


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


def report(results: Mapping[str, Result], settings: Mapping[str, Any]) -> Report:
    """Return the report: a table for each model and data set."""
    tables = []
    for model in MODELS:
        own = [results[key] for p in POINTS for w in _WAYS if (key := f"{model}/{p}/{w}") in results]
        done = [r for r in own if not r.failure]
        for data in dict.fromkeys(name for r in done for name in r.top1):
            dense = done[0].top1[data][0] - done[0].change[data][0]
            tables.append(Table.of(f"{model} on {data}, dense {dense:.1f} %", _columns(data), done))
    failed = [r for r in results.values() if r.failure]
    if failed:
        columns: list[Column[Result]] = [
            Column("case", lambda r: r.key, text=True),
            Column("error", lambda r: r.failure, text=True),
        ]
        tables.append(Table.of("What could not be done", columns, failed))
    title = "Sparse models, without labels or gradients"
    values = {"cases": [asdict(r) for r in results.values()]}
    return Report("sparsity", title, _NOTES, tables, settings, values)


def _columns(data: str) -> list[Column[Result]]:
    def spread(values: Callable[[Result], Mapping[str, Interval]], sign: str) -> Callable[[Result], str]:
        return lambda result: "{:{s}.1f} ({:{s}.1f} to {:{s}.1f})".format(*values(result)[data], s=sign)

    return [
        Column("zeros asked", lambda r: r.point, text=True),
        Column("way", lambda r: r.way, text=True),
        Column("zeros", lambda r: percent(r.zeros)),
        Column("top-1, %", spread(lambda r: r.top1, "")),
        Column("change, points", spread(lambda r: r.change, "+")),
        Column("agreement, %", lambda r: f"{r.agreement[data]:.1f}"),
        Column("zlib", lambda r: f"{r.compressed:.2f}"),
        Column("s", lambda r: f"{r.seconds:.0f}"),
    ]


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
    subjects = {s.name: s for s in SUBJECTS if s.path.exists()}
    known, start = read(output / "benchmarks" / "sparsity.json", settings), perf_counter()
    workshops: dict[str, Workshop] = {}
    for model, point, way in cases():
        key = f"{model}/{point}/{way}"
        late = perf_counter() - start > 60 * minutes
        if key in known or model not in subjects or late or not fnmatchcase(key, only):
            continue
        log.print(key, style="dim")
        if model not in workshops:
            workshops = {model: Workshop(subjects[model], limit, judged)}
        known[key] = workshops[model].run(point, way)
        report(known, settings).write(output)
    report(known, settings).publish(output, whole=True)


if __name__ == "__main__":
    main()
