"""The main road: load and trace a model, plan, prune, prove."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune import __version__
from onnxprune.budget import Guards, Target, choose
from onnxprune.errors import PlanError, VerificationError
from onnxprune.importance import score
from onnxprune.kept import Kept
from onnxprune.model import Model, Source, load
from onnxprune.normalise import normalise
from onnxprune.plan import PrunePlan, apply_plan, plan_of
from onnxprune.rewrite import rewrite
from onnxprune.trace import ChannelGraph, trace
from onnxprune.trace.align import Attention
from onnxprune.verify import Verification, generate_inputs, verify

Allocation = Literal["uniform", "global"]


@dataclass(frozen=True, slots=True)
class Settings:
    """How to plan.

    Attributes:
        ratio: share of the channels to remove; or
        target: a limit on a cost.
        criterion: what makes a channel important, see `onnxprune.importance`.
        allocation: the same share of every group, or the least important channels of all.
        guards: limits on what may leave a group.
        seed: for criteria that draw lots.
    """

    ratio: float | None = None
    target: Target | None = None
    criterion: str = "l2"
    allocation: Allocation = "uniform"
    guards: Guards = field(default_factory=Guards)
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Analysis:
    """A loaded and traced model.

    Attributes:
        model: the model as loaded.
        graph: its channel dependencies; ``graph.proto`` is the normalised model.
        attention: what leaves an attention: whole heads, or a part of each head's width.
    """

    model: Model
    graph: ChannelGraph
    attention: Attention = "heads"


@dataclass(frozen=True, slots=True)
class Pruned:
    """A pruned model with its proof.

    Attributes:
        proto: the model.
        plan: what was removed.
        verification: the oracle's verdict, None if it wasn't asked.
    """

    proto: ModelProto
    plan: PrunePlan
    verification: Verification | None


def analyse(
    source: Source, input_shapes: Mapping[str, Sequence[int]] | None = None, *, attention: Attention = "heads"
) -> Analysis:
    """Load a model and trace its channel dependencies.

    Args:
        source: a path, bytes, a ModelProto or a graphsurgeon graph.
        input_shapes: sizes for inputs with symbolic dimensions.
        attention: what leaves an attention: whole heads, or a part of each head's width.

    Raises:
        ModelError: the model can't be read or understood.
        UsageError: an input shape doesn't fit.
    """
    model = load(source)
    return Analysis(model, trace(normalise(model.proto), input_shapes, attention=attention), attention)


def make_plan(analysis: Analysis, settings: Settings) -> PrunePlan:
    """Choose what to remove.

    Raises:
        PlanError: the settings are contradictory or out of range, or the target is out of reach.
        ModelError: a weight isn't finite.
    """
    graph = analysis.graph
    scores = score(graph, settings.criterion, seed=settings.seed)
    removed = choose(
        graph,
        scores,
        settings.guards,
        ratio=settings.ratio,
        target=settings.target,
        allocation=settings.allocation,
    )
    return plan_of(graph, removed, analysis.model.sha256, {**asdict(settings), "attention": analysis.attention})


def prune(
    analysis: Analysis,
    plan: PrunePlan,
    *,
    inputs: Mapping[str, NDArray[Any]] | None = None,
    check: bool = True,
    tolerance: float | None = None,
    seed: int = 0,
) -> Pruned:
    """Carry out a plan and prove the result.

    Args:
        analysis: the model.
        plan: a plan for it.
        inputs: inputs for the proof; generated ones by default.
        check: whether to run the masked oracle.
        tolerance: largest error allowed, see `verify`.
        seed: of generated inputs.

    Returns:
        The pruned model; its metadata tells the plan's digest and settings.

    Raises:
        PlanError: the plan is for another model (OP306) or doesn't fit it.
        RewriteError: a node can't be adapted.
        VerificationError: the pruned model isn't the masked original (OP501).
    """
    if plan.model != analysis.model.sha256:
        hint = "make a new plan with `onnxprune plan`"
        raise PlanError("OP306", "the plan was made for another model", where=plan.model[:12], hint=hint)
    kept = apply_plan(analysis.graph, plan)
    proto = rewrite(kept)
    _sign(proto, plan)
    if not check:
        return Pruned(proto, plan, None)
    verification = prove(kept, proto, inputs=inputs, tolerance=tolerance, seed=seed)
    if not verification.passed:
        worst = max(verification.outputs, key=lambda o: o.error)
        cause = f"relative error {verification.error:.3g} exceeds {verification.tolerance:.3g}"
        raise VerificationError("OP501", cause, where=f'output "{worst.name}"')
    return Pruned(proto, plan, verification)


def prove(
    kept: Kept,
    proto: ModelProto,
    *,
    inputs: Mapping[str, NDArray[Any]] | None = None,
    tolerance: float | None = None,
    seed: int = 0,
) -> Verification:
    """Run the masked oracle on a traced model and its pruned version.

    Args:
        kept: the traced model and what was removed from it.
        proto: the pruned model.
        inputs: inputs for both; generated from the seed by default.
        tolerance: largest error allowed.
        seed: seed of generated inputs.
    """
    graph = kept.graph
    data = generate_inputs(graph.proto, graph.shapes.inputs, seed) if inputs is None else inputs
    return verify(kept, proto, data, tolerance=tolerance, seed=None if inputs is not None else seed)


def _sign(proto: ModelProto, plan: PrunePlan) -> None:
    """Write the plan's digest and settings into the model's metadata."""
    notes = {
        "onnxprune.version": __version__,
        "onnxprune.plan": plan.digest,
        "onnxprune.source": plan.model,
        "onnxprune.settings": json.dumps(plan.settings, sort_keys=True),
    }
    for entry in [e for e in proto.metadata_props if e.key in notes]:
        proto.metadata_props.remove(entry)
    for key, value in notes.items():
        proto.metadata_props.add(key=key, value=value)


def read_plan(path: Path) -> PrunePlan:
    """Read a plan from a file.

    Raises:
        PlanError: it can't be read or is no plan (OP305).
    """
    try:
        return PrunePlan.from_json(path.read_bytes(), str(path))
    except OSError as error:
        raise PlanError("OP305", f"can't be read: {error.strerror}", where=str(path)) from error
