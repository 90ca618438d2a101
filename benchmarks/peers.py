"""Compare onnxprune with Torch-Pruning and onnxsim in one run: ``python -m benchmarks.peers``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click
import onnx
from onnx import ModelProto

from benchmarks.common import Column, Report, Table, Timing, chosen, log, measure, milliseconds, options, yes
from benchmarks.turns import speedup, turns
from onnxprune import ModelError
from onnxprune.benchmarking.rounds import summarize
from onnxprune.channels.values import Shape
from onnxprune.cost.cost import Cost, model_cost
from onnxprune.model.session import session
from onnxprune.normalize import normalize
from onnxprune.report.layout import percent, share
from onnxprune.shapes import concretize, generate_inputs

if TYPE_CHECKING:
    from benchmarks.tools import Case, Tool

_NEEDED = ("torch", "torch_pruning", "onnxsim")
_DENSE = "unpruned"

NOTES = (
    "Every tool is asked to remove half of the channels of each layer (l2), from the same weights: Torch-Pruning from "
    "the PyTorch module, the others from its export by the TorchScript exporter. onnxsim gets the model as its own "
    "`simplify` returns it, which isn't timed. Time is from a model in memory to a pruned model in memory: the median "
    "of several runs after a warm-up run. Torch-Pruning's time doesn't include the export to ONNX.",
    "*Reached* counts the layers with weights that are smaller afterwards. MACs and parameters are the shares left, "
    "counted on the ONNX model. *Valid* says whether onnx.checker accepts the result with full_check. *Latency* is "
    "measured on ONNX Runtime's CPU provider, models interleaved; *speedup* is the mean over rounds. The proof, "
    "onnxprune's default, runs the original, the masked original and the pruned model. It doesn't change the result, "
    "so the speedups of the two onnxprune rows differ by noise only.",
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A network pruned by one tool.

    Attributes:
        network: its name.
        tool: the tool's name.
        prune: duration; None for the unpruned network.
        layers: number of layers with weights.
        reached: number of them that are smaller.
        macs: share of the MACs left.
        params: share of the parameters left.
        loads: whether ONNX Runtime loads and runs it.
        valid: whether onnx's full check accepts it.
        latency: median seconds of a run; None if it doesn't load.
        speedup: latency of the unpruned network over its own.
    """

    network: str
    tool: str
    prune: Timing | None
    layers: int
    reached: int
    macs: float
    params: float
    loads: bool
    valid: bool
    latency: float | None
    speedup: float | None


def compare(
    network: str, case: Case, tools: Sequence[Tool], *, repeats: int, clock: str, rounds: int, threads: int
) -> list[Outcome]:
    """Prune a network with every tool, and run the results."""
    models, times = {_DENSE: case.proto}, dict[str, Timing]()
    for tool in tools:
        log.print(f"{network}: {tool.name}", style="dim")
        pruned, times[tool.name] = measure(tool.prune, partial(tool.prepare, case), repeats, clock=clock)
        models[tool.name] = tool.export(pruned)
    inputs = generate_inputs(case.proto, concretize(case.proto).inputs)
    runs = turns({n: m for n, m in models.items() if _loads(m)}, inputs, rounds=rounds, threads=threads)
    costs = {name: _cost(model) for name, model in models.items()}
    dense = costs[_DENSE]
    return [
        Outcome(
            network=network,
            tool=name,
            prune=times.get(name),
            layers=len(_weights(dense)),
            reached=sum(a != b for a, b in zip(_weights(dense), _weights(costs[name]), strict=True)),
            macs=share(costs[name].macs, dense.macs),
            params=share(costs[name].params, dense.params),
            loads=name in runs,
            valid=_valid(model),
            latency=summarize(runs[name]).median if name in runs else None,
            speedup=speedup(runs[_DENSE], runs[name]) if name in runs else None,
        )
        for name, model in models.items()
    ]


def _cost(model: ModelProto) -> Cost:
    proto = normalize(model)
    return model_cost(proto, concretize(proto))


def _weights(cost: Cost) -> list[Shape]:
    """Return the shapes of the weights of all layers, in order; pruning keeps the order."""
    return [layer.weight for layer in cost.layers if layer.params]


def _loads(model: ModelProto) -> bool:
    try:
        session(model)
    except ModelError:
        return False
    return True


def _valid(model: ModelProto) -> bool:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True


COLUMNS: Sequence[Column[Outcome]] = (
    Column("tool", lambda o: o.tool, text=True),
    Column("time, ms", lambda o: "-" if o.prune is None else milliseconds(o.prune.median)),
    Column("reached", lambda o: f"{o.reached}/{o.layers}"),
    Column("MACs", lambda o: percent(o.macs)),
    Column("params", lambda o: percent(o.params)),
    Column("loads", lambda o: yes(o.loads), text=True),
    Column("valid", lambda o: yes(o.valid), text=True),
    Column("latency, ms", lambda o: "-" if o.latency is None else milliseconds(o.latency)),
    Column("speedup", lambda o: "-" if o.speedup is None else f"{o.speedup:.2f}x"),
)


@click.command(help=__doc__)
@options
@click.option("--rounds", type=click.IntRange(1), default=20, show_default=True, help="Runs for each latency.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads of ONNX Runtime.")
def main(repeats: int, clock: str, only: str, output: Path, rounds: int, threads: int) -> None:
    """Measure, print and write."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise click.ClickException(f"{', '.join(missing)} not installed: pip install -e '.[dev]'")
    from benchmarks.tools import NETWORKS, RATIO, TOOLS, case

    outcomes = {
        name: compare(name, case(name), TOOLS, repeats=repeats, clock=clock, rounds=rounds, threads=threads)
        for name in chosen(list(NETWORKS), only)
    }
    Report(
        name="peers",
        title="Beside other pruners",
        notes=NOTES,
        tables=[Table.of(name, COLUMNS, rows) for name, rows in outcomes.items()],
        settings={"repeats": repeats, "clock": clock, "rounds": rounds, "threads": threads, "ratio": RATIO},
        results={"outcomes": [outcome for rows in outcomes.values() for outcome in rows]},
    ).publish(output, whole=len(outcomes) == len(NETWORKS))


if __name__ == "__main__":
    main()
