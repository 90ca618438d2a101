"""How much of real models can be pruned, and whether the result is right: ``python -m benchmarks.coverage``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from onnx import ModelProto

import onnxprune as op
from benchmarks.common import Column, Report, Stopwatch, Table, chosen, log, milliseconds, options
from benchmarks.zoo import FAMILIES
from onnxprune import (
    Constraints,
    OnnxPruneError,
    PlanError,
    PlanSettings,
    PrunedGraph,
    Target,
    TracedModel,
    load,
    prove,
    prune,
)
from onnxprune.cost.cost import cost
from onnxprune.normalize import normalize
from onnxprune.planning.plan import PrunePlan, apply_plan
from onnxprune.report.coupling import explain_node
from onnxprune.report.index import Index
from onnxprune.report.layout import percent, share, si
from onnxprune.report.summary import ModelSummary, summarize
from onnxprune.rewrite.verify import Verification
from onnxprune.shapes import concretize
from onnxprune.trace import ChannelGraph, trace

TARGET = PlanSettings(target=Target("macs", 0.5))
_ALL = 1 - 1e-9
DEEPEST = PlanSettings(ratio=_ALL, constraints=Constraints(max_ratio=_ALL, round_to=1))
"""One unit of each group remains."""

_NO_PLAN = ("OP301", "OP310")  # the target is out of reach, nothing can be pruned
_SHOWN_PINS = _SHOWN_REASONS = 3
_SHOWN_LETTERS = 40

NOTES = (
    "Each model is loaded and traced, then pruned to half of its MACs under the default constraints (l2, uniform). "
    "The masked oracle compares the result with the original. Models that aren't trained have seeded random weights.",
    "*Layers* have weights; a layer is *reached* if channels can be removed from it. *Prunable* is the share of "
    "parameters, and of MACs, that lie on a removable channel. Groups are *exact*, or *approximate* where an operator "
    "takes statistics over channels. *Pins* are the reasons that lock most of the other parameters, with their "
    "shares; see `onnxprune explain CODE`. *Trace* is the time in milliseconds to find shapes and dependencies. "
    "*Planned* is the share of MACs left at the target of 50 %; *deepest* is the share left with one channel in each "
    "group and no other constraints. *Error* is the largest difference of any output, relative to its largest value. "
    "*Change* is the same measure between the masked and the dense original: what the oracle had to get right. Where "
    "the target is out of reach, the deepest plan is proved instead, marked (d).",
    "The last table lists the layers that aren't reached, and what pins them: axes shared with the model's inputs and "
    "outputs (the state of a recurrent network keeps its size where the caller passes it in and out), axes that hold "
    "positions, or a single channel.",
)


@dataclass(frozen=True, slots=True)
class Coverage:
    """Results of one model.

    Attributes:
        model: its name.
        family: the name of its family.
        nodes: number of nodes, normalized.
        layers: number of layers with weights.
        reached: number of them that can be made smaller.
        params: elements of its weights.
        macs: multiply-accumulates of one run.
        prunable_params: share of parameters that can be removed.
        prunable_macs: share of MACs that can be removed.
        exact: number of exact groups.
        approximate: number of other groups.
        pins: share of parameters that each reason locks, most first.
        unreached: the layers that can't be made smaller.
        trace: seconds to find shapes and dependencies.
        planned: share of MACs left at the target, None if it is out of reach.
        deepest: share of MACs left by the deepest plan, None if nothing can be pruned.
        proof: the oracle's verdict on the first of these plans that exists.
    """

    model: str
    family: str
    nodes: int
    layers: int
    reached: int
    params: int
    macs: int
    prunable_params: float
    prunable_macs: float
    exact: int
    approximate: int
    pins: Mapping[str, float]
    unreached: tuple[Unreached, ...]
    trace: float
    planned: float | None
    deepest: float | None
    proof: Verification | None


@dataclass(frozen=True, slots=True)
class Unreached:
    """Layers of a model that can't be made smaller, all for the same reasons.

    Attributes:
        model: the model's name.
        layers: the layers' names.
        operator: their operator.
        reasons: why, as "role: CODE cause", the most frequent first.
    """

    model: str
    layers: tuple[str, ...]
    operator: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Missing:
    """Something that couldn't be measured.

    Attributes:
        what: the model or the family.
        reason: why.
    """

    what: str
    reason: str


def cover(name: str, family: str, source: ModelProto, *, repeats: int, clock: str) -> Coverage:
    """Measure one model.

    Raises:
        OnnxPruneError: it can't be read, run or pruned.
    """
    model = load(source)
    watch = Stopwatch(repeats, clock)
    graph = watch("trace", lambda: _trace(model.proto))
    analysis = TracedModel(model, graph)
    planned, deepest = (_plan(analysis, settings) for settings in (TARGET, DEEPEST))
    plan = planned or deepest
    verdict = None if plan is None else _proof(analysis, plan)
    found = summarize(graph)
    return Coverage(
        model=name,
        family=family,
        nodes=len(graph.proto.graph.node),
        layers=found.weighted,
        reached=found.reached,
        params=found.cost.params,
        macs=found.cost.macs,
        prunable_params=share(found.prunable, found.cost.params),
        prunable_macs=_prunable_macs(graph, found),
        exact=sum(g.exact for g in graph.groups),
        approximate=sum(not g.exact for g in graph.groups),
        pins={p.code: share(p.locked, found.cost.params) for p in found.pins if p.locked},
        unreached=_unreached(name, graph, found),
        trace=watch.times["trace"].median,
        planned=_macs_left(planned),
        deepest=_macs_left(deepest),
        proof=verdict,
    )


def _trace(source: ModelProto) -> ChannelGraph:
    proto = normalize(source)
    return trace(proto, shapes=concretize(proto))


def _plan(analysis: TracedModel, settings: PlanSettings) -> PrunePlan | None:
    """Return a plan, or None if the target is out of reach or nothing can be pruned."""
    try:
        return op.plan(analysis, settings)
    except PlanError as error:
        if error.code not in _NO_PLAN:
            raise
        return None


def _prunable_macs(graph: ChannelGraph, found: ModelSummary) -> float:
    """Return the share of MACs on removable channels."""
    return share(found.cost.macs - cost(PrunedGraph(graph, ~graph.pinned)).macs, found.cost.macs)


def _unreached(model: str, graph: ChannelGraph, found: ModelSummary) -> tuple[Unreached, ...]:
    """Group the layers with weights that can't be made smaller, by operator and reasons."""
    index, nodes = Index(graph), {node.name: node for node in graph.proto.graph.node}
    alike: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for layer in found.layers:
        if layer.weighted and not layer.reached:
            axes = explain_node(index, nodes[layer.cost.node])
            held = Counter(f"{a.role}: {h.pin.code} {h.pin.reason}" for a in axes for h in a.held)
            reasons = tuple(reason for reason, _ in held.most_common()) or ("one channel goes in and one comes out",)
            alike.setdefault((layer.cost.op, reasons), []).append(layer.cost.node)
    return tuple(Unreached(model, tuple(layers), op, reasons) for (op, reasons), layers in alike.items())


