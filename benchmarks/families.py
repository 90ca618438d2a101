"""A network of every family of timm, by both of PyTorch's exporters: ``python -m benchmarks.families``.

Needs `pip install timm torchvision` in addition to the ``dev`` extra. Results are kept in the JSON file, so that an
interrupted benchmark resumes.
"""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import click
import timm
import torch

import onnxprune as op
from benchmarks.common import DOCS, Column, Report, Table, log, milliseconds
from onnxprune import OnnxPruneError, PlanError, PlanSettings, Target, analyze, prune
from onnxprune.report.layout import percent, si
from onnxprune.report.summary import summarize

EXPORTERS = ("TorchScript", "dynamo")
_SMALL = ("atto", "femto", "pico", "nano", "tiny", "xxs", "_xs", "small", "_s", "18", "26", "b0", "m0", "_050", "lite")
_LARGEST = 50_000_000  # parameters
_OPSET = 17

NOTES = (
    "timm has a file for each family of image networks. One small network of each family, with seeded random weights, "
    "is exported by both of PyTorch's exporters and pruned to half of its MACs under the default constraints (l2, "
    f"uniform). Nothing but the file and the target is given. Networks of more than {_LARGEST // 10**6} million "
    "parameters are left out.",
    "*Layers* have weights; a layer is *reached* if channels can be removed from it. *Load* is the time in "
    "milliseconds to read and trace the file, *prune* the time to plan, rewrite and prove. *MACs* is the share that "
    "is left, *error* is the oracle's. An error in brackets says little, because pruning changes no output of these "
    "random weights by more than the error allowed.",
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of one network and exporter.

    Attributes:
        network: its name in timm.
        exporter: who wrote the file.
        params: elements of its weights.
        nodes: number of nodes of the graph, normalized.
        layers: number of layers with weights.
        reached: number of them that can lose channels.
        load: seconds to read and trace.
        prune: seconds to plan, rewrite and prove.
        macs: share of the MACs that is left.
        error: the oracle's.
        informative: whether pruning changes outputs enough for the proof to mean something.
        failure: why there is no result; empty if there is one.
    """

    network: str
    exporter: str
    params: int
    nodes: int = 0
    layers: int = 0
    reached: int = 0
    load: float = 0.0
    prune: float = 0.0
    macs: float = 1.0
    error: float = 0.0
    informative: bool = True
    failure: str = ""


def networks() -> Iterator[str]:
    """Yield a network of every family: among those with a name that means small, the shortest name."""
    for family in timm.list_modules():
        names = [n for n in timm.list_models(module=family) if not n.startswith("test_")]
        small = next((found for key in _SMALL if (found := [n for n in names if key in n])), names)
        if small:
            yield min(small, key=len)


def run(name: str, exporter: str) -> Outcome | None:
    """Export and prune a network; None if it is too large."""
    torch.manual_seed(0)
    module = timm.create_model(name, pretrained=False, exportable=True).eval()
    params = sum(p.numel() for p in module.parameters())
    if params > _LARGEST:
        return None
    with TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        try:
            export(module, path, exporter)
        except Exception as error:  # exporters raise errors of every kind
            return Outcome(name, exporter, params, failure=f"not exported: {str(error).splitlines()[0][:100]}")
        try:
            return _pruned(name, exporter, params, path)
        except OnnxPruneError as error:
            return Outcome(name, exporter, params, failure=f"{error.code}: {error.cause}")


def export(module: torch.nn.Module, path: Path, exporter: str) -> None:
    """Export a network to a file."""
    image = torch.randn(1, *module.default_cfg.get("input_size", (3, 224, 224)))  # type: ignore[operator, union-attr]
    quiet = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        warnings.simplefilter("ignore")
        if exporter == "dynamo":
            torch.onnx.export(module, (image,), path, dynamo=True, input_names=["image"], verbose=False)
        else:
            torch.onnx.export(module, (image,), path, dynamo=False, input_names=["image"], opset_version=_OPSET)


def _pruned(name: str, exporter: str, params: int, path: Path) -> Outcome:
    start = perf_counter()
    analysis = analyze(path)
    loaded = perf_counter()
    try:
        plan = op.plan(analysis, PlanSettings(target=Target("macs", 0.5)))
    except PlanError as error:
        return Outcome(name, exporter, params, failure=f"{error.code}: {error.cause}")
    verification = prune(analysis, plan).verification
    done = perf_counter()
    assert verification is not None
    found = summarize(analysis.graph)
    return Outcome(
        network=name,
        exporter=exporter,
        params=params,
        nodes=len(analysis.graph.proto.graph.node),
        layers=found.weighted,
        reached=found.reached,
        load=loaded - start,
        prune=done - loaded,
        macs=plan.after["macs"] / plan.before["macs"],
        error=verification.error,
        informative=verification.informative,
    )


def read(path: Path) -> dict[tuple[str, str], Outcome]:
    """Read earlier results."""
    if not path.exists():
        return {}
    found = (Outcome(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))["results"]["outcomes"])
    return {(outcome.network, outcome.exporter): outcome for outcome in found}


COLUMNS: Sequence[Column[Outcome]] = (
    Column("network", lambda o: o.network, text=True),
    Column("params", lambda o: si(o.params)),
    Column("nodes", lambda o: f"{o.nodes:,}"),
    Column("reached", lambda o: f"{o.reached}/{o.layers}"),
    Column("load", lambda o: milliseconds(o.load)),
    Column("prune", lambda o: milliseconds(o.prune)),
    Column("MACs", lambda o: percent(o.macs)),
    Column("error", lambda o: f"{o.error:.1e}" if o.informative else f"({o.error:.1e})"),
)
FAILURES: Sequence[Column[Outcome]] = (
    Column("network", lambda o: o.network, text=True),
    Column("exporter", lambda o: o.exporter, text=True),
    Column("why", lambda o: o.failure, text=True),
)
TOTALS: Sequence[Column[tuple[str, Sequence[Outcome]]]] = (
    Column("exporter", lambda e: e[0], text=True),
    Column("networks", lambda e: str(len(e[1]))),
    Column("at half their MACs, proved", lambda e: str(sum(not o.failure for o in e[1]))),
    Column("layers reached", lambda e: f"{sum(o.reached for o in e[1]):,} of {sum(o.layers for o in e[1]):,}"),
    Column("largest error", lambda e: f"{max((o.error for o in e[1]), default=0.0):.1e}"),
)


def report(outcomes: Sequence[Outcome]) -> Report:
    """Return a report with a table for each exporter."""
    exported = [o for o in outcomes if not o.failure.startswith("not exported")]
    by = {exporter: [o for o in exported if o.exporter == exporter] for exporter in EXPORTERS}
    tables = [Table.of("Together", TOTALS, list(by.items()))]
    tables += [Table.of(f"By {e}", COLUMNS, [o for o in found if not o.failure]) for e, found in by.items()]
    return Report(
        name="families",
        title="Families of networks",
        notes=NOTES,
        tables=[*tables, Table.of("Without a result", FAILURES, [o for o in outcomes if o.failure])],
        settings={"clock": "wall", "timm": timm.__version__},
        results={"outcomes": [asdict(o) for o in outcomes]},
    )


@click.command(help=__doc__)
@click.option("--output", type=click.Path(path_type=Path), default=DOCS, help="Folder to write to: docs.")
@click.option("--only", metavar="PATTERN", default="*", help="Measure only networks with matching names.")
def main(output: Path, only: str) -> None:
    """Measure what earlier runs haven't, print and write."""
    known = read(output / "benchmarks" / "families.json")
    for name in (n for n in networks() if fnmatchcase(n, only)):
        for exporter in EXPORTERS:
            if (name, exporter) in known:
                continue
            if (outcome := run(name, exporter)) is None:
                break
            log.print(f"{name}, {exporter}: {outcome.failure or percent(outcome.macs)}", style="dim")
            known[name, exporter] = outcome
            report(list(known.values())).write(output)
    report(list(known.values())).publish(output, whole=True)


if __name__ == "__main__":
    main()
