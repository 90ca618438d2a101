"""Holding a pruned model against its original."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from onnxprune.errors import VerificationError
from onnxprune.model.file import Source, load
from onnxprune.planning.plan import PrunePlan, apply_plan
from onnxprune.rewrite.comparison import Comparison, check_origin, compare_outputs, interface_changes
from onnxprune.rewrite.verify import generate_inputs
from onnxprune.settings.shrinking import VerifySettings
from onnxprune.workflow.analysis import TracedModel, analyze
from onnxprune.workflow.pruning import Arrays, prove

log = logging.getLogger(__name__)


def verify(
    original: Source | TracedModel,
    pruned: Source,
    plan: PrunePlan | None = None,
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    inputs: Arrays | None = None,
    tolerance: float | None = None,
    seed: int | None = None,
) -> Comparison:
    """Hold a pruned model against the model that it was made from.

    Args:
        original: the original.
        pruned: the pruned model.
        plan: the plan by which it was made. Only with it can equality be proved: the pruned model must compute what the
            original computes with the removed weights set to zero. Without it, the outputs are compared.
        input_shapes: sizes for inputs with symbolic dimensions, by name.
        inputs: an array for each input; generated ones by default.
        tolerance: largest error allowed, relative to an output's largest value; None for 1e-4, or by the coarsest type
            of the weights.
        seed: of generated inputs.

    Returns:
        What was found; `require_equal` raises where it isn't good.

    Raises:
        PlanError: the plan is for another model (OP306), or settings contradict each other (OP302).
        ModelError: a model can't be read or run.
        VerificationError: the pruned model was made by another plan (OP505).

    Example:
        >>> import onnxprune as op
        >>> plan = op.plan("models/digits_resnet.onnx", ratio=0.5)
        >>> small = op.prune("models/digits_resnet.onnx", plan)
        >>> op.verify("models/digits_resnet.onnx", small.proto, plan).proved
        True
    """
    VerifySettings(plan=plan, inputs=inputs, tolerance=tolerance, seed=seed)  # checks them
    analysis = analyze(original, input_shapes, plan=plan)
    graph, proto = analysis.graph, load(pruned).proto
    if plan is not None:
        check_origin(proto, plan)
    changes = interface_changes(analysis.model.proto, proto)
    log.debug("%d changes of the interface", len(changes))
    if changes:
        return Comparison(changes)
    if plan is not None:
        kept = apply_plan(graph, plan)
        return Comparison(verification=prove(kept, proto, inputs=inputs, tolerance=tolerance, seed=seed or 0))
    feeds = generate_inputs(graph.proto, graph.shapes.inputs, seed or 0) if inputs is None else inputs
    return Comparison(distances=compare_outputs(graph.proto, proto, feeds))


def require_equal(found: Comparison, where: str | None = None) -> None:
    """Refuse a pruned model that isn't as it should be.

    Raises:
        VerificationError: its interface differs (OP503), an output has another shape or isn't finite (OP502), or its
            outputs differ (OP501).
    """
    if found.changes:
        raise VerificationError("OP503", found.changes[0], where=where)
    if found.distances is not None and not all(d.sound for d in found.distances):
        cause = "an output has another shape, or isn't finite where the original's is"
        raise VerificationError("OP502", cause, where=where)
    verdict = found.verification
    if verdict is not None and not verdict.passed:
        cause = f"relative error {verdict.error:.3g} exceeds {verdict.tolerance:.3g}"
        raise VerificationError("OP501", cause, where=where)
