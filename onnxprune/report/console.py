"""Tables of models, plans and operators for the console."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from onnxprune.channels.values import Shape
from onnxprune.cost.cost import Cost
from onnxprune.errors import CATALOG
from onnxprune.report.index import Reach
from onnxprune.report.labels import Labels
from onnxprune.report.layout import (
    BAD,
    CODE,
    FAINT,
    GOOD,
    GROUP,
    Cell,
    Name,
    Rows,
    Tables,
    change,
    count,
    dims,
    flexible,
    group_tag,
    heading,
    left,
    line,
    milliseconds,
    paragraph,
    percent,
    right,
    share,
    si,
    table,
)
from onnxprune.report.operators import Operator, count_states
from onnxprune.report.summary import ModelSummary, PlanSummary
from onnxprune.rewrite.comparison import ModelHeader, Port
from onnxprune.trace import Group

_COSTS = {
    "params": ("parameters", ""),
    "macs": ("MACs", ""),
    "size": ("weights", "B"),
    "memory": ("activations, peak", "B"),
}
_STATES = {
    "rule": ("with a rule", GOOD),
    "left alone": ("deliberately left alone", CODE),
    "unknown": ("unknown: channels that touch them are never removed", BAD),
}


def model_tables(path: Path, header: ModelHeader, summary: ModelSummary, file_size: int) -> Tables:
    """Show a traced model: its interface, layers, groups and pins, and how much of it can be pruned."""
    opsets = " ".join(f"{domain}:{version}" for domain, version in header.opsets.items())
    producer, nodes = header.producer or "unknown producer", count(header.nodes, "node")
    yield heading(str(path), f"IR {header.ir_version}, opset {opsets}, {producer}, {nodes}")
    inputs = (_port("input", port, summary.inputs.get(port.name)) for port in header.inputs)
    outputs = (_port("output", port, None) for port in header.outputs)
    yield table(left("") + flexible("") + left("", "", ""), [*inputs, *outputs])

    yield from summary.labels.note()
    yield heading("layers", "channels: groups (g) or the codes of what pins them")
    columns = flexible("node") + left("operator", "weight", "output") + right("params", "MACs") + left("channels")
    layers = (
        (
            summary.labels.name(layer.cost.node),
            layer.cost.op,
            dims(layer.cost.weight) if layer.weighted else "",
            dims(layer.cost.output),
            si(layer.cost.params),
            si(layer.cost.macs) if layer.cost.macs else "?",
            line(_reach(layer.reads), " → ", _reach(layer.makes)),
        )
        for layer in summary.layers
    )
    yield table(columns, layers)

    params = summary.cost.params
    yield heading("groups", "channels that are removed together, unit by unit")
    if not summary.groups:
        yield paragraph("No channels can be removed.", CODE)
    groups = (
        (
            g.group,
            f"{len(g.group.units)}" + (f" x {g.group.width}" if g.group.width > 1 else ""),
            str(len(g.group.nodes)),
            percent(share(g.params, params)),
        )
        for g in summary.groups
    )
    if summary.groups:
        yield _group_table(["units", "nodes", "params"], groups, summary.labels)

    yield from _states(summary)
    yield from _pin_tables(summary, f"see the command `explain {path}`")
    yield heading("totals", _at(summary.inputs))
    cost = summary.cost.totals()
    totals = [(label, si(cost[key], unit)) for key, (label, unit) in _COSTS.items()]
    totals.append(("file", si(file_size, "B")))
    totals.append(("prunable parameters", percent(share(summary.prunable, params))))
    totals.append(("prunable layers", f"{summary.reached} of {summary.weighted}"))
    yield table(left("") + right(""), totals)
    yield from _counted_once(summary.cost)


def pin_tables(summary: ModelSummary, hint: str = "", first: int | None = None) -> Tables:
    """Show why channels can't be removed.

    Args:
        summary: the model.
        hint: a note for the heading.
        first: the number of reasons shown; all by default.
    """
    yield from summary.labels.note()
    yield from _pin_tables(summary, hint, first)


def _pin_tables(summary: ModelSummary, hint: str, first: int | None = None) -> Tables:
    params = summary.cost.params
    yield heading("pinned channels", hint if params else "")
    if not params:
        yield paragraph("The main graph has no weights.")
        return
    rows = (
        (
            Text(pin.code, CODE),
            CATALOG[pin.code].title,
            str(len(pin.layers)),
            percent(share(pin.held, params)),
            percent(share(pin.locked, params)),
            summary.labels.name(pin.layers[0]),
        )
        for pin in summary.pins[:first]
    )
    yield table(left("") + flexible("reason") + right("layers", "held", "locked") + flexible("for example"), rows)
    yield paragraph(
        f"{percent(share(summary.prunable, params))} of the parameters can be removed. A reason holds the parameters in"
        " a slice that it pins, and locks those of them that are in no removable slice.",
        FAINT,
    )


def cost_tables(summary: PlanSummary, files: tuple[int, int] | None = None) -> Tables:
    """Show costs before and after, and the sizes of the files in bytes if they are given."""
    old, new = summary.before.totals(), summary.after.totals()
    rows = [(label, old[key], new[key], unit) for key, (label, unit) in _COSTS.items()]
    if files is not None:
        rows.append(("file", *files, "B"))
    yield heading("cost", _at(summary.inputs))
    cells = ((label, si(a, unit), si(b, unit), change(a, b)) for label, a, b, unit in rows)
    yield table(left("") + right("before", "after", "change"), cells)
    yield from _counted_once(summary.before)


def _counted_once(cost: Cost) -> Tables:
    """Say which loops may run more often than they are counted."""
    if cost.once:
        named = ", ".join(cost.once[:3]) + (", ..." if len(cost.once) > 3 else "")
        yield paragraph(f"MACs are those of one step of {named}: the number of steps depends on values.")


def group_tables(summary: PlanSummary) -> Tables:
    """Show what a plan removes from each group."""
    changed = [c for c in summary.groups if c.removed]
    unchanged = len(summary.groups) - len(changed)
    yield from summary.labels.note()
    yield heading("groups", f"{count(unchanged, 'other')} unchanged" if unchanged else "")
    sizes = ((c.group, len(c.group.units), c.kept) for c in changed)
    rows = ((group, str(units), str(kept), change(units, kept)) for group, units, kept in sizes)
    yield _group_table(["units", "kept", "change"], rows, summary.labels)
    if summary.blocks:
        yield paragraph(f"removed {_blocks(summary)}")
    yield from _other_moves(summary)


def removal_tables(summary: PlanSummary) -> Tables:
    """Show in a line how much a plan removes."""
    removed = sum(c.removed for c in summary.groups)
    units = sum(len(c.group.units) for c in summary.groups)
    touched = sum(c.removed > 0 for c in summary.groups)
    text = f"removed {removed:,} of {count(units, 'unit')}, from {touched} of {count(len(summary.groups), 'group')}"
    yield paragraph(f"{text}, and {_blocks(summary)}" if summary.blocks else text)
    yield from _other_moves(summary)


def _other_moves(summary: PlanSummary) -> Tables:
    yield from map(paragraph, summary.changes)
    if summary.ranks:
        rows = ((Name(summary.labels.short(node)), str(rank)) for node, rank in summary.ranks.items())
        yield table(flexible("layer in two") + right("channels between"), rows)
    yield from _states(summary)


def latency_tables(found: Mapping[str, Any]) -> Tables:
    """Show the predicted and the measured latency of a plan.

    Args:
        found: the field "latency" of a plan's settings, see `onnxprune.latency.plan.LatencyResult.fields`.
    """
    original, predicted, measured = found["original_seconds"], found["predicted_share"], found["measured_share"]
    value, interval = measured["value"], f"{measured['low']:.1%} to {measured['high']:.1%}"
    rows = [("original", milliseconds(original), "", "")]
    if cleaned := found.get("cleaned_share"):
        part, low, high = cleaned["value"], cleaned["low"], cleaned["high"]
        rows.append(("cleaned", milliseconds(original * part), f"{part:.1%}", f"{low:.1%} to {high:.1%}"))
    if found["tries"]:
        rows.append(("predicted", milliseconds(original * predicted), f"{predicted:.1%}", ""))
        rows.append(("measured", milliseconds(original * value), f"{value:.1%}", interval))
    layers = found["layers"]
    yield heading("latency", f"on {found['provider']}")
    yield table(left("") + right("median", "of the original", "95% interval"), rows)
    if not found["tries"]:
        yield paragraph("The limit holds as it is: no channels are removed for it.", FAINT)
        return
    yield paragraph(
        f"{count(layers['measured'], 'layer')} measured, {layers['known']} taken from earlier measurements;"
        f" {count(len(found['tries']), 'plan')} measured as a whole."
        f" The kept channels have {found['importance_kept']:.1%} of the importance.",
        FAINT,
    )


def operator_tables(operators: Sequence[Operator]) -> Tables:
    """Show what is known of operators, and their counts."""
    rows = (
        (o.name, Text(o.state, _STATES[o.state][1]), o.family or "", " ".join(o.facets), o.remarks) for o in operators
    )
    yield table(left("operator", "", "family", "facets") + flexible(""), rows)
    counts = count_states(operators)
    text = ", ".join(f"{counts[state]} {phrase}" for state, (phrase, _) in _STATES.items() if state in counts)
    yield heading(f"{count(len(operators), 'operator')}: {text}")


def _blocks(summary: PlanSummary) -> str:
    return f"{count(len(summary.blocks), 'residual block')}: {', '.join(summary.blocks)}"


def _states(summary: ModelSummary | PlanSummary) -> Tables:
    """Show the shapes of states, if there are any, and why some stay as they are."""
    if not summary.states:
        return
    yield heading("states", "inputs and outputs that are fed back")
    before, after = ("before", "after") if isinstance(summary, PlanSummary) else ("shape", "")
    columns = flexible("input", "output") + left(before) + (left(after) if after else [])
    held = flexible("stays because") if any(s.held for s in summary.states) else []
    rows = (
        (
            *(Name(s.input), Name(s.output), dims(s.before)),
            *([dims(s.after)] if after else []),
            *([line((s.held.code, CODE), f" {s.held.node}: {s.held.reason}") if s.held else ""] if held else []),
        )
        for s in summary.states
    )
    yield table(columns + held, rows)


def _at(inputs: Mapping[str, Shape]) -> str:
    """Return the input sizes at which costs are counted."""
    return "at " + ", ".join(f"{name} {dims(shape)}" for name, shape in inputs.items())


def _port(direction: str, port: Port, at: Shape | None) -> Sequence[Cell]:
    shape = "?" if port.dims is None else dims(port.dims)
    assumed = f"taken as {dims(at)}" if at and shape != dims(at) else ""
    return direction, Name(port.name), port.type, shape, assumed


def _reach(reach: Reach) -> Text:
    """Write what can be removed of some channels in a few characters."""
    parts = [group_tag(g) for g in reach.groups[:3]]
    parts += [Text(f"+{len(reach.groups) - 3}", GROUP)] if len(reach.groups) > 3 else []
    parts += [Text(code, CODE) for code in reach.pins[:2]]
    return Text(" ").join(parts) if parts else Text("-", FAINT)


def _group_table(figures: Sequence[str], rows: Iterable[tuple[Group, str, str, str]], labels: Labels) -> RenderableType:
    """Return a table of groups with three figures each."""
    cells: Rows = (
        (group_tag(group.index), labels.name(group.name), *values, Text("" if group.exact else "approximate", CODE))
        for group, *values in rows
    )
    return table(left("") + flexible("made by") + right(*figures) + left(""), cells)
