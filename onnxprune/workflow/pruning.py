"""Apply a plan: rewrite the model, check and prove the result, and repair it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune import notebook
from onnxprune.basis.rotate import Rotated, rotate
from onnxprune.data.marks import note_fitted
from onnxprune.errors import ModelError, UsageError, VerificationError
from onnxprune.model.file import Source, load
from onnxprune.model.metadata import write_notes
from onnxprune.model.resumable import Records
from onnxprune.model.states import KEY, StateInput, composed, state_inputs
from onnxprune.planning.plan import PrunePlan, apply_plan
from onnxprune.planning.signature import fingerprints, note_changes, sign
from onnxprune.progress import Progress, silent
from onnxprune.rank.factors import Factored
from onnxprune.rank.proof import prove_factored
from onnxprune.recover import Method, Repair, recover
from onnxprune.resolution.proof import prove_resized
from onnxprune.resolution.resize import Resized
from onnxprune.rewrite.comparison import Link
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.rewrite.sound import check_sound
from onnxprune.rewrite.steps import proof_inputs
from onnxprune.rewrite.verify import Verification, verify as hold_against
from onnxprune.settings import RepairSettings
from onnxprune.tokens.merge import Merged
from onnxprune.tokens.proof import prove_merged
from onnxprune.trace import ChannelGraph
from onnxprune.trace.pruned_graph import PrunedGraph, ResizedState
from onnxprune.workflow.analysis import TracedModel, analyze
from onnxprune.workflow.inputs import Samples, batches_of, dataset_of

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

log = logging.getLogger(__name__)

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, repr=False)
class Pruned:
    """A pruned model with its proof.

    Attributes:
        proto: the model.
        plan: what was removed.
        verification: the proof; None if it was skipped.
        kept: the traced original, and what was removed from it.
        teacher: the network whose inner tensors those of the model should be, if that isn't the traced one.
        links: the proofs of what was changed before channels were removed, in order; none if the proof was skipped.
    """

    proto: ModelProto
    plan: PrunePlan
    verification: Verification | None
    kept: PrunedGraph
    teacher: ModelProto | None = None
    links: tuple[Link, ...] = ()

    def __repr__(self) -> str:
        """Return the plan and the error of the proof."""
        return f"Pruned({self.plan!r}, {self._proof()})"

    def _repr_html_(self) -> str:
        """Return a table of the costs before and after, with the error of the proof."""
        return notebook.costs("pruned", self.plan.before, self.plan.after, self._proof())

    def _proof(self) -> str:
        found = self.verification
        return "not proved" if found is None else f"proved: error {found.error:.2g}, allowed {found.tolerance:.2g}"

    def to_graphsurgeon(self) -> gs.Graph:
        """Return the model as a new onnx-graphsurgeon graph."""
        return as_graphsurgeon(self.proto)


def as_graphsurgeon(model: Source) -> gs.Graph:
    """Return a model as an onnx-graphsurgeon graph.

    Raises:
        ModelError: the model can't be read or understood.

    Examples:
        >>> import onnxprune as op
        >>> graph = op.as_graphsurgeon("models/digits_resnet.onnx")
        >>> [tensor.name for tensor in graph.outputs]
        ['logits']
    """
    import onnx_graphsurgeon as gs

    return gs.import_onnx(load(model).proto)


def prune(
    model: Source | TracedModel,
    plan: PrunePlan,
    *,
    inputs: Arrays | None = None,
    check: bool = True,
    tolerance: float | None = None,
    seed: int = 0,
) -> Pruned:
    """Apply a plan and prove the result.

    Args:
        model: the model.
        plan: a plan for it.
        inputs: inputs for the proof; generated ones by default.
        check: whether to prove the result.
        tolerance: largest error allowed, see `verify`.
        seed: random seed of generated inputs.

    Returns:
        The pruned model; its metadata has the plan's digest and settings.

    Raises:
        PlanError: the plan is for another model (OP306) or doesn't fit it.
        RewriteError: the result isn't a valid model (OP403), or has other shapes than predicted (OP404).
        VerificationError: the pruned model isn't the masked original (OP501).

    Examples:
        >>> import onnxprune as op
        >>> model = op.analyze("models/digits_resnet.onnx")
        >>> small = op.prune(model, op.plan(model, ratio=0.5))
        >>> small.verification.passed
        True
    """
    analysis = analyze(model, plan=plan)
    kept = apply_plan(analysis.graph, plan)
    proto = rewrite(kept)
    check_sound(kept, proto)
    sign(proto, plan)
    for change in analysis.changes:
        if isinstance(change, Factored):  # decompositions differ from machine to machine in rounding and signs
            start = fingerprints(proto)
            note_changes(proto, {n: found for n, found in start.items() if n not in change.weights}, "rank")
    _note_states(proto, kept.states(), kept.graph.proto)
    log.debug("rewritten: %d nodes", len(proto.graph.node))
    if not check:
        return Pruned(proto, plan, None, kept, analysis.teacher)
    links = prove_moves(analysis, inputs=inputs, tolerance=tolerance, seed=seed)
    verification = prove(kept, proto, inputs=inputs, tolerance=tolerance, seed=seed)
    log.debug("proved: %s, error %.3g", verification.passed, verification.error)
    if not verification.passed:
        worst = max(verification.outputs, key=lambda o: o.error)
        cause = f"relative error {verification.error:.3g} exceeds {verification.tolerance:.3g}"
        hint = " ".join(verification.notes) or None
        raise VerificationError("OP501", cause, where=f'output "{worst.name}"', hint=hint)
    return Pruned(proto, plan, verification, kept, analysis.teacher, links)


def prove_moves(
    analysis: TracedModel, *, inputs: Arrays | None = None, tolerance: float | None = None, seed: int = 0
) -> tuple[Link, ...]:
    """Compare each changed network with what the one before is to compute.

    Args:
        analysis: the traced model.
        inputs: inputs for both; generated ones by default.
        tolerance: largest error allowed.
        seed: random seed of generated inputs.

    Returns:
        The proof of each change, in order.

    Raises:
        VerificationError: they differ (OP501).
        ModelError: ONNX Runtime can't run a model.
    """
    if analysis.whole is None:
        return ()
    feeds = proof_inputs(analysis.whole.graph, seed) if inputs is None else inputs
    before, links = analysis.original, list[Link]()
    for change in analysis.changes:
        match change:
            case Rotated():
                links.append(Link("change of basis", _prove_rotated(analysis.whole.graph, change, feeds, tolerance)))
            case Resized():
                links.append(Link("resizing", prove_resized(before, change, feeds, tolerance)))
            case Merged():
                links.append(Link("merging of tokens", prove_merged(before, change, feeds, tolerance)))
            case Factored():
                links.append(Link("lower ranks", prove_factored(before, change, feeds, tolerance)))
        log.debug("%s proved: %s, error %.2g", links[-1].what, change, links[-1].error)
        before = change.proto
    return tuple(links)


def _prove_rotated(graph: ChannelGraph, rotated: Rotated, inputs: Arrays, tolerance: float | None) -> float:
    """Return the largest difference of a network with other bases from the original."""

    def exact() -> ModelProto:
        return rotate(graph, rotated.bases, exact=True).proto

    found = hold_against(PrunedGraph(graph), rotated.proto, inputs, tolerance=tolerance, exact=exact)
    if not found.passed:
        cause = "the network in other bases isn't the original"
        cause += f": relative error {found.error:.3g} exceeds {found.tolerance:.3g}"
        raise VerificationError("OP501", cause, hint=" ".join(found.notes) or None)
    return found.error


def prove(
    kept: PrunedGraph,
    proto: ModelProto,
    *,
    inputs: Arrays | None = None,
    tolerance: float | None = None,
    seed: int = 0,
) -> Verification:
    """Compare a pruned model with its original, whose removed weights are set to zero.

    Args:
        kept: the traced model and what was removed from it.
        proto: the pruned model.
        inputs: inputs for both; by default generated ones, or those that the model was traced with if none of them run.
        tolerance: largest error allowed.
        seed: random seed of generated inputs.
    """
    graph = kept.graph
    if inputs is not None:
        return hold_against(kept, proto, inputs, tolerance=tolerance)
    try:
        generated = proof_inputs(graph, seed)
    except ModelError:
        if graph.shapes.feeds is None:
            raise
        return hold_against(kept, proto, graph.shapes.feeds, tolerance=tolerance)
    return hold_against(kept, proto, generated, tolerance=tolerance, seed=seed)


def repair(
    pruned: Pruned,
    data: Samples,
    *,
    method: Method = "reconstruct",
    seed: int = 0,
    records: Records | None = None,
    name: str = "",
    progress: Progress = silent,
) -> tuple[Repair, ...]:
    """Repair a pruned model in place with unlabeled inputs.

    Args:
        pruned: the model; its weights change.
        data: inputs: what `open_data` takes, a `Dataset`, or a function that returns batches of inputs.
        method: "reconstruct" refits all weights by least squares, "bn" a scale and an intercept for each output
            channel, "bias" the intercepts.
        seed: random seed of the choice of samples.
        records: the layers that are done already; filled as others are.
        name: the name of this repair in the records.
        progress: called after each layer.

    Returns:
        The error of each repaired layer before and after, relative to the mean square of its output.

    Raises:
        DataError: the data can't be read or don't fit the model.
        ModelError: ONNX Runtime can't run part of a model.
        UsageError: there are no inputs (OP604).
        PlanError: the method is unknown (OP303).

    Examples:
        >>> import onnxprune as op
        >>> model = op.analyze("models/digits_resnet.onnx")
        >>> small = op.prune(model, op.plan(model, target=op.Target("macs", 0.3)))
        >>> repairs = op.repair(small, "random")
        >>> sum(r.after for r in repairs) < sum(r.before for r in repairs)
        True
    """
    RepairSettings(method, seed)  # checks them
    opened = dataset_of(data, pruned.kept.graph, seed=seed)
    batches = batches_of(data if opened is None else opened, pruned.kept.graph, seed=seed)
    if batches is None:
        raise UsageError("OP604", "there are no inputs to repair the model with")
    known, start = (pruned.kept, pruned.proto, batches), fingerprints(pruned.proto)
    options: dict[str, Any] = {"seed": seed, "records": records, "name": name, "progress": progress}
    repairs = tuple(recover(*known, method=method, teacher=pruned.teacher, **options))
    note_changes(pruned.proto, start, "repair")
    if opened is not None:
        note_fitted(pruned.proto, opened)
    return repairs


def _whole(state: dict[str, Any], known: Mapping[str, StateInput]) -> dict[str, Any]:
    """Return a state as it was before all prunings of the model, not only the last."""
    old = known.get(state["input"])
    if old is None:
        return state
    before = [n if size is None else size for n, size in zip(state["before"], old.before, strict=True)]
    return state | {"before": before, "kept": composed(known, state["input"], state["kept"])}


def _note_states(proto: ModelProto, states: Sequence[ResizedState], source: ModelProto) -> None:
    """Write into a model's metadata which positions of states remain."""
    if not states:
        return
    known = state_inputs(source)
    write_notes(proto, {KEY: json.dumps([_whole(asdict(state), known) for state in states])})
