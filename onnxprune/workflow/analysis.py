"""Load and trace a model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from onnx import ModelProto

from onnxprune.basis.rotate import Rotated, rotate
from onnxprune.cost.cost import Cost, cost, stored_weights
from onnxprune.errors import PlanError
from onnxprune.model.file import Model, Source, load, outline
from onnxprune.model.states import mark, state_inputs
from onnxprune.model.stream import Inputs
from onnxprune.normalize import normalize
from onnxprune.planning.plan import Moves, PrunePlan
from onnxprune.rank.factors import Factored, factor
from onnxprune.resolution.resize import Resized, resize
from onnxprune.settings import DataSettings
from onnxprune.settings.declare import given
from onnxprune.settings.planning import Policies
from onnxprune.settings.reading import either
from onnxprune.shapes import concretize
from onnxprune.shapes.inputs import sizes_in
from onnxprune.tokens.merge import Merged, merge
from onnxprune.trace import ChannelGraph, retrace, trace
from onnxprune.trace.pruned_graph import PrunedGraph
from onnxprune.trace.states import find_states
from onnxprune.workflow.genai import config_beside
from onnxprune.workflow.inputs import first_inputs, freed, opens, transformed

log = logging.getLogger(__name__)

Change = Rotated | Resized | Merged | Factored
"""A network changed as a whole before channels are removed: one link of the chain of proofs."""


@dataclass(frozen=True, slots=True, repr=False)
class TracedModel:
    """A loaded and traced model.

    Attributes:
        model: the loaded model, without the data of its weights.
        graph: its channel dependencies; ``graph.proto`` is the normalized model.
        moves: what was changed of it before it was traced.
        changes: the changed models, each with what was done to the one before, the first to the original.
        whole: the model before all changes; None without any.
    """

    model: Model
    graph: ChannelGraph
    moves: Moves = field(default_factory=Moves)
    changes: tuple[Change, ...] = ()
    whole: TracedModel | None = None

    @property
    def original(self) -> ModelProto:
        """The normalized model, before all changes."""
        return self.graph.proto if self.whole is None else self.whole.graph.proto

    @property
    def teacher(self) -> ModelProto | None:
        """The model whose inner tensors a repaired one should have, if that isn't the traced one."""
        merged = next((c.teacher for c in self.changes if isinstance(c, Merged)), None)
        return merged or next((c.original for c in self.changes if isinstance(c, Factored)), None)

    def cheaper(self, kept: PrunedGraph) -> Moves:
        """Return the moves without those that save nothing any more once channels left.

        Args:
            kept: the traced model, and what was removed from it.
        """
        factored = next((c for c in self.changes if isinstance(c, Factored)), None)
        return self.moves if factored is None else replace(self.moves, ranks=factored.cheaper(kept))

    def __repr__(self) -> str:
        """Return the model, and the number of groups and of units that can be removed."""
        return f"TracedModel({self.model}, {len(self.graph.groups)} groups, {self.graph.unit_count:,} units)"

    @property
    def normalized(self) -> Model:
        """The normalized model, as one in the original's folder."""
        return replace(self.model, proto=self.graph.proto)

    @property
    def cost(self) -> Cost:
        """The cost of the model as it was loaded: weights that nothing reads, which cleaning removes, count, too."""
        if self.whole is not None:
            return self.whole.cost
        cleaned = cost(PrunedGraph(self.graph))
        params, size = stored_weights(self.model.proto.graph)
        return replace(cleaned, params=max(cleaned.params, params), size=max(cleaned.size, size))


