"""A pruning plan as data: what is removed from which model, and how it was chosen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxprune import notebook
from onnxprune.cost.cost import cost
from onnxprune.errors import PlanError
from onnxprune.planning.residual_blocks import without_blocks
from onnxprune.settings.declare import declarations
from onnxprune.settings.planning import Policies
from onnxprune.settings.types import fits
from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.pruned_graph import PrunedGraph

FORMAT = 5  # 2 added residual blocks, 3 the resolution, 4 ranks and bases, 5 tokens; older plans change none of them
_FORMATS = (1, 2, 3, 4, 5)


@dataclass(frozen=True, slots=True)
class Moves:
    """What is changed of a network before channels are removed, in the order in which it is done.

    Attributes:
        resolution: height and width to which images are resized inside the model, or the number of frames that
            sequences have there, by input.
        ranks: the number of channels between the two layers that replace one, by its node.
        bases: orthogonal matrices as text (see `onnxprune.basis.reflections`), by a weight axis of the group of
            channels whose basis they change. This comes first: weights stay as they are where images are resized.
        tokens: rows and columns of patches that are one token behind a tensor, by its name. This comes after the
            resolution, which sets the number of patches, and before the ranks.
    """

    resolution: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    ranks: Mapping[str, int] = field(default_factory=dict)
    bases: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    tokens: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether anything is changed."""
        return self != Moves()

    def fields(self) -> dict[str, Any]:
        """Return the moves as JSON can hold them, by the names of a plan's fields."""
        return {
            "resolution": {name: list(size) for name, size in self.resolution.items()},
            "tokens": {name: list(block) for name, block in self.tokens.items()},
            "ranks": dict(self.ranks),
            "bases": {name: {str(axis): text for axis, text in axes.items()} for name, axes in self.bases.items()},
        }


