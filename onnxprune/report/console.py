"""Reports as tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import ModelProto
from rich.console import RenderableType
from rich.text import Text

from onnxprune.channels.values import Shape
from onnxprune.errors import CATALOG
from onnxprune.report.comparison import OutputDistance, Port, inputs_of, outputs_of
from onnxprune.report.index import Reach
from onnxprune.report.layout import (
    BAD,
    CODE,
    FAINT,
    GOOD,
    GROUP,
    Name,
    change,
    count,
    dims,
    group_tag,
    heading,
    line,
    paragraph,
    percent,
    share,
    si,
    stack,
    table,
)
from onnxprune.report.summary import ModelSummary, PlanSummary
from onnxprune.rewrite.verify import Verification
from onnxprune.trace import Group

_COSTS = {
    "params": ("parameters", ""),
    "macs": ("MACs", ""),
    "size": ("weights", "B"),
    "memory": ("activations, peak", "B"),
}


def costs(summary: PlanSummary, files: tuple[int, int] | None = None) -> RenderableType:
    """Tabulate costs before and after, and the bytes of the files if they are given."""
    old, new = summary.before.totals(), summary.after.totals()
    rows = [(label, old[key], new[key], unit) for key, (label, unit) in _COSTS.items()]
    if files is not None:
        rows.append(("file", *files, "B"))
    cells = ((label, si(a, unit), si(b, unit), change(a, b)) for label, a, b, unit in rows)
    return stack(heading("cost", _at(summary.inputs)), table("|before >|after >|change >", cells))


def group_changes(summary: PlanSummary) -> RenderableType:
    """Tabulate what a plan does to each group."""
    changed = [c for c in summary.groups if c.removed]
    rest = len(summary.groups) - len(changed)
    rows = (
        (
            group_tag(c.group.index),
            Name(c.group.name),
            str(len(c.group.units)),
            str(c.kept),
            change(len(c.group.units), c.kept),
            _kind(c.group),
        )
        for c in changed
    )
    return stack(
        heading("groups", f"{count(rest, 'other')} left whole" if rest else ""),
        table("|made by ~|units >|kept >|change >|", rows),
        *([paragraph(_blocks(summary))] if summary.blocks else []),
    )


def verdict(
    changes: Sequence[str],
    verification: Verification | None,
    distances: Sequence[OutputDistance] | None = None,
) -> RenderableType:
    """Tell what a comparison of two models found, and on what it rests.

    Args:
        changes: where their interfaces differ.
        verification: the oracle's verdict, if it was asked.
        distances: how far their outputs are apart, if that was all that could be told.
    """
    if changes:
        return stack(heading("interface"), *map(paragraph, changes))
    if verification is not None:
        return _proof(verification)
    if distances is not None:
        return _distances(distances)
    return stack(heading("verification"), paragraph("not proved: left out with --no-verify", CODE))


def removal(summary: PlanSummary) -> RenderableType:
    """Tell in a line how much leaves."""
    removed = sum(c.removed for c in summary.groups)
    units = sum(len(c.group.units) for c in summary.groups)
    touched = sum(c.removed > 0 for c in summary.groups)
    text = f"removed {removed:,} of {count(units, 'unit')}, from {touched} of {count(len(summary.groups), 'group')}"
    return paragraph(f"{text}; {_blocks(summary)}" if summary.blocks else text)


def _blocks(summary: PlanSummary) -> str:
    return f"leaving whole: {count(len(summary.blocks), 'residual block')}, {', '.join(summary.blocks)}"


def what_stays(summary: ModelSummary, hint: str = "", first: int | None = None) -> RenderableType:
    """Tabulate why channels can't leave, or the first so many reasons."""
    params = summary.cost.params
    rows = (
        (
            Text(pin.code, CODE),
            CATALOG[pin.code].title,
            str(len(pin.layers)),
            percent(share(pin.held, params)),
            percent(share(pin.locked, params)),
            Name(pin.layers[0]),
        )
        for pin in summary.pins[:first]
    )
    columns = "|reason ~|layers >|holds >|locks >|for example ~"
    if not params:
        return stack(heading("what stays, and why"), paragraph("The main graph has no weights."))
    prunable = percent(share(summary.prunable, params))
    return stack(
        heading("what stays, and why", hint),
        table(columns, rows),
        paragraph(
            f"{prunable} of the parameters can leave. A reason holds those with a slice that it pins,"
            " and locks those that no other slice lets go either.",
            FAINT,
        ),
    )