def _macs_left(plan: PrunePlan | None) -> float | None:
    return None if plan is None else share(plan.after["macs"], plan.before["macs"])


def _proof(analysis: TracedModel, plan: PrunePlan) -> Verification:
    """Run the oracle, whatever its verdict."""
    return prove(apply_plan(analysis.graph, plan), prune(analysis, plan, check=False).proto)


def _left(result: Coverage) -> str:
    if result.planned is not None:
        return percent(result.planned)
    return "-" if result.deepest is None else "out of reach"


def _error(result: Coverage) -> str:
    if result.proof is None:
        return "-"
    notes = [" (d)"] if result.planned is None else []
    notes += [] if result.proof.passed else [" **wrong**"]
    return "".join([f"{result.proof.error:.1e}", *notes])


def _change(result: Coverage) -> str:
    return "-" if result.proof is None else f"{max(o.change for o in result.proof.outputs):.2f}"


def _pins(result: Coverage) -> str:
    return ", ".join(f"{code} {percent(locked)}" for code, locked in list(result.pins.items())[:_SHOWN_PINS])


def _short(name: str) -> str:
    """Return the end of a name: TensorFlow's names list every fused operator."""
    last = name.rpartition(";")[2]
    return last if len(last) <= _SHOWN_LETTERS else f"…{last[1 - _SHOWN_LETTERS :]}"


