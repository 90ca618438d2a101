"""`onnxprune evaluate`: measure accuracy, alone or against the original."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxprune.cli import options
from onnxprune.cli.group import Command
from onnxprune.cli.models import note_fixed_batch, sizes_for, user_functions
from onnxprune.cli.output import Output, reporting, warn_of_uncertain
from onnxprune.cli.receipts import receipts
from onnxprune.errors import PlanError
from onnxprune.settings import DataSettings, build
from onnxprune.settings.evaluation import METRICS
from onnxprune.settings.types import share_hint

_EXAMPLES = """\b
Examples:
  onnxprune evaluate model.onnx --data val.zip
  onnxprune evaluate small.onnx --against model.onnx --data val/ --limit 500
  onnxprune evaluate small.onnx --against model.onnx --data val/ --max-drop 1% --min top1=90%
  onnxprune evaluate model.onnx --data x.npz --preprocess 'scale=1/255 mean=0.5 std=0.5'
  onnxprune evaluate detector.onnx --data images/ --labels instances.json
  onnxprune evaluate speech.onnx --data features.npz --labels text.txt --alphabet symbols.txt
  onnxprune evaluate model.onnx --data loader:batches --metric metrics:mine
"""


@click.command("evaluate", cls=Command, epilog=_EXAMPLES)
@click.argument("model", type=click.Path(path_type=Path))
@options.of(DataSettings, "given", required=("data",))
@options.input_shapes
@options.file("--against", "ORIGINAL", "Compare with this model on the same samples.")
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    help=f"Metric: {', '.join(METRICS)}, or module:function. Repeatable. [default: all that the task, labels and "
    "--against allow]",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Random seed.")
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    help="Batch size. One that the file fixes at 1 is ignored where samples can run together all the same. "
    "[default: 32, or the model's if it is fixed]",
)
@click.option(
    "--max-drop",
    type=options.SHARE,
    help="With --against: exit with status 1 if the first metric of the task drops by more than this; without labels, "
    "if the disagreement is larger.",
)
@click.option(
    "--min",
    "least",
    type=options.Parsed("METRIC=VALUE", options.metric_limit),
    multiple=True,
    help="Exit with status 1 if this metric is lower: top1=0.9 or top1=90%. Repeatable.",
)
@click.option(
    "--max",
    "most",
    type=options.Parsed("METRIC=VALUE", options.metric_limit),
    multiple=True,
    help="Exit with status 1 if this metric is higher: kl=0.05. Repeatable.",
)
@options.providers
@options.force
@receipts(examples=True)
@reporting
@options.custom_ops
def command(
    model: Path,
    given: dict[str, Any],
    input_shapes: list[Any],
    against: Path | None,
    metrics: tuple[str, ...],
    seed: int,
    batch: int | None,
    max_drop: float | None,
    least: tuple[tuple[str, float], ...],
    most: tuple[tuple[str, float], ...],
    providers: tuple[str, ...],
    force: bool,
    examples: int,
    out: Output,
) -> None:
    """Measure the accuracy of MODEL on data, alone or against the ORIGINAL that it was made from.

    What the model is for is recognized from its outputs and the labels, or given by --task: classes, decisions,
    numbers, masks, boxes, text or embeddings. With labels, the metrics are those of the task. With --against, they
    also include the agreement with the original in the same terms and the distance of outputs, which need no labels.
    Every value has a confidence interval; differences are measured on the same samples.

    --max-drop, --min and --max are gates. The measured value decides; the output says if its interval reaches the
    limit, so that other samples may decide otherwise.
    """
    from onnxprune.evaluation import evaluate
    from onnxprune.evaluation.choice import check_name
    from onnxprune.model.file import load
    from onnxprune.report.checks import checks_of
    from onnxprune.report.documents import document, fields
    from onnxprune.report.evaluation import evaluation_tables
    from onnxprune.report.gates import gate_tables
    from onnxprune.workflow.gates import quality_gates, require
    from onnxprune.workflow.inputs import in_batches, open_samples

    if max_drop is not None and against is None:
        raise PlanError("OP302", "--max-drop needs the original", hint="name it with --against")
    if max_drop is not None and not _is_drop(max_drop):
        cause, hint = f"{max_drop:g} is out of range: must be at least 0 and below 1", share_hint(max_drop, _is_drop)
        raise PlanError("OP303", cause, where="--max-drop", hint=hint)
    for metric, _ in (*least, *most):
        check_name(metric)
    metrics = tuple(dict.fromkeys([*metrics, *dict(least), *dict(most)])) if metrics else ()
    settings = build(DataSettings, given)
    user_functions(settings.data, settings.reading.postprocess, *metrics)
    with out.step("load"):
        loaded, original = load(model), None if against is None else load(against)
        if batch != 1:
            loaded, original = in_batches(loaded, original)
    with out.progress() as progress:
        sizes = sizes_for(input_shapes, loaded.proto)
        samples = open_samples(settings, loaded, seed=seed, input_shapes=sizes, progress=progress)
    note_fixed_batch(out, samples, batch)
    with out.progress() as progress:
        evaluation = evaluate(
            loaded,
            samples,
            against=original,
            metrics=metrics or None,
            providers=providers,
            batch=batch or 32,
            seed=seed,
            examples=examples,
            progress=progress,
        )
    gates = quality_gates(evaluation, max_drop, dict(least), dict(most))
    source = {"model": model, "against": against, "data": settings.data}
    out.data(
        document("evaluate", **source, **fields(evaluation), assumed=getattr(samples, "notes", ()), gates=gates),
        evaluation_tables(evaluation),
        gate_tables(gates),
        checks=checks_of(gates),
    )
    for note in evaluation.notes:
        out.warn(note)
    if evaluation.not_finite:
        out.warn(f"outputs aren't finite for {evaluation.not_finite} of {evaluation.samples} samples")
    require(gates)
    warn_of_uncertain(out, gates)


def _is_drop(share: float) -> bool:
    return 0 <= share < 1
