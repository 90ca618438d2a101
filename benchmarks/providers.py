"""Other execution providers: how much pruning saves there, whether their plans differ from the CPU's, and training.

``python -m benchmarks.providers cuda``, in an environment whose ONNX Runtime has the provider. Results are written as
they come, so that a run that is cut short leaves a page. Networks that come first matter most.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import monotonic, perf_counter

import click
import numpy as np
import onnx
from onnx import ModelProto

from benchmarks.common import ROOT, Column, Report, Table, chosen, log, milliseconds, options
from benchmarks.turns import turns
from models.fill import fill
from onnxprune import Target, TracedModel, analyze
from onnxprune.benchmarking import Provider, benchmark, parse_provider
from onnxprune.benchmarking.rounds import ratio
from onnxprune.errors import OnnxPruneError, PlanError
from onnxprune.evaluation.intervals import Estimate
from onnxprune.importance import score
from onnxprune.latency import LatencyResult, Options, plan_for_latency
from onnxprune.model.file import load
from onnxprune.planning.budget import choose
from onnxprune.report.layout import percent
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.runtime.provider import CPU
from onnxprune.settings.benchmarking import BenchmarkSettings
from onnxprune.settings.planning import Constraints
from onnxprune.shapes import generate_inputs
from onnxprune.shapes.batch import free_batch
from onnxprune.trace.pruned_graph import PrunedGraph

SHARE = 0.5
_FOLDER = ROOT.parent / "shared" / "models" / "architectures"
_NETWORKS = (
    *("resnet50_ts", "mobilenetv2_ts", "efficientnet_b0_dynamo", "densenet121_ts", "vit_small_ts", "yolo_like_ts"),
)
_ROUNDS, _SECONDS, _WARM_UP = 15, 0.2, 3.0
_STEPS = 10  # of training, in turns

NOTES = (
    "Networks with random weights, dense and pruned uniformly to half their MACs, on {provider}{device}: with float32 "
    "and with float16 weights{tf32}, at several batch sizes. Inputs and outputs are bound to the device's memory; "
    "*copies* is the time to copy them there and back. *Speed-up* is that of pruning, with its 95 % interval.",
    "Then `--target latency=0.5` for {provider} and for ONNX Runtime's CPU provider, at a batch of {planned}: the "
    "share of the original's time that each plan takes on each of the two, measured once both plans were made, and "
    "what the planner predicted. *Shared* is the share of the units removed by either plan that both remove.",
    "Then a training step (forward, cross-entropy, backward, AdamW; 64 images of 3x32x32): the native training graph "
    "on {provider}, and torch, medians of {steps} steps in turns.",
)


@dataclass(frozen=True, slots=True)
class Timing:
    """A network at one type and batch size: seconds dense and pruned, of copies, and the speed-up."""

    network: str
    weights: str
    batch: int
    dense: float
    pruned: float
    copies: float | None
    speedup: Estimate


@dataclass(frozen=True, slots=True)
class Plans:
    """Plans for half the latency on the provider and on the CPU, each measured on both; None if out of reach.

    Attributes:
        network: its name.
        there: share of the time on the provider, with its own plan and with the plan for the CPU.
        here: the same on the CPU.
        predicted: the share that the plan for the provider was predicted to take there.
        shared: share of all removed units that both plans remove.
    """

    network: str
    there: tuple[float | None, float | None]
    here: tuple[float | None, float | None]
    predicted: float | None
    shared: float | None


@dataclass(frozen=True, slots=True)
class Training:
    """A trainer on a network: the loss of the first step, and seconds of a step."""

    network: str
    trainer: str
    loss: float
    seconds: float


@dataclass(slots=True)
class Findings:
    """All that was measured so far."""

    timings: list[Timing] = field(default_factory=list)
    plans: list[Plans] = field(default_factory=list)
    training: list[Training] = field(default_factory=list)


def timings(
    name: str, analysis: TracedModel, provider: Provider, batches: Sequence[int], threads: int
) -> Iterator[Timing]:
    """Time a network dense and pruned, with weights of both types, and with TensorFloat-32 where there is CUDA."""
    graph = analysis.graph
    removed = choose(graph, score(graph, "l2"), Constraints(), target=Target("macs", SHARE))
    pair = {"dense": graph.proto, "pruned": rewrite(PrunedGraph(graph, removed))}
    first = graph.proto.graph.input[0].type.tensor_type.shape.dim[0]
    sizes: tuple[int | None, ...] = tuple(batches) if first.dim_param else (None,)  # exported for one size
    exact = provider.with_option("use_tf32", "0") if provider.short == "cuda" else provider
    kinds = {"float32": (exact, pair)}
    if provider.short == "cuda":
        kinds["TF32"] = provider.with_option("use_tf32", "1"), pair
    kinds["float16"] = exact, {k: _halved(proto) for k, proto in pair.items()}
    for weights, (place, models) in kinds.items():
        log.print(f"{name}: {weights}", style="dim")
        settings = BenchmarkSettings(
            providers=(place,), batches=sizes, threads=threads, seconds=_SECONDS, warm_up=_WARM_UP
        )
        for case in benchmark({k: load(proto) for k, proto in models.items()}, settings).cases:
            dense, pruned = case.results
            assert pruned.speedup is not None
            times = dense.latency.median, pruned.latency.median
            copies = None if dense.copies is None else sum(dense.copies)
            yield Timing(name, weights, case.batch, *times, copies, pruned.speedup)


def plans(name: str, analysis: TracedModel, provider: Provider, threads: int) -> Plans:
    """Plan for half the latency on the provider and on the CPU, and measure each plan on both."""
    graph = analysis.graph
    inputs = generate_inputs(graph.proto, graph.shapes.inputs)
    places = provider, Provider(CPU)
    made: list[LatencyResult | None] = []
    for place in places:
        log.print(f"{name}: plan for {place.short}", style="dim")
        try:
            where = Options(place, threads=threads)
            made.append(plan_for_latency(graph, score(graph, "l2"), Constraints(), Target("latency", SHARE), where))
        except PlanError as error:
            log.print(f"{name}: {error.cause}; {error.hint}")
            made.append(None)
    networks = {str(i): rewrite(PrunedGraph(graph, f.removed)) for i, f in enumerate(made) if f is not None}
    shares: list[tuple[float | None, float | None]] = []
    for place in places:
        models = {"dense": graph.proto, **networks}
        runs = turns(models, inputs, rounds=_ROUNDS, threads=threads, seconds=_SECONDS, provider=place)
        own = {key: ratio(runs[key], runs["dense"]).value for key in networks}
        shares.append((own.get("0"), own.get("1")))
    shared = None
    if made[0] is not None and made[1] is not None:
        first, second = made[0].removed, made[1].removed
        shared = float(np.sum(first & second) / np.sum(first | second))
    return Plans(name, shares[0], shares[1], None if made[0] is None else made[0].predicted, shared)


def training(name: str, provider: Provider, threads: int) -> list[Training]:
    """Time training steps in turns; torch on the CPU, and on CUDA where it can be had."""
    import torch

    from benchmarks.small_networks import build, export
    from benchmarks.trainers import draw_batch, eager, native
    from onnxprune.normalize import normalize

    batch, module = draw_batch(64), build(name)
    model = normalize(export(module))
    steps: dict[str, Callable[[], tuple[float, float]]] = {
        f"onnxprune, {provider.short}": native(model, batch, threads, provider),
        "torch, cpu": eager(build(name), batch, threads),
    }
    if torch.cuda.is_available():
        steps["torch, cuda"] = eager(build(name), batch, threads, "cuda")
    losses = {trainer: step()[0] for trainer, step in steps.items()}
    times: Mapping[str, list[float]] = {trainer: [] for trainer in steps}
    for _ in range(_STEPS):
        for trainer, step in steps.items():
            start = perf_counter()
            step()
            times[trainer].append(perf_counter() - start)
    return [Training(name, trainer, losses[trainer], median(found)) for trainer, found in times.items()]


def _halved(proto: ModelProto) -> ModelProto:
    """Return a model with float16 weights and unchanged inputs and outputs."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    copy = ModelProto()
    copy.CopyFrom(proto)
    halved: ModelProto = convert_float_to_float16(copy, keep_io_types=True)
    return halved


