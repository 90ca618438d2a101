"""`onnxprune prune`: remove channels, prove the result, write it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from onnxprune.cli import calibration, options
from onnxprune.cli.latency import latency_of
from onnxprune.cli.models import open_model
from onnxprune.cli.output import Output, check_output, reporting, warn_if_idle
from onnxprune.cli.tuning import Tuning, check_tuning, hook, prune_in_steps, tune
from onnxprune.errors import PlanError

_REASONS = 5


_EXAMPLES = """\b
Examples:
  onnxprune prune model.onnx -o small.onnx --target macs=50%
  onnxprune prune model.onnx -o small.onnx --target latency=50% --threads 1
  onnxprune prune model.onnx -o small.onnx --ratio 30% --input x.npy
  onnxprune prune model.onnx -o small.onnx --plan plan.json
  onnxprune prune model.onnx -o small.onnx --target macs=50% --data images/
  onnxprune prune model.onnx -o small.onnx --target macs=50% --data train.npz --finetune 10
  onnxprune prune model.onnx -o small.onnx --target macs=25% --data train.npz --finetune 5 --steps 3
  onnxprune prune model.onnx -o small.onnx --max-drop 1% --data val/
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
@options.policies
@options.inputs
@click.option("--no-verify", is_flag=True, help="Write the result without proving it.")
@options.tolerance
@calibration.data
@calibration.curves
@calibration.recovery
@hook
@options.force
@reporting
def command(
    model: Path,
    output: Path,
    plan_path: Path | None,
    planning: dict[str, Any],
    input_shapes: list[Any],
    policies: dict[str, Any],
    inputs: list[Any],
    no_verify: bool,
    tolerance: float | None,
    given: calibration.Given,
    record: Path | None,
    method: str | None,
    max_drop: float | None,
    tuning: Tuning,
    force: bool,
    out: Output,
) -> None:
    """Remove the least important channels of MODEL, prove the result and write it.

    The proof: the pruned model must compute what the original computes with the removed weights set
    to zero. Where it doesn't, nothing is written and the exit status is 1.

    With --data, channels are taken where the network's outputs change least, and the proved model is then
    repaired: its weights are refitted so that layers put out what they did. With --finetune it is trained to follow the
    original on top of that, and on labels where there are any; see `onnxprune finetune` for more. With --steps both
    take turns.
    """
    from onnxprune.model.file import file_size, save
    from onnxprune.planning.plan import apply_plan
    from onnxprune.report.comparison import Comparison
    from onnxprune.report.console import comparison_tables, cost_tables, latency_tables, pin_tables, removal_tables
    from onnxprune.report.documents import document, fields
    from onnxprune.report.evaluation import evaluation_tables, finetuning_fields, finetuning_tables
    from onnxprune.report.summary import summarize, summarize_plan
    from onnxprune.workflow.pipeline import make_plan, prune, read_plan

    if plan_path is not None and planning:
        flags = ", ".join(options.flag(name) for name in planning)
        raise PlanError("OP302", f"--plan says what to remove, and so does {flags}", hint="drop one")
    if no_verify and (inputs or tolerance is not None):
        raise PlanError("OP302", "--no-verify leaves nothing to --input and --tolerance")
    if plan_path is not None and (record or max_drop is not None):
        raise PlanError("OP302", "--plan says what to remove, and so does --sensitivity or --max-drop", hint="drop one")
    if max_drop is not None and no_verify:
        raise PlanError("OP302", "--max-drop proves what it finds, and --no-verify forbids it", hint="drop one")
    calibration.check(given, method, max_drop)
    check_tuning(given, tuning, max_drop=max_drop, planned=bool(plan_path or record))
    measured = given.data is not None or record is not None
    settings = None if plan_path else options.settings_of(planning, data=measured, budget=max_drop is None)
    latency = None if settings is None else latency_of(planning, settings)
    check_output(output, force)
    plan = read_plan(plan_path) if plan_path else None
    analysis, arrays = open_model(out, model, input_shapes, inputs, plan=plan, policies=policies)
    seed = planning.get("seed", 0)
    weights = output.with_name(f"{output.stem}.onnx.data")
    if analysis.model.external:
        check_output(weights, force)
    curves = calibration.read_curves(record, analysis)
    evaluation, tuned = None, None
    if settings is not None and max_drop is not None:
        found = calibration.search(
            *(out, analysis, settings, given, max_drop),
            method=method,
            curves=curves,
            inputs=arrays,
            tolerance=tolerance,
        )
        pruned, repairs, evaluation = found.pruned, list(found.repairs), found.evaluation
    else:
        batches = given.batches(out, analysis, seed=seed)
        if settings is not None and tuning.iterative:
            plan, tuned = prune_in_steps(out, given, analysis, settings, tuning, method)
        elif settings is not None:
            with out.progress("score and plan") as progress:
                plan = make_plan(analysis, settings, batches=batches, curves=curves, latency=latency, progress=progress)
        assert plan is not None
        with out.step("rewrite" if no_verify else "rewrite and verify"):
            pruned = prune(analysis, plan, inputs=arrays, check=not no_verify, tolerance=tolerance, seed=seed)
        repairs = [] if batches is None or tuned else calibration.repair(out, analysis, pruned, batches, method, seed)
    plan = pruned.plan
    size = file_size(analysis.model)
    if tuning.epochs is not None and tuned is None:
        tuned = tune(out, given, analysis, pruned.proto, tuning, seed)
    result = replace(analysis.model, proto=pruned.proto if tuned is None else tuned.proto)
    with out.step("write"):
        save(result, output, force=force)
    written = replace(result, path=output, data_files=(weights,) if result.external else ())
    files = size, file_size(written)
    summary = summarize_plan(apply_plan(analysis.graph, plan))
    dense = summarize(analysis.graph)
    checked = Comparison(verification=pruned.verification)
    out.summary(
        document(
            "prune",
            model=model,
            output=output,
            **fields(plan),
            **fields(summary),
            file_size={"before": files[0], "after": files[1]},
            **fields(checked),
            pins=dense.pins,
            repairs=repairs,
            evaluation=evaluation,
            finetuning=None if tuned is None else finetuning_fields(tuned),
        ),
        cost_tables(summary, files),
        removal_tables(summary),
        *([] if latency is None else [latency_tables(plan.settings["latency"])]),
        comparison_tables(checked),
        *([] if evaluation is None else [evaluation_tables(evaluation)]),
        *([] if tuned is None else [finetuning_tables(tuned)]),
        pin_tables(dense, f"see `onnxprune explain {model}`", first=_REASONS),
    )
    warn_if_idle(out, plan, pruned.verification)
    out.note(f"wrote {output}")
