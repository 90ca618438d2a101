"""Tables of models, plans, comparisons and explanations for the console."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from onnxprune.channels.values import Shape
from onnxprune.cost.cost import Cost
from onnxprune.errors import CATALOG
from onnxprune.report.coupling import Axis, Coupled, Held, HeldAxis, Role
from onnxprune.report.index import Reach
from onnxprune.report.labels import PLAIN, Labels
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
from onnxprune.rewrite.comparison import Comparison, ModelHeader, Port
from onnxprune.rewrite.verify import Verification
from onnxprune.trace import Group

_COSTS = {
    "params": ("parameters", ""),
    "macs": ("MACs", ""),
    "size": ("weights", "B"),
    "memory": ("activations, peak", "B"),
}
_MANY = 6  # coupled nodes of a group, or reasons of an axis, that are listed
_LONG = 6  # nodes of a path; a longer one is shortened in the middle
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
    groups = (
        (
            g.group,
            f"{len(g.group.units)}" + (f" x {g.group.width}" if g.group.width > 1 else ""),
            str(len(g.group.nodes)),
            percent(share(g.params, params)),
        )
        for g in summary.groups
    )
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
    if summary.resized:
        yield paragraph(f"resized inside the model: {summary.resized}")
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


def comparison_tables(comparison: Comparison) -> Tables:
    """Show whether a pruned model is right, and how that was checked."""
    if comparison.changes:
        yield heading("interface")
        yield from map(paragraph, comparison.changes)
    elif comparison.verification is not None:
        yield from _verification(comparison.verification)
    elif comparison.distances is not None:
        yield from _distances(comparison)
        yield from map(paragraph, comparison.notes)
    else:
        yield heading("verification")
        yield paragraph("not proved: verification was skipped", CODE)


def proof_tables(proof: Verification | None, then: str = "") -> Tables:
    """Say in a line how the rewriting was proved, and list what couldn't be.

    Args:
        proof: the proof; None if it was skipped.
        then: what was done to the model after it.
    """
    yield line("")
    if proof is None:
        yield paragraph("not proved: verification was skipped", CODE)
        return
    partly = ("rewriting proved in part", CODE) if proof.unproved else ("rewriting proved", GOOD)
    meaning = f": error {proof.error:.2g}, allowed {proof.tolerance:.2g}{f'; then {then}' if then else ''}"
    yield paragraph(line(partly, meaning))
    yield from _gaps(proof)


def node_tables(node: str, op: str, axes: Sequence[Axis], labels: Labels = PLAIN) -> Tables:
    """Show for every set of a node's channels what it is coupled to, or what pins it."""
    yield heading(f'{op} "{labels.short(node)}"', labels.name(node).tag.strip())
    yield from labels.note()
    if not axes:
        yield paragraph("No channels: its inputs and outputs have positions only, or are computed from sizes.")
    for axis in axes:
        places = ", ".join(f"{p.tensor} axis {'x'.join(map(str, p.axes))}" for p in axis.places)
        kind = "channel" if axis.role == "other" else f"{axis.role} channel"
        yield line("\n  ", (count(axis.size, kind), "bold"), (f"  {places}", FAINT))
        for coupled in axis.coupled:
            yield from _coupled(node, axis.role, coupled, labels)
        for held in axis.held[:_MANY]:
            yield from _held(held, labels)
        if len(axis.held) > _MANY:
            yield paragraph(f"and {count(len(axis.held) - _MANY, 'more reason')}", FAINT, indent=4)


def held_tables(code: str, axes: Sequence[HeldAxis], labels: Labels = PLAIN) -> Tables:
    """Show the weights' axes that a reason pins, or what the code means if it pins none."""
    if not axes:
        yield from code_tables(code)
        yield paragraph("No weight of this model stays for this reason.")
        return
    yield heading(f"{code} {CATALOG[code].title}")
    yield from labels.note()
    rows = (
        (
            labels.name(axis.nodes[0]),
            Name(axis.place.tensor),
            str(axis.place.axes[0]),
            f"{axis.channels} of {axis.size}",
            Name("; ".join(f"{p.node}: {p.reason}" for p in axis.pins[:2]) or "the only unit"),
        )
        for axis in axes
    )
    yield table(flexible("node", "weight") + right("axis", "channels") + flexible("pinned by"), rows)


def code_tables(code: str) -> Tables:
    """Show what a code means."""
    yield heading(f"{code} {CATALOG[code].title}")
    yield paragraph(CATALOG[code].explanation)


