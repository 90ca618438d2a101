"""What is known of every operator: its facets, or the reasons why they are missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from onnx import defs

from onnxprune.autodiff.prepare import differentiable
from onnxprune.model.bodies import BODY_INPUTS
from onnxprune.operators.card import Card, cards

State = Literal["rule", "left alone", "unknown"]

_NO_WEIGHTS = "it has no weights"


@dataclass(frozen=True, slots=True)
class Operator:
    """What is known of an operator.

    Attributes:
        name: its type, with its domain in front unless that is ai.onnx.
        state: "rule", "left alone" or "unknown".
        family: the family of its rule, None without one.
        note: what the rule says or why the operator is left alone, in one line; None if it is unknown.
        rewrites: whether attributes or parameters are adapted when channels are removed.
        counted: whether it has multiply-accumulates.
        trained: whether gradients pass through it.
        repaired: whether its weights are refitted by least squares.
        untrained: why gradients don't pass, None if they do or the operator is unknown.
        unrepaired: why its weights aren't refitted, likewise.
    """

    name: str
    state: State
    family: str | None = None
    note: str | None = None
    rewrites: bool = False
    counted: bool = False
    trained: bool = False
    repaired: bool = False
    untrained: str | None = None
    unrepaired: str | None = None

    @property
    def facets(self) -> list[str]:
        """What else is supported besides tracing."""
        named = {
            "rewritten": self.rewrites,
            "counted": self.counted,
            "trained": self.trained,
            "repaired": self.repaired,
        }
        return [name for name, known in named.items() if known]

    @property
    def remarks(self) -> str:
        """The note, and why it isn't trained or repaired, in one line."""
        missing = (("not trained", self.untrained), ("not repaired", self.unrepaired))
        why = [f"{what}: {reason}" for what, reason in missing if reason and reason != _NO_WEIGHTS]
        return "; ".join([(self.note or "").rstrip("."), *why])


def operators() -> tuple[Operator, ...]:
    """Return every operator of ai.onnx that isn't deprecated, and those of other domains that have a card."""
    table = {name: card for name, card in cards().items() if name != BODY_INPUTS}  # which no file contains
    standard = {s.name for s in defs.get_all_schemas() if s.domain == "" and not s.deprecated}
    names = sorted({*standard, *table}, key=lambda name: (":" in name, name))
    return tuple(_operator(name, table.get(name)) for name in names)


def count_states(operators: Iterable[Operator]) -> Mapping[str, int]:
    """Return the number of operators in each state that occurs, by state in alphabetical order."""
    return dict(sorted(Counter(operator.state for operator in operators).items()))


def markdown(every: Sequence[Operator]) -> str:
    """Return docs/operators.md: the totals, and a row for each operator."""
    traced = [o for o in every if o.state == "rule"]
    weighted = [o for o in traced if o.repaired or o.unrepaired != _NO_WEIGHTS]
    alone, unknown = (sum(o.state == state for o in every) for state in ("left alone", "unknown"))
    totals = [
        f"{len(every)} operators: {len(traced)} traced, {sum(o.rewrites for o in traced)} of them rewritten,",
        f"{alone} left alone, {unknown} unknown.",
        f"{sum(o.counted for o in every)} count multiply-accumulates, {sum(o.trained for o in traced)} can be trained,",
        f"{sum(o.repaired for o in traced)} of {len(weighted)} that sum over weights are repaired.",
    ]
    rows = [
        f"| `{o.name}` | {o.family or o.state} | {_mark(o.rewrites)} | {_mark(o.counted)} | {_mark(o.trained)} "
        f"| {_mark(o.repaired)} | {o.remarks} |"
        for o in every
    ]
    head = "| operator | family | rewritten | counted | trained | repaired | the rule, and why facets are missing |"
    return "\n".join(
        [
            "# Operators",
            "",
            "Written by `python -m benchmarks.operators`; the command `rules` prints the same. The columns are facets",
            "of a card, see [architecture](architecture.md).",
            "",
            *totals,
            "",
            head,
            "| --- | --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


def _mark(known: bool) -> str:
    return "yes" if known else ""


def _operator(name: str, card: Card | None) -> Operator:
    if card is not None and card.trace is not None:
        return Operator(
            name,
            "rule",
            card.trace.__module__.rpartition(".")[2],
            (card.trace.__doc__ or card.trace.__name__).strip().splitlines()[0],
            rewrites=card.rewrite is not None,
            counted=card.contracts or card.macs is not None,
            trained=differentiable(name),
            repaired=card.linear is not None,
            untrained=card.reasons.get("gradient"),
            unrepaired=None if card.linear else card.reasons.get("linear", _NO_WEIGHTS),
        )
    if card is not None:
        return Operator(name, "left alone", note=card.reasons.get("trace"))
    return Operator(name, "unknown")
