"""Reports as tables for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from onnx import ModelProto
from rich.console import RenderableType
from rich.text import Text

from onnxprune.errors import CATALOGUE, CodeInfo
from onnxprune.report.comparison import OutputDistance, Port, inputs_of, outputs_of
from onnxprune.report.coupling import Axis, Coupled, Held, HeldAxis
from onnxprune.report.index import Reach
from onnxprune.report.layout import (
    BAD,
    CODE,
    FAINT,
    GOOD,
    GROUP,
    Kind,
    Name,
    heading,
    line,
    paragraph,
    stack,
    table,
)
from onnxprune.report.operators import Operator
from onnxprune.report.summary import ModelSummary, PlanSummary
from onnxprune.report.text import count
from onnxprune.report.units import change, dims, percent, share, si
from onnxprune.trace import Group
from onnxprune.trace.values import Shape
from onnxprune.verify import Verification

_COSTS = {
    "params": ("parameters", ""),
    "macs": ("MACs", ""),
    "size": ("weights", "B"),
    "memory": ("activations, peak", "B"),
}
_MANY = 6  # so many partners of a group, or reasons of an axis, are told one by one
_LONG = 6  # a path of more nodes loses its middle


def costs(summary: PlanSummary, files: tuple[int, int] | None = None) -> RenderableType:
    """Tabulate costs before and after, and the bytes of the files if they are given."""
    old, new = summary.before.totals(), summary.after.totals()
    rows = [(label, old[key], new[key], unit) for key, (label, unit) in _COSTS.items()]
    if files is not None:
        rows.append(("file", *files, "B"))
    columns: list[tuple[str, Kind]] = [("", "word"), ("before", "number"), ("after", "number")]
    return stack(
        heading("cost", _at(summary.inputs)),
        table(
            [*columns, ("change", "number")],
            [(label, si(a, u), si(b, u), change(a, b)) for label, a, b, u in rows],
        ),
    )


def group_changes(summary: PlanSummary) -> RenderableType:
    """Tabulate what a plan does to each group."""
    changed = [c for c in summary.groups if c.removed]
    rest = len(summary.groups) - len(changed)
    rows = (
        (
            _group(c.group),
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
        table(
            [
                *(("", "word"), ("made by", "name"), ("units", "number"), ("kept", "number")),
                *(("change", "number"), ("", "word")),
            ],
            rows,
        ),
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
    return paragraph(text)


def what_stays(summary: ModelSummary, hint: str = "", first: int | None = None) -> RenderableType:
    """Tabulate why channels can't leave, or the first so many reasons."""
    params = summary.cost.params
    rows = (
        (
            Text(pin.code, CODE),
            CATALOGUE[pin.code].title,
            str(len(pin.layers)),
            percent(share(pin.held, params)),
            percent(share(pin.locked, params)),
            Name(pin.layers[0]),
        )
        for pin in summary.pins[:first]
    )
    columns: list[tuple[str, Kind]] = [("", "word"), ("reason", "text"), ("layers", "number")]
    columns += [("holds", "number"), ("locks", "number"), ("for example", "name")]
    prunable = percent(share(summary.prunable, params))
    return stack(
        heading("what stays, and why", hint),
        table(columns, rows) if summary.pins else paragraph("Nothing: every channel can leave."),
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
    return stack(
        heading(path, f"IR {proto.ir_version}, opset {opsets}, {producer}, {nodes}"),
        table(
            [("", "word"), ("", "name"), ("", "word"), ("", "word"), ("", "word")],
            [
                *(_port("input", p, summary.inputs.get(p.name)) for p in inputs_of(proto)),
                *(_port("output", p, None) for p in outputs_of(proto)),
            ],
        ),
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
        table(
            [
                *(("node", "name"), ("operator", "word"), ("weight", "word"), ("output", "word")),
                *(("params", "number"), ("MACs", "number"), ("channels", "word")),
            ],
            rows,
        ),
    )


def groups(summary: ModelSummary) -> RenderableType:
    """Tabulate the groups of a model."""
    rows = (
        (
            _group(g.group),
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
        table(
            [
                *(("", "word"), ("made by", "name"), ("units", "number"), ("nodes", "number")),
                *(("params", "number"), ("", "word")),
            ],
            rows,
        ),
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
        table([("", "word"), ("", "number")], rows),
    )


def node_channels(label: str, axes: Sequence[Axis]) -> RenderableType:
    """Tell of every set of a node's channels who shares it, or what pins it."""
    if not axes:
        nothing = "No channels: its inputs and outputs hold positions only, or are computed from sizes."
        return stack(heading(label), paragraph(nothing))
    return stack(heading(label), *(part for axis in axes for part in _axis(axis)))


def held_axes(code: str, axes: Sequence[HeldAxis]) -> RenderableType:
    """Tabulate the weights' axes that a reason pins."""
    rows = (
        (
            Name(axis.nodes[0]),
            Name(axis.place.tensor),
            str(axis.place.axes[0]),
            f"{axis.channels} of {axis.size}",
            Name("; ".join(f"{p.node}: {p.reason}" for p in axis.pins[:2]) or "the only unit"),
        )
        for axis in axes
    )
    return stack(
        heading(f"{code} {CATALOGUE[code].title}"),
        table(
            [
                *(("node", "name"), ("weight", "name"), ("axis", "number")),
                *(("channels", "number"), ("pinned by", "name")),
            ],
            rows,
        ),
    )


def catalogue_entry(code: str, info: CodeInfo) -> RenderableType:
    """Tell what a code means."""
    return stack(heading(f"{code} {info.title}"), paragraph(info.explanation))


def operator_table(operators: Sequence[Operator]) -> RenderableType:
    """Tabulate what is known of operators, and count them."""
    styles = {"rule": GOOD, "left alone": CODE, "unknown": BAD}
    rows = ((o.name, Text(o.state, styles[o.state]), o.family or "", o.note or "") for o in operators)
    states = [o.state for o in operators]
    counts = (f"{states.count(s)} {phrase}" for s, phrase in _STATES.items() if s in states)
    return stack(
        table([("operator", "word"), ("", "word"), ("family", "word"), ("", "text")], rows),
        heading(f"{count(len(operators), 'operator')}: {', '.join(counts)}"),
    )


_STATES = {
    "rule": "with a rule",
    "left alone": "deliberately left alone",
    "unknown": "unknown (what touches them stays as it is)",
}


def _at(inputs: Mapping[str, Shape]) -> str:
    """Tell at which input sizes costs are counted."""
    return "at " + ", ".join(f"{name} {dims(shape)}" for name, shape in inputs.items())


def _proof(verification: Verification) -> RenderableType:
    v = verification
    origin = "your inputs" if v.seed is None else f"generated inputs, seed {v.seed}"
    rows = [(Name(o.name), f"{o.error:.2g}", f"{o.change:.2g}") for o in v.outputs]
    outcome = ("proved right", GOOD) if v.passed else ("NOT right", BAD)
    meaning = (
        f": on {origin}, the pruned model computes what the original computes with the removed weights"
        f" set to zero, up to {v.error:.2g} of an output's largest value; {v.tolerance:.2g} is allowed."
    )
    columns: list[tuple[str, Kind]] = [("output", "name"), ("error", "number")]
    return stack(
        heading("verification"),
        table([*columns, ("change by pruning", "number")], rows),
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
    columns: list[tuple[str, Kind]] = [("output", "name"), ("difference", "number")]
    return stack(
        heading("comparison", "difference relative to the original's largest value"),
        table([*columns, ("cosine", "number"), ("", "word")], rows),
        paragraph(
            "The interface is intact. That the outputs are right isn't proved: for that, the plan is needed (--plan)."
        ),
    )


def _port(what: str, port: Port, at: Shape | None) -> tuple[str, Name, str, str, str]:
    shape = "?" if port.dims is None else dims(port.dims)
    assumed = at is not None and shape != dims(at)
    return what, Name(port.name), port.type, shape, f"taken as {dims(at)}" if at and assumed else ""


def _axis(axis: Axis) -> Iterator[RenderableType]:
    places = ", ".join(f"{p.tensor} axis {'x'.join(map(str, p.axes))}" for p in axis.places)
    yield line("\n  ", (f"{count(axis.size, f'{axis.role} channel')}", "bold"), (f"  {places}", FAINT))
    for coupled in axis.coupled:
        yield from _coupled(coupled)
    for held in axis.held[:_MANY]:
        yield from _held(held)
    if len(axis.held) > _MANY:
        yield _indented(f"and {count(len(axis.held) - _MANY, 'more reason')}", FAINT)


def _coupled(coupled: Coupled) -> Iterator[RenderableType]:
    group = coupled.group
    kind = "" if group.exact else f", approximate: {group.approximations[0].reason}"
    yield _indented(
        line(
            f"{coupled.channels} can leave, in group ",
            _group(group),
            f" ({count(len(group.units), 'unit')}, {count(len(group.nodes), 'node')}{kind})",
        )
    )
    for partner in coupled.partners[:_MANY]:
        over = f" over {_path(partner.path)}" if partner.path else ""
        yield _indented(f"with those that {partner.node} makes{over}", deeper=True)
    if len(coupled.partners) > _MANY:
        yield _indented(f"and {count(len(coupled.partners) - _MANY, 'more node')}", FAINT, deeper=True)
    makers = {group.name, *(p.node for p in coupled.partners)}
    readers = [n for n in group.nodes if n not in makers]
    if readers:
        more = f" and {len(readers) - _MANY} more" if len(readers) > _MANY else ""
        yield _indented(f"also in {', '.join(readers[:_MANY])}{more}", FAINT, deeper=True)


def _held(held: Held) -> Iterator[RenderableType]:
    pin = held.pin
    yield _indented(line(f"{held.channels} can't leave: ", (pin.code, CODE), f" {pin.node}: {pin.reason}"))
    if held.path:
        yield _indented(f"over {_path(held.path)}", FAINT, deeper=True)
    if pin.hint:
        yield _indented(f"help: {pin.hint}", FAINT, deeper=True)


def _path(path: Sequence[str]) -> str:
    if len(path) <= _LONG:
        return " → ".join(path)
    half = _LONG // 2
    return " → ".join([*path[:half], f"({len(path) - 2 * half} more)", *path[-half:]])


def _indented(text: str | Text, style: str = "", *, deeper: bool = False) -> RenderableType:
    return paragraph(text, style, indent=6 if deeper else 4)


def _reach(reach: Reach) -> Text:
    """Write what can leave of some channels in a few characters."""
    parts = [Text(f"g{g}", GROUP) for g in reach.groups[:3]]
    parts += [Text(f"+{len(reach.groups) - 3}", GROUP)] if len(reach.groups) > 3 else []
    parts += [Text(code, CODE) for code in reach.pins[:2]]
    return Text(" ").join(parts) if parts else Text("-", FAINT)


def _group(group: Group) -> Text:
    return Text(f"g{group.index}", GROUP)


def _kind(group: Group) -> Text:
    return Text("") if group.exact else Text("approximate", CODE)
