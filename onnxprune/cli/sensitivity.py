"""`onnxprune sensitivity`: what each group's removal costs by itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli import calibration, options
from onnxprune.cli.models import open_model
from onnxprune.cli.output import Output, check_output, reporting, write_text
from onnxprune.errors import PlanError, UsageError

if TYPE_CHECKING:
    from onnxprune.model.stream import Batches
    from onnxprune.sensitivity import Judge
    from onnxprune.workflow.pipeline import TracedModel

_EXAMPLES = """\b
Examples:
  onnxprune sensitivity model.onnx --data images/
  onnxprune sensitivity model.onnx --data images/ -o sensitivity.json --plot sensitivity.png
  onnxprune sensitivity model.onnx --data val/ --metric top1 --share 50%
  onnxprune prune model.onnx -o small.onnx --target macs=50% --data images/ --sensitivity sensitivity.json
"""


@click.command("sensitivity", short_help="Measure what each group's removal costs.", epilog=_EXAMPLES)
@options.model_argument
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE.json",
    help="Keep what is measured here, group by group; a run that was stopped goes on from it.",
)
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE.png", help="Draw the curves (needs matplotlib).")
@click.option(
    "--share",
    "shares",
    type=options.SHARE,
    multiple=True,
    help="Share of a group's units to remove. Repeatable. [default: 25%, 50%, 75% and the most allowed]",
)
@click.option(
    "--metric",
    help="Judge by top1, top5, miou, agreement, kl, mse, cosine or module:function, instead of the error of outputs.",
)
@options.measuring
@options.input_shapes
@options.policies
@calibration.data
@options.force
@reporting
def command(
    model: Path,
    output: Path | None,
    plot: Path | None,
    shares: tuple[float, ...],
    metric: str | None,
    planning: dict[str, Any],
    input_shapes: list[Any],
    policies: dict[str, Any],
    given: calibration.Given,
    force: bool,
    out: Output,
) -> None:
    """Remove more and more of each group of MODEL by itself, and measure how much worse the outputs get.

    The layers that read the removed channels are refitted on part of the data; the error is measured on
    another part. No labels are needed, except for a metric that does.
    """
    from onnxprune.report import documents
    from onnxprune.report.sensitivity import plot_sensitivity, sensitivity_table
    from onnxprune.sensitivity import SHARES, Record, measure, resume, share_out

    if given.data is None:
        raise UsageError("OP602", "sensitivity is measured on inputs", hint="give some with --data, without labels")
    constraints, seed = options.constraints_of(planning), planning.get("seed", 0)
    constraints.check()
    if any(not 0 < share <= 1 for share in shares):
        raise PlanError("OP303", "a share is above 0 and at most 1", where="--share")
    if plot is not None:
        check_output(plot, force)
    criterion, steps = planning.get("criterion", "obs"), shares or SHARES
    analysis, _ = open_model(out, model, input_shapes, policies=policies)
    graph = analysis.graph
    settings = {
        "criterion": criterion,
        "metric": metric,
        "shares": list(steps),
        "data": given.data,
        "preprocess": given.preprocess,
        "limit": given.limit or calibration.LIMIT,
        **policies,
        **{name: list(v) if isinstance(v, tuple) else v for name, v in planning.items() if name != "criterion"},
    }
    record = Record(analysis.model.sha256, settings)
    if output is not None and output.exists() and not force:
        record = resume(output, record, graph)
        out.note(f"going on from {output}, which has {len(record.curves)} groups")
    elif output is not None:
        check_output(output, force)
    batches = given.batches(out, analysis, seed=seed)
    assert batches is not None
    fitted, held_back = share_out(batches)
    judge = _judge(out, given, metric, analysis, held_back, seed)
    done = len(record.curves)
    with out.progress("sensitivity", len(graph.groups)) as progress:
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
            progress(len(record.curves), len(graph.groups))
            if output is not None:
                write_text(output, record.to_json(graph))
    curves = [record.curves[i] for i in sorted(record.curves)]
    meaning = f"loss of {metric}" if metric else "squared error of the outputs, relative to their variance,"
    if plot is not None:
        plot_sensitivity(graph, curves, plot, meaning.rstrip(","))
        out.note(f"wrote {plot}")
    out.data(
        lambda: documents.document(
            "sensitivity", model=str(model), measured=len(curves) - done, **record.document(graph)
        ),
        lambda: sensitivity_table(graph, curves, steps, meaning[0].upper() + meaning[1:]),
    )
    if output is not None:
        out.note(f"wrote {output}")


def _judge(
    out: Output,
    given: calibration.Given,
    metric: str | None,
    analysis: TracedModel,
    held_back: Batches,
    seed: int,
) -> Judge:
    """Choose what to judge changed networks by; a metric is measured on all of the data, labels included."""
    from onnxprune.sensitivity import MetricLoss, OutputError

    original = analysis.graph.proto
    if metric is None:
        return OutputError(original, held_back)
    return MetricLoss(original, given.open(out, analysis, seed=seed, limit=given.limit or calibration.LIMIT), metric)