COLUMNS: Sequence[Column[Coverage]] = (
    Column("model", lambda c: c.model, text=True),
    Column("nodes", lambda c: f"{c.nodes:,}"),
    Column("reached/layers", lambda c: f"{c.reached}/{c.layers}"),
    Column("params", lambda c: si(c.params)),
    Column("MACs", lambda c: si(c.macs)),
    Column("prunable params", lambda c: percent(c.prunable_params)),
    Column("prunable MACs", lambda c: percent(c.prunable_macs)),
    Column("exact + approx. groups", lambda c: f"{c.exact} + {c.approximate}"),
    Column("pins", _pins, text=True),
    Column("trace", lambda c: milliseconds(c.trace)),
    Column("planned", _left),
    Column("deepest", lambda c: "-" if c.deepest is None else percent(c.deepest)),
    Column("error", _error),
    Column("change", _change),
)
UNREACHED: Sequence[Column[Unreached]] = (
    Column("model", lambda u: u.model, text=True),
    Column("layers", lambda u: f"{len(u.layers)} {u.operator}"),
    Column("for example", lambda u: _short(u.layers[0]), text=True),
    Column("why not", lambda u: "; ".join(u.reasons[:_SHOWN_REASONS]), text=True),
)
MISSING: Sequence[Column[Missing]] = (
    Column("what", lambda m: m.what, text=True),
    Column("reason", lambda m: m.reason, text=True),
)


def _totals(found: Sequence[Coverage]) -> str:
    reached, layers = sum(c.reached for c in found), sum(c.layers for c in found)
    halved = sum(c.planned is not None for c in found)
    proofs = [c.proof.passed for c in found if c.proof is not None]
    return (
        f"Of {len(found)} models, {halved} reach half of their MACs; {sum(proofs)} of the {len(proofs)} that were "
        f"pruned pass the oracle. {reached:,} of {layers:,} layers with weights are reached, "
        f"{percent(share(reached, layers))}."
    )


@click.command(help=__doc__)
@options
def main(repeats: int, clock: str, only: str, output: Path) -> None:
    """Measure, print and write."""
    found: list[Coverage] = []
    missing = [Missing(f.name, f"{f.where} is absent") for f in FAMILIES if not f.models()]
    names = chosen([name for family in FAMILIES for name in family.models()], only)
    for family in FAMILIES:
        for name, path in family.models().items():
            if name not in names:
                continue
            log.print(f"measuring {name}", style="dim")
            try:
                found.append(cover(name, family.name, family.read(path), repeats=repeats, clock=clock))
            except OnnxPruneError as error:
                missing.append(Missing(name, f"{error.code}: {error.cause}"))
    by_family = {f.name: [c for c in found if c.family == f.name] for f in FAMILIES}
    tables = [Table.of(name, COLUMNS, rows) for name, rows in by_family.items() if rows]
    if unreached := [u for c in found for u in c.unreached]:
        tables.append(Table.of("Layers that can't be made smaller", UNREACHED, unreached))
    if missing:
        tables.append(Table.of("Not measured", MISSING, missing))
    Report(
        name="coverage",
        title="What can be pruned of which model",
        notes=(_totals(found), *NOTES),
        tables=tables,
        settings={"repeats": repeats, "clock": clock, "target": TARGET, "deepest": DEEPEST},
        results={"models": found, "missing": missing},
        page="coverage.md",
    ).publish(output, whole=only == "*")


if __name__ == "__main__":
    main()
