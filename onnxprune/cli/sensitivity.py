"""`onnxprune sensitivity`: measure the error that pruning each group alone causes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxprune.cli import options
from onnxprune.cli.group import Command
from onnxprune.cli.models import open_model, user_functions
from onnxprune.cli.output import Output, check_output, reporting, write_text
from onnxprune.cli.receipts import receipts
from onnxprune.errors import PlanError
from onnxprune.settings import DataSettings, PlanSettings, build
from onnxprune.settings.pruning import LIMIT

_EXAMPLES = """\b
Examples:
  onnxprune sensitivity model.onnx --data images/
  onnxprune sensitivity model.onnx --data images/ -o sensitivity.json --plot sensitivity.png
  onnxprune sensitivity model.onnx --data val/ --metric top1 --share 50%
  onnxprune prune model.onnx -o small.onnx --target macs=50% --data images/ --sensitivity sensitivity.json
"""


@click.command("sensitivity", cls=Command, epilog=_EXAMPLES)
@options.model_argument
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE.json",
    help="Write the measurements to this file after each group; an interrupted run resumes from it.",
)
@options.plot("Plot the errors: curves, or a heat map of more than 12 groups.")
@click.option(
    "--share",
    "shares",
    type=options.SHARE,
    multiple=True,
    help="Share of a group's units to remove. Repeatable. [default: 25%, 50%, 75% and the largest allowed]",
)
@click.option(
    "--metric",
    help="Metric, see `onnxprune evaluate`, or module:function. [default: error of the outputs]",
)
@options.of(PlanSettings, "planning", without=("ratio", "target", "allocation", "ratio_for", "remove_blocks"))
@options.input_shapes
@options.policies
@options.of(DataSettings, "given", required=("data",))
@options.force
@receipts()
@reporting
@options.custom_ops
def command(
    model: Path,
    output: Path | None,
    plot: Path | None,
    shares: tuple[float, ...],
    metric: str | None,
    planning: dict[str, Any],
    input_shapes: list[Any],
    policies: dict[str, Any],
    given: dict[str, Any],
    force: bool,
    out: Output,
) -> None:
    """Prune each group of MODEL alone, by increasing shares, and measure the error of the outputs.

    The layers that read the removed channels are refitted on part of the data; the error is measured on another part.
    Labels are needed only if the metric needs them. The default criterion is obs.
    """
    from onnxprune.planning.budget import eligible, with_names
    from onnxprune.plot import plot_sensitivity
    from onnxprune.report.documents import document
    from onnxprune.report.layout import count
    from onnxprune.report.sensitivity import sensitivity_tables
    from onnxprune.sensitivity import SHARES, Judge, MetricLoss, OutputError, Record, few, measure, resume, share_out
    from onnxprune.trace.outputs import followed
    from onnxprune.workflow.inputs import batches_of, open_samples, tell_of_front

    calibration = build(DataSettings, given)
    constraints, seed = build(PlanSettings, planning).constraints, planning.get("seed", 0)
    if any(not 0 < share <= 1 for share in shares):
        raise PlanError("OP303", "a share must be above 0 and at most 1", where="--share")
    if plot is not None:
        check_output(plot, force, inputs=[model, calibration.data])
    criterion, steps = planning.get("criterion", "obs"), shares or SHARES
    user_functions(calibration.data, calibration.reading.postprocess, metric, criterion)
    analysis, _ = open_model(out, model, input_shapes, policies=policies, data=calibration, in_batches=True)
    graph = analysis.graph
    constraints = with_names(constraints, graph)
    settings = {
        "criterion": criterion,
        "metric": metric,
        "shares": list(steps),
        "data": calibration.data,
        "preprocess": calibration.preprocess,
        "limit": calibration.limit or LIMIT,
        **policies,
        **{name: list(v) if isinstance(v, tuple) else v for name, v in planning.items() if name != "criterion"},
    }
    record = Record(analysis.model.sha256, settings)
    if output is not None and output.exists() and not force:
        record = resume(output, record, graph)
        out.note(f"resuming from {output}, which has {len(record.curves)} groups")
    elif output is not None:
        check_output(output, force, inputs=[model, calibration.data])
    tell_of_front(graph)
    with out.progress() as progress:
        near = analysis.model.path
        samples = open_samples(calibration, graph, near=near, seed=seed, limit=LIMIT, progress=progress)
    batches = batches_of(samples, graph)
    assert batches is not None
    fitted, held_back = share_out(batches)
    judge: Judge  # metrics use all of the data, with labels
    if metric is None:
        judge = OutputError(graph.proto, few(held_back), graph.front)
    else:
        judge = MetricLoss(graph.proto, samples, metric)
    done = len(record.curves)
    fixed, free = eligible(graph, constraints)
    groups = len(fixed) + len(free)
    resumes = "the same command resumes"
    if output is None:
        out.on_stop(lambda: f"stopped; nothing was kept; with -o FILE, {resumes}")
    else:
        out.on_stop(lambda: f"stopped; {output} has {count(len(record.curves), 'group')} of {groups}; {resumes}")
    with out.progress() as progress:
        progress("sensitivity", done, groups)
        for curve in measure(
            graph,
            fitted,
            judge,
            criterion=criterion,
            constraints=constraints,
            shares=steps,
            seed=seed,
            known=record.curves,
        ):
            record = record.with_curve(curve)
            progress("sensitivity", len(record.curves), groups)
            if output is not None:
                write_text(output, record.to_json(graph))
    curves = [record.curves[i] for i in sorted(record.curves)]
    meaning = f"loss of {metric}" if metric else "squared error of the outputs, relative to their variance,"
    if plot is not None:
        plot_sensitivity(graph, curves, steps, plot, meaning.rstrip(","))
        out.note(f"wrote {plot}")
    notes = [note] if metric is None and (note := followed(graph.proto).note()) else []
    for said in notes:
        out.note(said)
    out.data(
        document("sensitivity", model=model, measured=len(curves) - done, notes=notes, **record.document(graph)),
        sensitivity_tables(graph, curves, steps, meaning[0].upper() + meaning[1:]),
    )
    if output is not None:
        out.note(f"wrote {output}")