def _share(value: float | None) -> str:
    return "out of reach" if value is None else percent(value)


TIMINGS: Sequence[Column[Timing]] = (
    Column("network", lambda t: t.network, text=True),
    Column("arithmetic", lambda t: t.weights, text=True),
    Column("batch", lambda t: str(t.batch)),
    Column("dense, ms", lambda t: milliseconds(t.dense)),
    Column("pruned, ms", lambda t: milliseconds(t.pruned)),
    Column("copies, ms", lambda t: "-" if t.copies is None else milliseconds(t.copies)),
    Column("speed-up", lambda t: f"{t.speedup.value:.2f}x ({t.speedup.low:.2f} to {t.speedup.high:.2f})"),
)
TRAINING: Sequence[Column[Training]] = (
    Column("network", lambda t: t.network, text=True),
    Column("trainer", lambda t: t.trainer, text=True),
    Column("first loss", lambda t: f"{t.loss:.4f}"),
    Column("step, ms", lambda t: milliseconds(t.seconds)),
)


def _plan_columns(provider: str) -> Sequence[Column[Plans]]:
    return (
        Column("network", lambda p: p.network, text=True),
        Column(f"plan for {provider}, on {provider}", lambda p: _share(p.there[0])),
        Column("predicted", lambda p: "-" if p.predicted is None else percent(p.predicted)),
        Column("on cpu", lambda p: _share(p.here[0])),
        Column("plan for cpu, on cpu", lambda p: _share(p.here[1])),
        Column(f"on {provider}", lambda p: _share(p.there[1])),
        Column("shared", lambda p: "-" if p.shared is None else percent(p.shared)),
    )


