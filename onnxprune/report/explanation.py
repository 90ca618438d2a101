"""Tables that explain why channels are coupled or pinned."""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.errors import CATALOG
from onnxprune.report.coupling import Axis, Coupled, Held, HeldAxis, Role
from onnxprune.report.labels import PLAIN, Labels
from onnxprune.report.layout import (
    CODE,
    FAINT,
    Name,
    Tables,
    count,
    flexible,
    group_tag,
    heading,
    line,
    paragraph,
    right,
    table,
)

_MANY = 6  # coupled nodes of a group, or reasons of an axis, that are listed
_LONG = 6  # nodes of a path; a longer one is shortened in the middle


def node_tables(
    node: str, op: str, axes: Sequence[Axis], labels: Labels = PLAIN, rank: int | str | None = None
) -> Tables:
    """Show for every set of a node's channels what it is coupled to, or what pins it.

    Args:
        node: the node.
        op: its operator.
        axes: the sets of its channels.
        labels: how nodes are called.
        rank: the largest rank at which it is cheaper as two layers, or why it isn't; None if it has no weights.
    """
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
    if isinstance(rank, int):
        yield paragraph(f"It may become two layers by rank, with at most {count(rank, 'channel')} between.")
    elif rank is not None:
        yield paragraph(f"It can't become two layers by rank: {rank}.")


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
            "; ".join(f"{p.node}: {p.reason}" if p.node else p.reason for p in axis.pins[:2]) or "the only unit",
        )
        for axis in axes
    )
    yield table(flexible("node", "weight") + right("axis", "channels") + flexible("pinned by"), rows)


def code_tables(code: str) -> Tables:
    """Show what a code means."""
    yield heading(f"{code} {CATALOG[code].title}")
    yield paragraph(CATALOG[code].explanation)


def _coupled(node: str, role: Role, coupled: Coupled, labels: Labels) -> Tables:
    group = coupled.group
    kind = "" if group.exact else f", approximate: {group.approximations[0].reason}"
    size = f" ({count(len(group.units), 'unit')}, {count(len(group.nodes), 'node')}{kind})"
    yield paragraph(line(f"{coupled.channels:,} removable, in group ", group_tag(group.index), size), indent=4)
    basis = "can be changed" if coupled.fixed is None else f"stays: {coupled.fixed}"
    yield paragraph(f"basis {basis}", FAINT, indent=6)
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
