"""Tables that explain a node's channels, a reason, an error code, and operators."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from onnxprune.errors import CATALOG
from onnxprune.report.coupling import Axis, Coupled, Held, HeldAxis, Role
from onnxprune.report.layout import (
    BAD,
    CODE,
    FAINT,
    GOOD,
    Name,
    Tables,
    count,
    flexible,
    group_tag,
    heading,
    left,
    line,
    paragraph,
    right,
    table,
)
from onnxprune.report.operators import Operator, count_states

_MANY = 6  # coupled nodes of a group, or reasons of an axis, that are listed
_LONG = 6  # nodes of a path; a longer one is shortened in the middle
_STATES = {
    "rule": ("with a rule", GOOD),
    "left alone": ("deliberately left alone", CODE),
    "unknown": ("unknown: channels that touch them are never removed", BAD),
}


def node_tables(node: str, op: str, axes: Sequence[Axis]) -> Tables:
    """Show for every set of a node's channels what it is coupled to, or what pins it."""
    yield heading(f'{op} "{node}"')
    if not axes:
        yield paragraph("No channels: its inputs and outputs have positions only, or are computed from sizes.")
    for axis in axes:
        places = ", ".join(f"{p.tensor} axis {'x'.join(map(str, p.axes))}" for p in axis.places)
        kind = "channel" if axis.role == "other" else f"{axis.role} channel"
        yield line("\n  ", (count(axis.size, kind), "bold"), (f"  {places}", FAINT))
        for coupled in axis.coupled:
            yield from _coupled(node, axis.role, coupled)
        for held in axis.held[:_MANY]:
            yield from _held(held)
        if len(axis.held) > _MANY:
            yield paragraph(f"and {count(len(axis.held) - _MANY, 'more reason')}", FAINT, indent=4)


def held_tables(code: str, axes: Sequence[HeldAxis]) -> Tables:
    """Show the weights' axes that a reason pins."""
    yield heading(f"{code} {CATALOG[code].title}")
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
    yield table(flexible("node", "weight") + right("axis", "channels") + flexible("pinned by"), rows)


def code_tables(code: str) -> Tables:
    """Show what a code means."""
    yield heading(f"{code} {CATALOG[code].title}")
    yield paragraph(CATALOG[code].explanation)


def operator_tables(operators: Sequence[Operator]) -> Tables:
    """Show what is known of operators, and their counts."""
    rows = ((o.name, Text(o.state, _STATES[o.state][1]), o.family or "", o.note or "") for o in operators)
    yield table(left("operator", "", "family") + flexible(""), rows)
    counts = count_states(operators)
    text = ", ".join(f"{counts[state]} {phrase}" for state, (phrase, _) in _STATES.items() if state in counts)
    yield heading(f"{count(len(operators), 'operator')}: {text}")


def _coupled(node: str, role: Role, coupled: Coupled) -> Tables:
    group = coupled.group
    kind = "" if group.exact else f", approximate: {group.approximations[0].reason}"
    size = f" ({count(len(group.units), 'unit')}, {count(len(group.nodes), 'node')}{kind})"
    yield paragraph(line(f"{coupled.channels:,} removable, in group ", group_tag(group.index), size), indent=4)
    rows = [(Name(p.node), _path(p.path) or "directly") for p in coupled.partners[:_MANY]]
    if rows:
        title = "also made by" if "output" in role else "made by"
        yield table(flexible(title, "coupled through"), rows, indent=6)
    if len(coupled.partners) > _MANY:
        yield paragraph(f"and {count(len(coupled.partners) - _MANY, 'more node')}", indent=6)
    listed = {node, *(p.node for p in coupled.partners)}
    others = [n for n in group.nodes if n not in listed]
    if others:
        more = f" and {len(others) - _MANY} more" if len(others) > _MANY else ""
        yield paragraph(f"also in {', '.join(others[:_MANY])}{more}", FAINT, indent=6)


def _held(held: Held) -> Tables:
    pin = held.pin
    yield paragraph(line(f"{held.channels:,} pinned: ", (pin.code, CODE), f" {pin.node}: {pin.reason}"), indent=4)
    if held.path and not pin.node.endswith(f'"{held.path[0]}"'):
        yield paragraph(f"through {_path(held.path)}", FAINT, indent=6)
    if pin.hint:
        yield paragraph(f"help: {pin.hint}", FAINT, indent=6)


def _path(path: Sequence[str]) -> str:
    if len(path) <= _LONG:
        return " → ".join(path)
    half = _LONG // 2
    return " → ".join([*path[:half], f"({len(path) - 2 * half} more)", *path[-half:]])
