"""Explanations for people: of a node's channels, of codes, of operators."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.text import Text

from onnxprune.errors import CATALOG, CodeInfo
from onnxprune.report.coupling import Axis, Coupled, Held, HeldAxis, Role
from onnxprune.report.layout import (
    BAD,
    CODE,
    FAINT,
    GOOD,
    Name,
    count,
    group_tag,
    heading,
    line,
    paragraph,
    stack,
    table,
)
from onnxprune.report.operators import Operator

_MANY = 6  # so many partners of a group, or reasons of an axis, are told one by one
_LONG = 6  # a path of more nodes loses its middle
_STATES = {
    "rule": "with a rule",
    "left alone": "deliberately left alone",
    "unknown": "unknown (what touches them stays as it is)",
}


def node_channels(node: str, op: str, axes: Sequence[Axis]) -> RenderableType:
    """Tell of every set of a node's channels who shares it, or what pins it."""
    label = f'{op} "{node}"'
    if not axes:
        nothing = "No channels: its inputs and outputs hold positions only, or are computed from sizes."
        return stack(heading(label), paragraph(nothing))
    return stack(heading(label), *(part for axis in axes for part in _axis(node, axis)))


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
        heading(f"{code} {CATALOG[code].title}"),
        table("node ~|weight ~|axis >|channels >|pinned by ~", rows),
    )


def catalog_entry(code: str, info: CodeInfo) -> RenderableType:
    """Tell what a code means."""
    return stack(heading(f"{code} {info.title}"), paragraph(info.explanation))


def operator_table(operators: Sequence[Operator]) -> RenderableType:
    """Tabulate what is known of operators, and count them."""
    styles = {"rule": GOOD, "left alone": CODE, "unknown": BAD}
    rows = ((o.name, Text(o.state, styles[o.state]), o.family or "", o.note or "") for o in operators)
    states = [o.state for o in operators]
    counts = (f"{states.count(s)} {phrase}" for s, phrase in _STATES.items() if s in states)
    return stack(
        table("operator||family|~", rows),
        heading(f"{count(len(operators), 'operator')}: {', '.join(counts)}"),
    )


def _axis(node: str, axis: Axis) -> Iterator[RenderableType]:
    places = ", ".join(f"{p.tensor} axis {'x'.join(map(str, p.axes))}" for p in axis.places)
    kind = "channel" if axis.role == "other" else f"{axis.role} channel"
    yield line("\n  ", (count(axis.size, kind), "bold"), (f"  {places}", FAINT))
    for coupled in axis.coupled:
        yield from _coupled(node, axis.role, coupled)
    for held in axis.held[:_MANY]:
        yield from _held(held)
    if len(axis.held) > _MANY:
        yield _indented(f"and {count(len(axis.held) - _MANY, 'more reason')}", FAINT)


def _coupled(node: str, role: Role, coupled: Coupled) -> Iterator[RenderableType]:
    group = coupled.group
    kind = "" if group.exact else f", approximate: {group.approximations[0].reason}"
    size = f" ({count(len(group.units), 'unit')}, {count(len(group.nodes), 'node')}{kind})"
    yield _indented(line(f"{coupled.channels:,} can leave, in group ", group_tag(group.index), size))
    rows = [(Name(p.node), _path(p.path) or "directly") for p in coupled.partners[:_MANY]]
    if rows:
        title = "also made by" if "output" in role else "made by"
        yield table(f"{title} ~|coupled over ~", rows, indent=6)
    if len(coupled.partners) > _MANY:
        yield _indented(f"and {count(len(coupled.partners) - _MANY, 'more node')}", deeper=True)
    told = {node, *(p.node for p in coupled.partners)}
    others = [n for n in group.nodes if n not in told]
    if others:
        more = f" and {len(others) - _MANY} more" if len(others) > _MANY else ""
        text = f"also in {', '.join(others[:_MANY])}{more}"
        yield _indented(text, FAINT, deeper=True)


def _held(held: Held) -> Iterator[RenderableType]:
    pin = held.pin
    yield _indented(line(f"{held.channels:,} can't leave: ", (pin.code, CODE), f" {pin.node}: {pin.reason}"))
    if held.path and not pin.node.endswith(f'"{held.path[0]}"'):
        yield _indented(f"by way of {_path(held.path)}", FAINT, deeper=True)
    if pin.hint:
        yield _indented(f"help: {pin.hint}", FAINT, deeper=True)


def _path(path: Sequence[str]) -> str:
    if len(path) <= _LONG:
        return " → ".join(path)
    half = _LONG // 2
    return " → ".join([*path[:half], f"({len(path) - 2 * half} more)", *path[-half:]])


def _indented(text: str | Text, style: str = "", *, deeper: bool = False) -> RenderableType:
    return paragraph(text, style, indent=6 if deeper else 4)
