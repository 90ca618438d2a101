"""What is known of every operator: its rule, or why it is left alone, or that it is unknown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from onnx import defs

from onnxprune.operators.card import Card, cards

State = Literal["rule", "left alone", "unknown"]

_BODY = "has a body, which runs as a graph of its own: channels that it reads are never removed (OP207)"
_SUBGRAPHS = (defs.OpSchema.AttrType.GRAPH, defs.OpSchema.AttrType.GRAPHS)


@dataclass(frozen=True, slots=True)
class Operator:
    """What is known of an operator.

    Attributes:
        name: its type, with its domain in front unless that is ai.onnx.
        state: "rule", "left alone" or "unknown".
        family: the family of its rule, None without one.
        note: what the rule says or why the operator is left alone, in one line; None if it is unknown.
        rewrites: whether attributes or parameters are adapted when channels are removed.
    """

    name: str
    state: State
    family: str | None = None
    note: str | None = None
    rewrites: bool = False


def operators() -> tuple[Operator, ...]:
    """Return every operator of ai.onnx that isn't deprecated, and those of other domains that have a rule."""
    table = dict(cards())
    schemas = {s.name: s for s in defs.get_all_schemas() if s.domain == "" and not s.deprecated}
    names = sorted({*schemas, *table}, key=lambda name: (":" in name, name))
    return tuple(_operator(name, schemas.get(name), table.get(name)) for name in names)


def count_states(operators: Iterable[Operator]) -> Mapping[str, int]:
    """Return the number of operators in each state that occurs, by state in alphabetical order."""
    return dict(sorted(Counter(operator.state for operator in operators).items()))


def _operator(name: str, schema: defs.OpSchema | None, card: Card | None) -> Operator:
    if card is not None and card.trace is not None:
        family = card.trace.__module__.rpartition(".")[2]
        note = (card.trace.__doc__ or card.trace.__name__).strip().splitlines()[0]
        return Operator(name, "rule", family, note, card.rewrite is not None)
    if card is not None:
        return Operator(name, "left alone", note=card.reasons.get("trace"))
    if schema is not None and any(a.type in _SUBGRAPHS for a in schema.attributes.values()):
        return Operator(name, "left alone", note=_BODY)
    return Operator(name, "unknown")
