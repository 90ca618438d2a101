"""Half the latency, by plans of several kinds: ``python -m benchmarks.latency``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
import onnx
from onnx import ModelProto, numpy_helper

from benchmarks.common import ROOT, Column, Report, Table, chosen, log, milliseconds, options
from benchmarks.turns import turns
from models.fill import fill
from onnxprune import Target, TracedModel, analyze
from onnxprune.benchmarking.rounds import ratio, summarize
from onnxprune.channels.values import Mask
from onnxprune.errors import PlanError
from onnxprune.evaluation.intervals import Estimate
from onnxprune.importance import Scores, score
from onnxprune.latency import Options, plan_for_latency
from onnxprune.normalize import normalize
from onnxprune.planning.budget import choose
from onnxprune.report.layout import percent
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.settings.planning import Constraints
from onnxprune.shapes import generate_inputs
from onnxprune.trace.pruned_graph import PrunedGraph

if TYPE_CHECKING:
    from benchmarks.tools import Case

TARGET = 0.5
_SHARED = ROOT.parent / "shared" / "models"
_FINER = 8
_HALVINGS = 5  # bisection steps for the ratio at which a tool meets the latency
_ROUNDS, _SECONDS = 15, 0.5

_TORCH = ("resnet50", "mobilenet_v2", "densenet121", "vit_small")
_FILES: Mapping[str, str] = {
    "efficientnet_b0": "architectures/efficientnet_b0_dynamo",
    "yolo_like": "architectures/yolo_like_ts",
    "cifar_resnet56, trained": "cifar_resnet56_dynamo",
    "mobilenetv2 tf2onnx, trained": "mobilenetv2_10_224_tf2_f32",
    "yolox_nano, trained": "yolox_nano",
    "ultraface_rfb320, trained": "ultraface_rfb320",
}

NOTES = (
    "What it takes to halve the latency on ONNX Runtime's CPU provider. *MACs 0.5* is the speed-up of a uniform plan "
    "for half the MACs; *of 8* is the same with channel counts in multiples of 8. The next two columns are about "
    "`--target latency=0.5`: *predicted* is the share of the latency predicted before any plan was measured as a "
    "whole, *planner* is the share measured once the plan is made, in a separate measurement, with its 95 % interval. "
    "A planner at 50 % or a little less has met its target.",
    "*Importance* is the share of l2 importance that layers still read, averaged over layers; *uniform* is that of "
    "the uniform plan of the same latency, found by bisection. Torch-Pruning and onnxsim are brought to the same "
    "latency by their ratios, where they can reach it. The last three columns are the share of the energy of weights "
    "(their squares) that is left, averaged over layers: *weights* with onnxprune, then with each tool.",
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Plans for half the latency of a network.

    Attributes:
        network: its name.
        dense: seconds of the original.
        macs_speedup: how many times faster a uniform plan for half the MACs is.
        finer_speedup: the same with channel counts in multiples of 8.
        predicted: share of the latency that the planner predicted at first.
        measured: share of the latency that its plan takes; None if the target is out of reach.
        tries: number of plans that it measured.
        importance: share of the importance that its plan keeps.
        uniform: share that a uniform plan of the same latency keeps.
        energy: share of the weights' energy that each tool leaves at this latency, by name.
    """

    network: str
    dense: float
    macs_speedup: float
    finer_speedup: float
    predicted: float | None
    measured: Estimate | None
    tries: int
    importance: float | None
    uniform: float | None
    energy: Mapping[str, float]


class Network:
    """A network under comparison, in ONNX and perhaps in PyTorch."""

    def __init__(self, proto: ModelProto, threads: int, case: Case | None = None) -> None:
        """Trace and score a network."""
        self.analysis: TracedModel = analyze(proto)
        self.graph, self.case, self.threads = self.analysis.graph, case, threads
        self.scores: list[Scores] = score(self.graph, "l2")
        self.inputs = generate_inputs(self.graph.proto, self.graph.shapes.inputs)

    def built(self, removed: Mask) -> ModelProto:
        """Return the pruned network."""
        return rewrite(PrunedGraph(self.graph, removed))

    def share(self, proto: ModelProto) -> tuple[float, Estimate]:
        """Measure a pruned network: seconds of the original, and the share of them that the pruned one takes."""
        models = {"dense": self.graph.proto, "pruned": proto}
        runs = turns(models, self.inputs, rounds=_ROUNDS, threads=self.threads, seconds=_SECONDS)
        return summarize(runs["dense"]).median, ratio(runs["pruned"], runs["dense"])

    def importance(self, removed: Mask) -> float:
        """Return the share of importance that layers still read, on average."""
        kept = weight = 0.0
        for group, scores in zip(self.graph.groups, self.scores, strict=True):
            if not (whole := float(np.nansum(scores))):  # a group without scores is never pruned
                continue
            readers = max(1, sum(slot in self.graph.summed for slot in group.slots))
            kept += readers * float(np.nansum(scores[~removed[group.units]])) / whole
            weight += readers
        return kept / weight

    def energy(self, proto: ModelProto) -> float | None:
        """Return the share of the weights' energy that is left, on average over layers; None if layers don't match."""
        before, after = _energies(self.graph.proto), _energies(normalize(proto))
        return float(np.mean(np.array(after) / before)) if len(before) == len(after) else None


