"""`onnxprune verify`: hold a pruned model against its original."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli import options
from onnxprune.cli.models import open_model
from onnxprune.cli.output import Output, reporting
from onnxprune.errors import PlanError, VerificationError

if TYPE_CHECKING:
    from onnx import ModelProto

    from onnxprune.cli.models import Arrays
    from onnxprune.pipeline import Analysis
    from onnxprune.plan import PrunePlan


@click.command("verify")
@click.argument("original", type=click.Path(path_type=Path))
@click.argument("pruned", type=click.Path(path_type=Path))
@click.option(
    "--plan",
    "plan_path",
    type=click.Path(path_type=Path),
    metavar="PLAN.json",
    help="The plan by which PRUNED was made; only with it can equality be proved.",
)
@options.input_shapes
@options.inputs
@options.tolerance
@click.option("--seed", type=int, default=0, help="Seed of generated inputs. [default: 0]")
@reporting
def command(
    original: Path,
    pruned: Path,
    plan_path: Path | None,
    input_shapes: list[Any],
    inputs: list[Any],
    tolerance: float | None,
    seed: int,
    out: Output,
) -> None:
    """Hold PRUNED against the ORIGINAL that it was made from.

    With --plan, PRUNED must compute what ORIGINAL computes with the removed weights set to zero; that
    is a proof. Without it, the interfaces are compared, and how far the outputs are apart.

    The exit status is 1 if PRUNED fails.
    """
    from onnxprune.model import load
    from onnxprune.pipeline import prove, read_plan
    from onnxprune.plan import apply_plan
    from onnxprune.report import console, documents
    from onnxprune.report.comparison import check_origin, compare_outputs, interface_changes
    from onnxprune.verify import generate_inputs

    if plan_path is None and tolerance is not None:
        raise PlanError("OP302", "--tolerance needs --plan: without it nothing is proved")
    if inputs and seed is not None:
        raise PlanError("OP302", "--seed draws inputs, and --input gives them", hint="drop one")
    plan = read_plan(plan_path) if plan_path else None
    analysis, arrays = open_model(
        out, original, input_shapes, inputs, planned=plan.inputs if plan else None
    )
    with out.step("load"):
        proto = load(pruned).proto
    check_origin(analysis.model, proto, plan)
    changes = interface_changes(analysis.model.proto, proto)
    if changes:
        raise VerificationError("OP503", changes[0], where=str(pruned))

    head = {"original": str(original), "pruned": str(pruned)}
    if plan is None:
        graph = analysis.graph
        feeds = arrays or generate_inputs(graph.proto, graph.shapes.inputs, seed or 0)
        with out.step("compare"):
            found = compare_outputs(graph.proto, proto, feeds)
        out.data(
            lambda: documents.document("verify", **head, **documents.distance_fields(found)),
            lambda: console.distances(found),
        )
        if not all(distance.sound for distance in found):
            raise VerificationError("OP502", "an output isn't finite or has another shape")
        return
    with out.step("verify"):
        kept = apply_plan(analysis.graph, plan)
        verification = prove(kept, proto, inputs=arrays, tolerance=tolerance, seed=seed or 0)
    out.data(
        lambda: documents.document(
            "verify", **head, **documents.verification_fields(verification)
        ),
        lambda: console.verdict(verification),
    )
    if not verification.passed:
        cause = f"relative error {verification.error:.3g} exceeds {verification.tolerance:.3g}"
        raise VerificationError("OP501", cause, where=str(pruned))
    if plan.removed and verification.change == 0:
        out.warn(NOTHING_PROVED)