def operator_tables(operators: Sequence[Operator]) -> Tables:
    """Show what is known of operators, and their counts."""
    rows = (
        (o.name, Text(o.state, _STATES[o.state][1]), o.family or "", " ".join(o.facets), o.remarks) for o in operators
    )
    yield table(left("operator", "", "family", "facets") + flexible(""), rows)
    counts = count_states(operators)
    text = ", ".join(f"{counts[state]} {phrase}" for state, (phrase, _) in _STATES.items() if state in counts)
    yield heading(f"{count(len(operators), 'operator')}: {text}")


def _verification(v: Verification) -> Tables:
    yield heading("verification")
    rows = [(Name(o.name), f"{o.error:.2g}", f"{o.change:.2g}" if isfinite(o.change) else "differs") for o in v.outputs]
    yield table(flexible("output") + right("error", "change by pruning"), rows)
    partly = ("proved right in part", CODE) if v.unproved else ("proved right", GOOD)
    outcome = partly if v.passed else ("NOT right", BAD)
    inputs = "your inputs" if v.seed is None else f"generated inputs, seed {v.seed}"
    if v.steps > 1:
        inputs += f", in {v.steps} steps that pass the states on"
    meaning = (
        f": compared with the original whose removed weights are set to zero, on {inputs}."
        f" Error {v.error:.2g}, allowed {v.tolerance:.2g}, relative to an output's largest value."
    )
    yield paragraph(line(outcome, meaning))
    yield from _gaps(v)


def _gaps(v: Verification) -> Tables:
    """Say what a reader of a proof must know, and which nodes it doesn't cover."""
    yield from map(paragraph, v.notes)
    if v.unproved:
        yield paragraph("The tensors above are where the part ends that ONNX Runtime's CPU provider runs. Not proved:")
        rows = [(Name(n.node), n.operator, n.cause) for n in v.unproved[:_MANY]]
        yield table(flexible("node", "operator", "why"), rows)
        if len(v.unproved) > _MANY:
            yield paragraph(f"and {count(len(v.unproved) - _MANY, 'more node')}", FAINT, indent=4)


def _distances(comparison: Comparison) -> Tables:
    yield heading("comparison", "difference relative to the original's largest value")
    rows = (
        (
            Name(d.name),
            f"{d.difference:.2g}",
            "-" if d.cosine is None else f"{d.cosine:.4f}",
            "" if d.sound else Text("another shape, or not finite", BAD),
        )
        for d in comparison.distances or ()
    )
    yield table(flexible("output") + right("difference", "cosine") + left(""), rows)
    outcome = ("The outputs agree", GOOD) if comparison.agree else ("The outputs differ", BAD)
    meaning = f"; {comparison.tolerance:.2g} is allowed. Nothing is proved: that needs the `plan`."
    yield paragraph(line(outcome, meaning))


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


def _coupled(node: str, role: Role, coupled: Coupled, labels: Labels) -> Tables:
    group = coupled.group
    kind = "" if group.exact else f", approximate: {group.approximations[0].reason}"
    size = f" ({count(len(group.units), 'unit')}, {count(len(group.nodes), 'node')}{kind})"
    yield paragraph(line(f"{coupled.channels:,} removable, in group ", group_tag(group.index), size), indent=4)
    rows = [(labels.name(p.node), _path(p.path, labels) or "directly") for p in coupled.partners[:_MANY]]
    if rows:
        title = "also made by" if "output" in role else "made by"
        yield table(flexible(title, "coupled through"), rows, indent=6)
    if len(coupled.partners) > _MANY:
        yield paragraph(f"and {count(len(coupled.partners) - _MANY, 'more node')}", indent=6)
    listed = {node, *(p.node for p in coupled.partners)}
    others = [n for n in group.nodes if n not in listed]
    if others:
        more = f" and {len(others) - _MANY} more" if len(others) > _MANY else ""
        yield paragraph(f"also in {', '.join(map(labels.short, others[:_MANY]))}{more}", FAINT, indent=6)


def _held(held: Held, labels: Labels) -> Tables:
    pin = held.pin
    yield paragraph(line(f"{held.channels:,} pinned: ", (pin.code, CODE), f" {pin.node}: {pin.reason}"), indent=4)
    if held.path and not pin.node.endswith(f'"{held.path[0]}"'):
        yield paragraph(f"through {_path(held.path, labels)}", FAINT, indent=6)
    if pin.hint:
        yield paragraph(f"help: {pin.hint}", FAINT, indent=6)


def _path(path: Sequence[str], labels: Labels) -> str:
    path = [labels.short(node) for node in path]
    if len(path) <= _LONG:
        return " → ".join(path)
    half = _LONG // 2
    return " → ".join([*path[:half], f"({len(path) - 2 * half} more)", *path[-half:]])
