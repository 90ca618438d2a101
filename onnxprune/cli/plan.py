"""`onnxprune plan`: choose what to remove, and write a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxprune.cli import options
from onnxprune.cli.group import Command
from onnxprune.cli.models import open_model, user_functions
from onnxprune.cli.output import Output, check_output, nothing_written, reporting, write_text
from onnxprune.errors import PlanError
from onnxprune.settings import PruneSettings, build, given as given_settings
from onnxprune.settings.pruning import LIMIT

_EXAMPLES = """\b
Examples:
  onnxprune plan model.onnx -o plan.json --target macs=50%
  onnxprune plan model.onnx -o plan.json --ratio 0.3 --exclude 'head*'
  onnxprune plan model.onnx -o plan.json --target macs=50% --data images/
  onnxprune plan model.onnx -o plan.json --target latency=50% --provider cpu
"""
_AFTER_PLANNING = (
    *("custom_ops", "plan", "verify", "tolerance", "recover", "repair_minutes", "repair_epochs"),
    *("max_drop", "minimize", "finetune", "steps", "rewind", "checkpoint", "resume"),
)


@click.command("plan", cls=Command, epilog=_EXAMPLES)
@options.model_argument
@options.output("File for the plan, or - for stdout.", dash=True)
@options.of(PruneSettings, "given", without=_AFTER_PLANNING)
@options.input_shapes
@options.inputs
@options.plot("Plot the widths of groups before and after.")
@options.force
@reporting
@options.custom_ops
def command(
    model: Path,
    output: Path,
    given: dict[str, Any],
    input_shapes: list[Any],
    inputs: list[Any],
    plot: Path | None,
    force: bool,
    out: Output,
) -> None:
    """Choose what to remove from MODEL, and write the plan as JSON.

    Review the plan, and apply it with `onnxprune prune MODEL --plan PLAN.json`.
    """
    from onnxprune.model.session import with_threads
    from onnxprune.planning.plan import apply_plan
    from onnxprune.plot import plot_widths
    from onnxprune.report.console import cost_tables, group_tables, latency_tables
    from onnxprune.report.documents import document, fields
    from onnxprune.report.outcome import unmeasured_tables
    from onnxprune.report.pruning import planned
    from onnxprune.workflow.analysis import analyze
    from onnxprune.workflow.inputs import open_samples, tell_of_front
    from onnxprune.workflow.planning import plan, settled

    settings = build(PruneSettings, given)
    planning, calibration = settled(settings.planning, data=False) and settings.planning, settings.calibration
    to_stdout = str(output) == "-"
    if to_stdout and out.form != "table":
        raise PlanError("OP302", f"-o - and --format {out.form} both write to stdout", hint="drop one")
    if not to_stdout:
        check_output(output, force, inputs=[model, settings.sensitivity, calibration.data])
    if plot is not None:
        check_output(plot, force, inputs=[model, output, settings.sensitivity, calibration.data])
    out.on_stop(lambda: nothing_written(model, settings))
    user_functions(calibration.data, settings.transform, planning.criterion)
    policies = given_settings(settings.policies)
    analysis, _ = open_model(
        *(out, model, input_shapes, inputs),
        policies=policies,
        data=calibration,
        transform=settings.transform,
        in_batches=True,
    )
    with with_threads(settings.latency.threads), out.progress() as progress:
        data, near = None, analysis.model.path
        if calibration.data is not None:
            tell_of_front(analysis.graph)
            reading: dict[str, Any] = {"near": near, "seed": planning.seed, "limit": LIMIT, "progress": progress}
            data = open_samples(calibration, analysis.graph, **reading)
        progress("score and plan", 0, None)
        made = plan(
            analysis, planning, data=data, sensitivity=settings.sensitivity, latency=settings.latency, progress=progress
        )
    if to_stdout:
        click.echo(made.to_json(), nl=False)
    else:
        write_text(output, made.to_json())
    changed = analyze(analysis, plan=made)
    summary = planned(changed, apply_plan(changed.graph, made))
    if plot is not None:
        plot_widths(summary.groups, summary.labels, plot)
        out.note(f"wrote {plot}")
    out.summary(
        document("plan", model=model, output=output, **fields(made), **fields(summary)),
        cost_tables(summary),
        group_tables(summary),
        *([latency_tables(made.settings["latency"])] if "latency" in made.settings else []),
        *([unmeasured_tables()] if calibration.data is None and made.removed else []),
        err=to_stdout,
    )
    if not to_stdout:
        out.note(f"wrote {output}; apply it with: onnxprune prune {model} -o OUT.onnx --plan {output}")
