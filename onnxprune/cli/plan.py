"""`onnxprune plan`: choose what to remove and write it down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxprune.cli import calibration, options
from onnxprune.cli.latency import latency_of
from onnxprune.cli.models import open_model
from onnxprune.cli.output import Output, check_output, reporting, write_text
from onnxprune.errors import PlanError

_EXAMPLES = """\b
Examples:
  onnxprune plan model.onnx -o plan.json --target macs=50%
  onnxprune plan model.onnx -o plan.json --ratio 0.3 --exclude 'head*'
  onnxprune plan model.onnx -o plan.json --target macs=50% --data images/
  onnxprune plan model.onnx -o plan.json --target latency=50% --provider cpu
"""


@click.command("plan", short_help="Choose what to remove, write it down.", epilog=_EXAMPLES)
@options.model_argument
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path, allow_dash=True),
    help="Where the plan goes; - for stdout.",
)
@options.planning
@options.input_shapes
@options.policies
@calibration.data
@calibration.curves
@options.force
@reporting
def command(
    model: Path,
    output: Path,
    planning: dict[str, Any],
    input_shapes: list[Any],
    policies: dict[str, Any],
    given: calibration.Given,
    record: Path | None,
    force: bool,
    out: Output,
) -> None:
    """Choose what to remove from MODEL and write it down as JSON.

    The plan can be read, reviewed and applied later with `onnxprune prune MODEL --plan PLAN.json`.
    """
    from onnxprune.planning.plan import apply_plan
    from onnxprune.report.console import cost_tables, group_tables, latency_tables
    from onnxprune.report.documents import document, fields
    from onnxprune.report.summary import summarize_plan
    from onnxprune.workflow.pipeline import make_plan

    settings = options.settings_of(planning, data=given.data is not None or record is not None)
    latency = latency_of(planning, settings)
    to_stdout = str(output) == "-"
    if to_stdout and out.json:
        raise PlanError("OP302", "-o - and --format json both want stdout", hint="drop one")
    if not to_stdout:
        check_output(output, force)
    analysis, _ = open_model(out, model, input_shapes, policies=policies)
    curves = calibration.read_curves(record, analysis)
    batches = given.batches(out, analysis, seed=settings.seed)
    with out.progress("score and plan") as progress:
        plan = make_plan(analysis, settings, batches=batches, curves=curves, latency=latency, progress=progress)
    if to_stdout:
        click.echo(plan.to_json(), nl=False)
    else:
        write_text(output, plan.to_json())
    summary = summarize_plan(apply_plan(analysis.graph, plan))
    out.summary(
        document("plan", model=model, output=output, **fields(plan), **fields(summary)),
        cost_tables(summary),
        group_tables(summary),
        *([] if latency is None else [latency_tables(plan.settings["latency"])]),
        err=to_stdout,
    )
    if not to_stdout:
        out.note(f"wrote {output}; apply it with: onnxprune prune {model} -o OUT.onnx --plan {output}")
