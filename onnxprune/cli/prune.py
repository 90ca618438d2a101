"""`onnxprune prune`: remove channels, prove the result, write it."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli import calibration, options
from onnxprune.cli.files import check_output
from onnxprune.cli.models import open_model
from onnxprune.cli.output import Output, reporting
from onnxprune.cli.proof import warn_if_idle
from onnxprune.errors import PlanError

if TYPE_CHECKING:
    from onnxprune.trace.align import Attention

_REASONS = 5


_EXAMPLES = """\b
Examples:
  onnxprune prune model.onnx -o small.onnx --target macs=50%
  onnxprune prune model.onnx -o small.onnx --ratio 30% --input x.npy
  onnxprune prune model.onnx -o small.onnx --plan plan.json
  onnxprune prune model.onnx -o small.onnx --target macs=50% --data images/
"""


@click.command("prune", short_help="Remove channels, prove the result, write it.", epilog=_EXAMPLES)
@options.model_argument
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="Where the pruned model goes.",
)
@click.option(
    "--plan",
    "plan_path",
    type=click.Path(path_type=Path),
    metavar="PLAN.json",
    help="Apply this plan; excludes the options that would make one.",
)
@options.planning
@options.input_shapes
@options.attention
@options.inputs
@click.option("--no-verify", is_flag=True, help="Write the result without proving it.")
@options.tolerance
@calibration.calibration
@options.force
@reporting
def command(
    model: Path,
    output: Path,
    plan_path: Path | None,
    planning: dict[str, Any],
    input_shapes: list[Any],
    attention: Attention | None,
    inputs: list[Any],
    no_verify: bool,
    tolerance: float | None,
    data: str | None,
    method: str | None,
    preprocess: str | None,
    limit: int | None,
    force: bool,
    out: Output,
) -> None:
    """Remove the least important channels of MODEL, prove the result and write it.

    The proof: the pruned model must compute what the original computes with the removed weights set
    to zero. Where it doesn't, nothing is written and the exit status is 1. With --data, the proved model
    is then repaired: its weights are refitted so that layers put out what they did.
    """
    from onnxprune.model import save
    from onnxprune.pipeline import make_plan, prune, read_plan
    from onnxprune.plan import apply_plan
    from onnxprune.report import console, documents
    from onnxprune.report.summary import file_size, summarise, summarise_plan

    if plan_path is not None and planning:
        flags = ", ".join(options.flag(name) for name in planning)
        raise PlanError("OP302", f"--plan says what to remove, and so does {flags}", hint="drop one")
    if no_verify and (inputs or tolerance is not None):
        raise PlanError("OP302", "--no-verify leaves nothing to --input and --tolerance")
    calibration.check(data, method=method, preprocess=preprocess, limit=limit)
    settings = None if plan_path else options.settings_of(planning)
    check_output(output, force)
    plan = read_plan(plan_path) if plan_path else None
    analysis, arrays = open_model(out, model, input_shapes, inputs, plan=plan, attention=attention)
    seed = planning.get("seed", 0)
    weights = output.with_name(f"{output.stem}.onnx.data")
    if analysis.model.external:
        check_output(weights, force)
    if settings is not None:
        with out.step("score and plan"):
            plan = make_plan(analysis, settings)
    assert plan is not None
    with out.step("rewrite" if no_verify else "rewrite and verify"):
        pruned = prune(analysis, plan, inputs=arrays, check=not no_verify, tolerance=tolerance, seed=seed)
    repairs = []
    if data is not None:
        repairs = calibration.repair(
            *(out, analysis, pruned, data), method=method, preprocess=preprocess, limit=limit, seed=seed
        )
    size = file_size(analysis.model)
    result = replace(analysis.model, proto=pruned.proto)
    with out.step("write"):
        save(result, output, force=force)
    written = replace(result, path=output, data_files=(weights,) if result.external else ())
    files = size, file_size(written)
    summary = summarise_plan(apply_plan(analysis.graph, plan))
    dense = summarise(analysis.graph)
    verification = pruned.verification
    out.summary(
        lambda: documents.document(
            "prune",
            model=str(model),
            output=str(output),
            **documents.plan_fields(plan, summary),
            file_size={"before": files[0], "after": files[1]},
            **documents.verdict_fields((), verification),
            pins=documents.pin_fields(dense.pins),
            repairs=[asdict(r) for r in repairs],
        ),
        lambda: console.costs(summary, files),
        lambda: console.removal(summary),
        lambda: console.verdict((), verification),
        lambda: console.what_stays(dense, f"see `onnxprune explain {model}`", first=_REASONS),
    )
    warn_if_idle(out, plan, verification)
    out.note(f"wrote {output}")