def compare(name: str, network: Network, *, peers: bool) -> Outcome:
    """Prune a network to half its latency in every way."""
    log.print(name, style="dim")
    graph, scores, constraints = network.graph, network.scores, Constraints()
    dense, macs = network.share(network.built(choose(graph, scores, constraints, target=Target("macs", TARGET))))
    finer = choose(graph, scores, Constraints(round_to=_FINER), target=Target("macs", TARGET))
    halved = 1 / macs.value, 1 / network.share(network.built(finer))[1].value
    where = Options(threads=network.threads)
    try:
        found = plan_for_latency(graph, scores, constraints, Target("latency", TARGET), where)
    except PlanError as error:
        log.print(f"{name}: {error.cause}; {error.hint}")
        return Outcome(name, dense, *halved, None, None, 0, None, None, {})
    planned = network.built(found.removed)
    dense, measured = network.share(planned)
    uniform: dict[float, Mask] = {}

    def evenly(ratio: float) -> ModelProto:
        uniform[ratio] = choose(graph, scores, constraints, ratio=ratio)
        return network.built(uniform[ratio])

    even = matched(network, evenly, measured.value)
    energy = {"onnxprune": network.energy(planned)}
    if peers and network.case is not None:
        for tool, build in _tools(network.case).items():
            log.print(f"{name}: {tool}", style="dim")
            own = matched(network, build, measured.value)
            energy[tool] = None if own is None else network.energy(build(own))
    return Outcome(
        network=name,
        dense=dense,
        macs_speedup=halved[0],
        finer_speedup=halved[1],
        predicted=found.tries[0].predicted,
        measured=measured,
        tries=len(found.tries),
        importance=network.importance(found.removed),
        uniform=None if even is None else network.importance(uniform[even]),
        energy={tool: share for tool, share in energy.items() if share is not None},
    )


def matched(network: Network, build: Callable[[float], ModelProto], share: float) -> float | None:
    """Return the smallest ratio, by bisection, at which a network reaches a share of the latency; None if none does."""
    low, high, best = 0.0, 0.95, None
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if network.share(build(middle))[1].value <= share * 1.01:
            high = best = middle
        else:
            low = middle
    return best


def _tools(case: Case) -> dict[str, Callable[[float], ModelProto]]:
    import onnxsim

    from benchmarks.tools import torch_pruned

    simplified = onnxsim.simplify(case.proto)[0]
    return {
        "Torch-Pruning": lambda ratio: torch_pruned(case, ratio),
        "onnxsim": lambda ratio: onnxsim.apply_structured_pruning(simplified, ratio),
    }


def _energies(proto: ModelProto) -> list[float]:
    """Return the sum of squares of every matrix and kernel, in the order of the nodes that read them."""
    tensors = {t.name: t for t in proto.graph.initializer if len(t.dims) > 1 and t.data_type == onnx.TensorProto.FLOAT}
    names = dict.fromkeys(n for node in proto.graph.node for n in node.input if n in tensors)
    return [float(np.square(numpy_helper.to_array(tensors[n]).astype(np.float64)).sum()) for n in names]


def _networks(threads: int) -> dict[str, Callable[[], Network]]:
    found: dict[str, Callable[[], Network]] = {}
    if all(find_spec(name) for name in ("torch", "torch_pruning", "onnxsim")):
        from benchmarks.tools import case

        def exported(name: str) -> Network:
            own = case(name)
            return Network(own.proto, threads, own)

        found |= {name: partial(exported, name) for name in _TORCH}
    for name, file in _FILES.items():
        path = _SHARED / f"{file}.onnx"
        if path.exists():
            found[name] = partial(_from_file, path, threads)
        else:
            log.print(f"{name}: ../shared/models is missing, skipped")
    return found


def _from_file(path: Path, threads: int) -> Network:
    return Network(fill(onnx.load(path)), threads)


COLUMNS: Sequence[Column[Outcome]] = (
    Column("network", lambda o: o.network, text=True),
    Column("dense, ms", lambda o: milliseconds(o.dense)),
    Column("MACs 0.5", lambda o: f"{o.macs_speedup:.2f}x"),
    Column("of 8", lambda o: f"{o.finer_speedup:.2f}x"),
    Column("predicted", lambda o: _percent(o.predicted)),
    Column("planner", lambda o: "out of reach" if o.measured is None else _interval(o.measured)),
    Column("plans", lambda o: str(o.tries)),
    Column("importance", lambda o: _percent(o.importance)),
    Column("uniform", lambda o: _percent(o.uniform)),
    Column("weights", lambda o: _percent(o.energy.get("onnxprune"))),
    Column("Torch-Pruning", lambda o: _percent(o.energy.get("Torch-Pruning"))),
    Column("onnxsim", lambda o: _percent(o.energy.get("onnxsim"))),
)


def _percent(share: float | None) -> str:
    return "-" if share is None else percent(share)


def _interval(share: Estimate) -> str:
    return f"{share.value:.1%} ({share.low:.1%} to {share.high:.1%})"


@click.command(help=__doc__)
@options
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads of ONNX Runtime.")
@click.option("--peers/--no-peers", default=True, help="Also prune to the same latency with Torch-Pruning and onnxsim.")
def main(repeats: int, clock: str, only: str, output: Path, threads: int, peers: bool) -> None:
    """Measure, print and write."""
    networks = _networks(threads)
    names = chosen(list(networks), only)
    outcomes = [compare(name, networks[name](), peers=peers) for name in names]
    Report(
        name="latency",
        title="Half the latency",
        notes=NOTES,
        tables=[Table.of("at half the latency", COLUMNS, outcomes)],
        settings={"clock": "wall", "threads": threads, "target": TARGET, "peers": peers},
        results={"outcomes": outcomes},
    ).publish(output, whole=len(outcomes) == len(networks))


if __name__ == "__main__":
    main()
