"""`onnxprune verify`: hold a pruned model against its original."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxprune.cli import options
from onnxprune.cli.models import open_model
from onnxprune.cli.output import Output, reporting, warn_if_idle
from onnxprune.errors import PlanError, VerificationError


@click.command("verify", short_help="Hold a pruned model against its original.")
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
@click.option("--seed", type=click.IntRange(min=0), help="Seed of generated inputs. [default: 0]")
@reporting
def command(
    original: Path,
    pruned: Path,
    plan_path: Path | None,
    input_shapes: list[Any],
    inputs: list[Any],
    tolerance: float | None,
    seed: int | None,
    out: Output,
) -> None:
    """Hold PRUNED against the ORIGINAL that it was made from.

    With --plan, PRUNED must compute what ORIGINAL computes with the removed weights set to zero; that
    is a proof. Without it, the interfaces are compared, and how far the outputs are apart.

    The exit status is 1 if PRUNED fails.
    """
    from onnxprune.model.file import load
    from onnxprune.planning.plan import apply_plan
    from onnxprune.report.comparison import Comparison, check_origin, compare_outputs, interface_changes
    from onnxprune.report.console import comparison_tables
    from onnxprune.report.documents import document, fields
    from onnxprune.rewrite.verify import generate_inputs
    from onnxprune.workflow.pipeline import prove, read_plan

    if plan_path is None and tolerance is not None:
        raise PlanError("OP302", "--tolerance needs --plan: without it nothing is proved")
    if inputs and seed is not None:
        raise PlanError("OP302", "--seed draws inputs, and --input gives them", hint="drop one")
    plan = read_plan(plan_path) if plan_path else None
    analysis, arrays = open_model(out, original, input_shapes, inputs, plan=plan)
    with out.step("load"):
        proto = load(pruned).proto
    if plan is not None:
        check_origin(proto, plan)
    changes = interface_changes(analysis.model.proto, proto)
    graph, verification, distances = analysis.graph, None, None
    if plan is not None and not changes:
        with out.step("verify"):
            kept = apply_plan(graph, plan)
            verification = prove(kept, proto, inputs=arrays, tolerance=tolerance, seed=seed or 0)
    elif not changes:
        with out.step("compare"):
            feeds = arrays or generate_inputs(graph.proto, graph.shapes.inputs, seed or 0)
            distances = compare_outputs(graph.proto, proto, feeds)
    found = Comparison(changes, verification, distances)
    out.data(document("verify", original=original, pruned=pruned, **fields(found)), comparison_tables(found))
    if changes:
        raise VerificationError("OP503", changes[0], where=str(pruned))
    if distances is not None and not all(d.sound for d in distances):
        cause = "an output has another shape, or isn't finite where the original's is"
        raise VerificationError("OP502", cause, where=str(pruned))
    if verification is not None and not verification.passed:
        cause = f"relative error {verification.error:.3g} exceeds {verification.tolerance:.3g}"
        raise VerificationError("OP501", cause, where=str(pruned))
    warn_if_idle(out, plan, verification)