def analyze(
    source: Source | TracedModel,
    input_shapes: Mapping[str, Sequence[int] | int] | None = None,
    *,
    policies: Policies | None = None,
    plan: PrunePlan | None = None,
    inputs: Inputs | None = None,
    data: DataSettings | None = None,
    transform: str | Callable[[Any], Any] | None = None,
    consume: bool = False,
    in_batches: bool = False,
    **options: Any,
) -> TracedModel:
    """Load a model and trace its channel dependencies.

    Args:
        source: a path, bytes, a ModelProto or an onnx-graphsurgeon graph. A traced model is returned, at the resolution
            of the plan if there is one.
        input_shapes: shapes of inputs with symbolic dimensions, by name, or sizes of symbolic dimensions, by theirs.
        policies: what is removed together; `options` are an alternative.
        plan: a plan for the model; its input shapes and policies are the defaults, and images get its resolution.
        inputs: an array for each input, which also set the shapes. Sizes that only values tell, such as the length of
            speech, are those for these arrays.
        data: data whose first sample serves instead of `inputs`; `input_shapes` may differ from its shapes.
        transform: a function on onnx-graphsurgeon graphs that the model passes through first, or "module:function".
        consume: whether `source`, if it is a Model, may be modified, which saves a copy of its weights.
        in_batches: whether a batch size that is fixed at 1 becomes symbolic where the results stay the same, so that
            samples of `data` run together; `onnxprune.shapes.batch.fix_batch` undoes it.
        **options: fields of `Policies`: attention, grouped, resize_states, ...

    Raises:
        ModelError: the model can't be read or understood.
        UsageError: an input shape doesn't fit.
        PlanError: a setting isn't allowed (OP303), the plan is for another model (OP306), or it was made with other
            settings (OP302); states can't be paired (OP316).
        DataError: the transformation fails (OP710).

    Examples:
        >>> import onnxprune as op
        >>> model = op.analyze("models/digits_resnet.onnx")
        >>> len(model.graph.groups)
        8
    """
    if isinstance(source, TracedModel):
        _check_plan(plan, source.model)
        return source if plan is None else moved(source, plan.moves)
    chosen = either(Policies, policies, options)
    model = load(source) if transform is None else transformed(source, transform)
    _check_plan(plan, model)
    if plan is not None:
        for name, value in given(chosen).items():
            planned = getattr(plan.policies, name)
            if value != planned:
                raise PlanError("OP302", f"`{name}` is {value}, but the plan was made with {planned}")
        chosen = plan.policies
    elif (chosen.resize_states or chosen.state) and config_beside(model.path) is not None:
        chosen = replace(chosen, kv_uniform=True)
    if plan is not None:
        input_shapes = {**plan.inputs, **(input_shapes or {})}
    known = outline(model)
    proto = normalize(model.proto, consume=consume or model is not source)
    del model
    if in_batches and opens(data) and not (chosen.resize_states or chosen.state):
        proto = freed(proto)
    sizes = dict(input_shapes or {})
    if inputs is not None:
        sizes = {name: array.shape for name, array in inputs.items()} | sizes
    if (chosen.resize_states or chosen.state) and not state_inputs(proto):  # data needn't have states
        states = find_states(proto, concretize(proto, sizes, inputs), chosen)
        mark(proto, [(state.input, state.output) for state in states])
    if inputs is None and data is not None and (inputs := first_inputs(data, replace(known, proto=proto))) is not None:
        sizes |= sizes_in(inputs, proto.graph, sizes)
    graph = trace(proto, shapes=concretize(proto, sizes, inputs), policies=chosen)
    for note in graph.shapes.notes:
        log.info("note: %s", note)
    log.debug("traced %d nodes: %d groups of channels", len(proto.graph.node), len(graph.groups))
    found = TracedModel(known, graph)
    return found if plan is None else moved(found, plan.moves)


def moved(source: TracedModel, moves: Moves) -> TracedModel:
    """Return a traced model with some changes, and no others.

    Raises:
        PlanError: an input is no image, or something needs the size that it has (OP319); a tensor isn't one of tokens
            (OP307), or something needs all of them (OP320); a layer can't be two, or isn't cheaper so (OP307); a basis
            isn't one of a group (OP307), or no orthogonal matrix (OP305).
    """
    if moves == source.moves:
        return source
    whole = source.whole or source
    if not moves:
        return whole
    graph, changes = whole.graph, list[Change]()
    if moves.bases:
        rotated = rotate(graph, moves.bases)
        changes.append(rotated)
        # Other weights alone flow as those before.
        graph = retrace(rotated.proto, graph) if rotated.folds else replace(graph, proto=rotated.proto)
    if moves.resolution:
        changes.append(resize(graph.proto, graph.shapes, moves.resolution, outputs=graph.policies.resize_outputs))
        graph = retrace(changes[-1].proto, graph)
    if moves.tokens:
        changes.append(merge(graph.proto, graph.shapes, moves.tokens))
        graph = retrace(changes[-1].proto, graph)
    if moves.ranks:
        changes.append(factor(graph.proto, graph.shapes, moves.ranks))
        graph = retrace(changes[-1].proto, graph)
    return TracedModel(whole.model, graph, moves, tuple(changes), whole)


def at_resolution(source: TracedModel, sizes: Mapping[str, tuple[int, ...]]) -> TracedModel:
    """Return a traced model whose images are resized inside to other sizes, by input; without any, as they come.

    Raises:
        PlanError: an input is no image, or something needs the size that it has (OP319).
    """
    return moved(source, replace(source.moves, resolution=sizes))


def _check_plan(plan: PrunePlan | None, model: Model) -> None:
    if plan is not None and plan.model != model.sha256:
        hint = "make a new plan for this model"
        raise PlanError("OP306", "the plan was made for another model", where=plan.model[:12], hint=hint)
