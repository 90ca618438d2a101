"""`onnxprune evaluate`: measure accuracy, by itself or against the original."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from onnxprune.cli import options
from onnxprune.cli.output import Output, reporting

_EXAMPLES = """\b
Examples:
  onnxprune evaluate model.onnx --data val.zip
  onnxprune evaluate small.onnx --against model.onnx --data val/ --limit 500
  onnxprune evaluate model.onnx --data x.npz --preprocess 'scale=1/255 mean=0.5 std=0.5'
  onnxprune evaluate model.onnx --data loader:batches --metric metrics:f1
"""


@click.command("evaluate", short_help="Measure accuracy, and the loss by pruning.", epilog=_EXAMPLES)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--data",
    required=True,
    metavar="DATA",
    help="An .npz or .npy file, a folder of .npy files, a folder or .zip of images, a Python function "
    "module:function that returns batches, digits, or random.",
)
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="ORIGINAL",
    help="Compare with this model on the same samples.",
)
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    help="top1, top5, miou, agreement, kl, mse, cosine, or module:function. Repeatable. [default: what labels "
    "and --against allow]",
)
@click.option(
    "--preprocess",
    metavar="RECIPE",
    help="How raw data become inputs: 'resize=256 crop=224 channels=RGB scale=1/255 mean=0.485,0.456,0.406 "
    "std=0.229,0.224,0.225 label_offset=0', or a TOML file of such keys. [default: guessed and printed]",
)
@click.option("--limit", type=click.IntRange(min=1), help="Number of samples to use, chosen by --seed.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Random seed.")
@click.option("--batch", type=click.IntRange(min=1), default=32, show_default=True, help="Samples at a time.")
@click.option("--output-name", metavar="NAME", help="The output with class scores. [default: found by its shape]")
@options.providers
@reporting
def command(
    model: Path,
    data: str,
    against: Path | None,
    metrics: tuple[str, ...],
    preprocess: str | None,
    limit: int | None,
    seed: int,
    batch: int,
    output_name: str | None,
    providers: tuple[str, ...],
    out: Output,
) -> None:
    """Measure MODEL on data, by itself or against the ORIGINAL that it was made from.

    With class labels: accuracy or mean IoU. With --against, also agreement of predictions and
    distances of outputs, which need no labels. Every value has a confidence interval; changes are
    measured on the same samples.
    """
    from onnxprune.data import open_data, read_recipe
    from onnxprune.data.functions import is_function_name
    from onnxprune.evaluation import evaluate
    from onnxprune.model.file import load
    from onnxprune.report.documents import document, fields
    from onnxprune.report.evaluation import evaluation_tables

    if any(map(is_function_name, (data, *metrics))) and "" not in sys.path:
        sys.path.insert(0, "")  # as for `python -m`: the user's modules are in the working directory
    recipe = None if preprocess is None else read_recipe(preprocess)
    with out.step("load"):
        loaded, original = load(model), None if against is None else load(against)
    with out.step("open data"):
        samples = open_data(data, loaded.proto, recipe=recipe, limit=limit, seed=seed)
    for note in samples.notes:
        out.note(f"note: {note}")
    with out.progress() as progress:
        evaluation = evaluate(
            loaded,
            samples,
            against=original,
            metrics=metrics or None,
            output=output_name,
            providers=providers,
            batch=batch,
            seed=seed,
            progress=progress,
        )
    source = {"model": model, "against": against, "data": data}
    out.data(
        document("evaluate", **source, **fields(evaluation), assumed=samples.notes),
        evaluation_tables(evaluation),
    )
    for note in evaluation.notes:
        out.warn(note)
    if evaluation.not_finite:
        out.warn(f"outputs aren't finite for {evaluation.not_finite} of {evaluation.samples} samples")