@dataclass(frozen=True, slots=True, repr=False)
class PrunePlan:
    """What to remove from a model.

    Attributes:
        model: sha256 of the source model, hexadecimal.
        removed: positions to remove from the original, by initializer and axis, ascending. Along the second axis of a
            grouped convolution's weight positions count through all groups, as the convolution's inputs do.
        settings: how the plan was made: criterion, budget, constraints, seed.
        before: cost of the source model (params, macs, size, memory).
        after: predicted cost of the pruned model.
        inputs: the input sizes at which the costs were counted.
        blocks: names of the residual blocks to remove as a whole.
        resolution: height and width, or the number of frames, to which inputs are resized inside the model before
            anything is removed, by input.
        ranks: the number of channels between the two layers that replace one before anything is removed, by its node.
        bases: orthogonal matrices by a weight axis, as `Moves` has them.
        tokens: rows and columns of patches that are one token behind a tensor, by its name.
    """

    model: str
    removed: Mapping[str, Mapping[int, tuple[int, ...]]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    before: Mapping[str, int] = field(default_factory=dict)
    after: Mapping[str, int] = field(default_factory=dict)
    inputs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    blocks: tuple[str, ...] = ()
    resolution: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    ranks: Mapping[str, int] = field(default_factory=dict)
    bases: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    tokens: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Return what the plan does to the costs, and how many weights it slices."""
        blocks = f", {len(self.blocks)} blocks removed" if self.blocks else ""
        changes = (f"{n} {self.before[n]:,} -> {self.after[n]:,}" for n in ("macs", "params") if n in self.after)
        return f"PrunePlan({', '.join(changes)}; {len(self.removed)} weights sliced{blocks})"

    def _repr_html_(self) -> str:
        """Return a table of the costs before and after."""
        blocks = f", {len(self.blocks)} residual blocks removed" if self.blocks else ""
        note = f"{len(self.removed)} weights sliced{blocks}; digest {self.digest[:12]}"
        return notebook.costs("plan", self.before, self.after, note)

    def to_json(self) -> str:
        """Return the plan as JSON text."""
        removed = {
            name: {str(axis): list(positions) for axis, positions in axes.items()}
            for name, axes in self.removed.items()
        }
        document = {
            "format": FORMAT,
            "model_sha256": self.model,
            "settings": dict(self.settings),
            "cost": {"before": dict(self.before), "after": dict(self.after)},
            "inputs": {name: list(shape) for name, shape in self.inputs.items()},
            **self.moves.fields(),
            "blocks": list(self.blocks),
            "removed": removed,
        }
        return json.dumps(document, indent=1) + "\n"

    @property
    def moves(self) -> Moves:
        """What is changed before channels are removed."""
        return Moves(self.resolution, self.ranks, self.bases, self.tokens)

    @property
    def policies(self) -> Policies:
        """The policies with which the model must be traced for the plan to fit.

        Defaults replace missing and unknown values.
        """
        found: dict[str, Any] = {}
        for declared in declarations(Policies):
            value = self.settings.get(declared.name)
            if isinstance(value, list):
                value = tuple(tuple(v) if isinstance(v, list) else v for v in value)
            if fits(value, declared.kind):
                found[declared.name] = value
        return Policies(**found).settled()

    @property
    def digest(self) -> str:
        """Sha256 of the model and what is removed, hexadecimal."""
        removed = [
            [name, axis, list(positions)]
            for name, axes in sorted(self.removed.items())
            for axis, positions in sorted(axes.items())
        ]
        what: list[Any] = [self.model, removed, *([sorted(self.blocks)] if self.blocks else [])]
        what += [sorted(self.resolution.items())] if self.resolution else []
        what += [["ranks", sorted(self.ranks.items())]] if self.ranks else []
        what += [["bases", [[n, sorted(axes.items())] for n, axes in sorted(self.bases.items())]]] if self.bases else []
        what += [["tokens", sorted(self.tokens.items())]] if self.tokens else []
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()

    @classmethod
    def from_json(cls, text: str | bytes, where: str | None = None) -> PrunePlan:
        """Read a plan.

        Args:
            text: JSON text as `to_json` returns it.
            where: the file, for the error.

        Raises:
            PlanError: the text isn't a plan (OP305).
        """
        try:
            document = json.loads(text)
            if document["format"] not in _FORMATS:
                raise PlanError(
                    "OP305",
                    f"plan format {document['format']!r} is unknown; this version reads {FORMAT} and older",
                    where=where,
                )
            return cls(
                model=str(document["model_sha256"]),
                removed={
                    str(name): {int(a): tuple(map(_position, p)) for a, p in axes.items()}
                    for name, axes in document["removed"].items()
                },
                settings=dict(document["settings"]),
                before=dict(document["cost"]["before"]),
                after=dict(document["cost"]["after"]),
                inputs={n: tuple(map(_position, s)) for n, s in document["inputs"].items()},
                blocks=tuple(map(str, document["blocks"] if document["format"] > 1 else ())),
                resolution={n: _size(s) for n, s in (document["resolution"] if document["format"] > 2 else {}).items()},
                ranks={str(n): _rank(r) for n, r in (document["ranks"] if document["format"] > 3 else {}).items()},
                bases={
                    str(name): {_position(int(axis)): str(text) for axis, text in axes.items()}
                    for name, axes in (document["bases"] if document["format"] > 3 else {}).items()
                },
                tokens={str(n): _block(b) for n, b in (document["tokens"] if document["format"] > 4 else {}).items()},
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            hint = "make one with the command `plan MODEL -o PLAN.json`"
            cause = f"not a pruning plan ({type(error).__name__}: {error})"
            raise PlanError("OP305", cause, where=where, hint=hint) from error


def _position(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} isn't a position")
    return value


def _rank(value: Any) -> int:
    if _position(value) < 1:
        raise ValueError(f"{value!r} isn't a rank")
    return int(value)


def _block(value: Any) -> tuple[int, int]:
    rows, columns = _size(value)
    return rows, columns


def _size(value: Any) -> tuple[int, ...]:
    size = tuple(map(_position, value))
    if not (0 < len(size) <= 2 and all(size)):
        raise ValueError(f"{value!r} isn't a size")
    return size


def plan_of(kept: PrunedGraph, model: str, settings: Mapping[str, Any]) -> PrunePlan:
    """Return the plan that removes what is missing from a traced model.

    Args:
        kept: the traced model without what leaves.
        model: sha256 of the source model.
        settings: how the choice was made.
    """
    return PrunePlan(
        model=model,
        removed={
            name: {axis: tuple(gone.tolist()) for axis, gone in axes.items()} for name, axes in kept.positions().items()
        },
        settings=settings,
        before=cost(PrunedGraph(kept.original)).totals(),
        after=cost(kept).totals(),
        inputs=kept.graph.shapes.inputs,
        blocks=tuple(block.name for block in kept.blocks),
    )


def apply_plan(graph: ChannelGraph, plan: PrunePlan) -> PrunedGraph:
    """Apply a plan to a traced model.

    Args:
        graph: the traced model.
        plan: a plan for it.

    Returns:
        The traced model without the plan's blocks and units.

    Raises:
        PlanError: the plan names what the model doesn't have, or what can't be removed (OP307).
        RewriteError: what remains of a weight isn't a rectangle (OP401).
    """
    whole = without_blocks(graph, plan.blocks)
    graph = whole.graph
    removed = np.zeros(len(graph.pinned), dtype=bool)
    for name, axes in plan.removed.items():
        for axis, positions in axes.items():
            ids = graph.slots.get((name, axis))
            if ids is None or (positions and max(positions) >= len(ids)):
                raise PlanError("OP307", "the plan removes what the model doesn't have", where=f'"{name}" axis {axis}')
            units = graph.unit_of[ids[list(positions)]]
            if graph.pinned[units].any():
                pin = graph.pins(int(units[graph.pinned[units]][0]))[0]
                cause = f"the plan removes channels that can't be removed: {pin.reason} ({pin.code})"
                raise PlanError("OP307", cause, where=f'"{name}" axis {axis}')
            removed[units] = True
    kept = whole.without(removed)
    for name, gone_axes in kept.positions().items():
        for axis, gone in gone_axes.items():
            if set(gone.tolist()) != set(plan.removed.get(name, {}).get(axis, ())):
                cause = "the plan removes channels without those that are coupled to them"
                raise PlanError("OP307", cause, where=f'"{name}" axis {axis}')
    if not graph.balanced(removed):
        raise PlanError("OP307", "the plan removes more from one group of a convolution than from another")
    for (name, axis), ids in graph.slots.items():
        if removed[graph.unit_of[ids]].all():
            raise PlanError("OP307", "the plan leaves nothing of a layer", where=f'"{name}" axis {axis}')
    return kept