def model_header(path: str, proto: ModelProto, summary: ModelSummary) -> RenderableType:
    """Tell what a model is: its versions, producer and interface."""
    opsets = " ".join(f"{o.domain or 'ai.onnx'}:{o.version}" for o in proto.opset_import)
    producer = f"{proto.producer_name} {proto.producer_version}".strip() or "unknown producer"
    nodes = count(len(proto.graph.node), "node")
    inputs = (_port("input", port, summary.inputs.get(port.name)) for port in inputs_of(proto))
    outputs = (_port("output", port, None) for port in outputs_of(proto))
    return stack(
        heading(path, f"IR {proto.ir_version}, opset {opsets}, {producer}, {nodes}"),
        table("|~|||", [*inputs, *outputs]),
    )


def layers(summary: ModelSummary) -> RenderableType:
    """Tabulate the layers of a model and which groups they read and make."""
    rows = (
        (
            Name(layer.cost.node),
            layer.cost.op,
            dims(layer.cost.weight) if layer.weighted else "",
            dims(layer.cost.output),
            si(layer.cost.params),
            si(layer.cost.macs),
            line(_reach(layer.reads), " → ", _reach(layer.makes)),
        )
        for layer in summary.layers
    )
    return stack(
        heading("layers", "channels: groups (g) or what pins them"),
        table("node ~|operator|weight|output|params >|MACs >|channels", rows),
    )


def groups(summary: ModelSummary) -> RenderableType:
    """Tabulate the groups of a model."""
    rows = (
        (
            group_tag(g.group.index),
            Name(g.group.name),
            f"{len(g.group.units)}" + (f" x {g.group.width}" if g.group.width > 1 else ""),
            str(len(g.group.nodes)),
            percent(share(g.params, summary.cost.params)),
            _kind(g.group),
        )
        for g in summary.groups
    )
    return stack(
        heading("groups", "channels that leave together, unit by unit"),
        table("|made by ~|units >|nodes >|params >|", rows),
    )


def totals(summary: ModelSummary, file: int) -> RenderableType:
    """Tabulate a model's costs and how much of it can be pruned."""
    cost = summary.cost.totals()
    rows = [(label, si(cost[key], unit)) for key, (label, unit) in _COSTS.items()]
    rows.append(("file", si(file, "B")))
    rows.append(("prunable parameters", percent(share(summary.prunable, summary.cost.params))))
    rows.append(("prunable layers", f"{summary.reached} of {summary.weighted}"))
    return stack(
        heading("totals", _at(summary.inputs)),
        table("|>", rows),
    )


def _at(inputs: Mapping[str, Shape]) -> str:
    """Tell at which input sizes costs are counted."""
    return "at " + ", ".join(f"{name} {dims(shape)}" for name, shape in inputs.items())


def _proof(verification: Verification) -> RenderableType:
    v = verification
    origin = "your inputs" if v.seed is None else f"generated inputs, seed {v.seed}"
    rows = [(Name(o.name), f"{o.error:.2g}", f"{o.change:.2g}") for o in v.outputs]
    outcome = ("proved right", GOOD) if v.passed else ("NOT right", BAD)
    meaning = (
        f": compared with the original whose removed weights are set to zero, on {origin}."
        f" Error {v.error:.2g}, allowed {v.tolerance:.2g}, relative to an output's largest value."
    )
    return stack(
        heading("verification"),
        table("output ~|error >|change by pruning >", rows),
        paragraph(line(outcome, meaning)),
    )


def _distances(distances: Sequence[OutputDistance]) -> RenderableType:
    rows = (
        (
            Name(d.name),
            f"{d.difference:.2g}",
            "-" if d.cosine is None else f"{d.cosine:.4f}",
            "" if d.sound else Text("another shape, or not finite", BAD),
        )
        for d in distances
    )
    return stack(
        heading("comparison", "difference relative to the original's largest value"),
        table("output ~|difference >|cosine >|", rows),
        paragraph(
            "The interface is intact. That the outputs are right isn't proved: for that, the plan is needed (--plan)."
        ),
    )


def _port(what: str, port: Port, at: Shape | None) -> tuple[str, Name, str, str, str]:
    shape = "?" if port.dims is None else dims(port.dims)
    assumed = at is not None and shape != dims(at)
    return what, Name(port.name), port.type, shape, f"taken as {dims(at)}" if at and assumed else ""


def _reach(reach: Reach) -> Text:
    """Write what can leave of some channels in a few characters."""
    parts = [group_tag(g) for g in reach.groups[:3]]
    parts += [Text(f"+{len(reach.groups) - 3}", GROUP)] if len(reach.groups) > 3 else []
    parts += [Text(code, CODE) for code in reach.pins[:2]]
    return Text(" ").join(parts) if parts else Text("-", FAINT)


def _kind(group: Group) -> Text:
    return Text("") if group.exact else Text("approximate", CODE)