def device_of(provider: Provider) -> str:
    """Return the name of a provider's device, after a comma; nothing where nobody can be asked."""
    if provider.device != "cuda":
        return ""
    asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader", "-i", str(provider.device_id)]
    try:
        return f", {subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()}"
    except (OSError, subprocess.CalledProcessError):
        return ""


def report(found: Findings, provider: Provider, batches: Sequence[int], planned: int, threads: int) -> Report:
    """Return the page of what was found so far."""
    words = {
        "provider": provider.short,
        "device": device_of(provider),
        "tf32": ", and with TensorFloat-32 products" if provider.short == "cuda" else "",
        "planned": planned,
        "steps": _STEPS,
    }
    return Report(
        name="providers",
        title=f"Pruned for {provider.short}",
        notes=[note.format(**words) for note in NOTES],
        tables=[
            Table.of("at half the MACs", TIMINGS, found.timings),
            Table.of("at half the latency", _plan_columns(provider.short), found.plans),
            Table.of("a training step", TRAINING, found.training),
        ],
        settings={"clock": "wall", "provider": provider.name, "threads": threads, "batches": batches},
        results={"timings": found.timings, "plans": found.plans, "training": found.training},
        page="benchmarks/gpu.md" if provider.short == "cuda" else "",
        suffix=f"_{provider.short}",
    )


@click.command(help=__doc__)
@click.argument("provider")
@click.option("--batch", "batches", type=int, multiple=True, default=(1, 8, 64), show_default=True)
@click.option("--planned", default=8, show_default=True, help="Batch size of the plans for half the latency.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads within an operator.")
@click.option("--minutes", default=8.0, show_default=True, help="Start nothing new after this time.")
@options
def main(
    provider: str,
    batches: tuple[int, ...],
    planned: int,
    threads: int,
    minutes: float,
    repeats: int,
    clock: str,
    only: str,
    output: Path,
) -> None:
    """Measure, write as results come, and print."""
    place, found, started = parse_provider(provider), Findings(), monotonic()
    names = chosen(_NETWORKS, only)
    whole = len(names) == len(_NETWORKS)

    def one(name: str) -> Iterator[None]:
        model = fill(onnx.load(_FOLDER / f"{name}.onnx"))
        model = free_batch(model) or model
        for timing in timings(name, analyze(model), place, batches, threads):
            found.timings.append(timing)
            yield
        first = model.graph.input[0].type.tensor_type.shape
        size = planned if first.dim[0].dim_param else first.dim[0].dim_value
        shape = (size, *(d.dim_value for d in first.dim[1:]))
        found.plans.append(plans(name, analyze(model, {model.graph.input[0].name: shape}), place, threads))
        yield

    def trained() -> Iterator[None]:
        for name in ("resnet18", "mobilenet_v2"):
            found.training.extend(training(name, place, threads))
            yield

    parts = [one(names[0]), trained(), *map(one, names[1:])]
    for part in parts:
        try:
            for _ in part:
                if whole:
                    report(found, place, batches, planned, threads).write(output)
                if monotonic() - started > 60 * minutes:
                    break
        except (ImportError, OnnxPruneError, RuntimeError) as error:  # the other parts may still be measured
            log.print(f"{type(error).__name__}: {error}", style="red")
        if monotonic() - started > 60 * minutes:
            log.print(f"{minutes:g} minutes are over: the rest isn't measured")
            break
    report(found, place, batches, planned, threads).publish(output, whole=whole)


if __name__ == "__main__":
    main()
