"""`onnxprune finetune`: train a model further, on ONNX Runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from onnxprune.cli import options
from onnxprune.cli.models import user_functions
from onnxprune.cli.options import SHARE
from onnxprune.cli.output import Output, check_output, reporting, write_text
from onnxprune.errors import PlanError
from onnxprune.settings import TrainSettings, build

_EXAMPLES = """\b
Examples:
  onnxprune finetune small.onnx -o tuned.onnx --teacher model.onnx --data images/      no labels needed
  onnxprune finetune small.onnx -o tuned.onnx --data train.npz --epochs 20 --flip --crop 4
  onnxprune finetune small.onnx -o tuned.onnx --data train.zip --checkpoint run.npz --resume
"""


@click.command("finetune", short_help="Train a model further, on ONNX Runtime.", epilog=_EXAMPLES)
@options.model_argument
@options.output("Where the trained model goes.")
@click.option(
    "--data",
    required=True,
    metavar="DATA",
    help="What to learn from: an .npz or .npy file, a folder of .npy files, a folder or .zip of images, a Python "
    "function module:function that gives batches, or digits.",
)
@click.option("--preprocess", metavar="RECIPE", help="How data become inputs; see `onnxprune evaluate`.")
@click.option("--limit", type=click.IntRange(min=1), help="Take so many samples, chosen by --seed.")
@click.option(
    "--teacher",
    type=click.Path(path_type=Path),
    metavar="ORIGINAL",
    help="Learn from what this model makes of the data; labels aren't needed.",
)
@click.option("--validation", metavar="DATA", help="Samples to judge by. [default: a part of --data]")
@click.option("--hold-out", type=SHARE, default=0.1, help="Share of --data held back to judge by. [default: 10%]")
@click.option("--metric", help="What decides which model is better; see `onnxprune evaluate`.")
@options.of(TrainSettings, "training")
@click.option(
    "--backend",
    default="native",
    show_default=True,
    metavar="NAME",
    help="What trains: native, a plug-in's backend (ort-training), or a Python function module:function that takes the "
    "model and the data, and returns the trained model.",
)
@click.option(
    "--training-python",
    type=click.Path(path_type=Path),
    metavar="PYTHON",
    help="The interpreter that --backend ort-training trains in; `python -m onnxprune_ort_training` makes one.",
)
@click.option(
    "--checkpoint", type=click.Path(path_type=Path), metavar="FILE", help="Keep all that is needed to go on here."
)
@click.option("--every", type=click.IntRange(min=1), help="Write it after so many steps too, not only each epoch.")
@click.option("--resume", is_flag=True, help="Go on from --checkpoint, if it exists.")
@click.option(
    "--history",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write what happened in each epoch, as .json or .csv.",
)
@options.providers
@click.option("--threads", type=click.IntRange(min=1), help="Threads within an operator. [default: ONNX Runtime's]")
@options.force
@reporting
def command(
    model: Path,
    output: Path,
    data: str,
    preprocess: str | None,
    limit: int | None,
    teacher: Path | None,
    validation: str | None,
    hold_out: float,
    metric: str | None,
    training: dict[str, Any],
    backend: str,
    training_python: Path | None,
    checkpoint: Path | None,
    every: int | None,
    resume: bool,
    history: Path | None,
    providers: tuple[str, ...],
    threads: int | None,
    force: bool,
    out: Output,
) -> None:
    """Train MODEL further, and write the better of before and after.

    With --teacher, its outputs are followed (knowledge distillation); with labels, they are learnt. The training step
    is an ONNX graph, and runs on any execution provider.
    """
    from onnxprune.data import open_data, read_recipe
    from onnxprune.model.file import load, save
    from onnxprune.report.documents import document, to_json
    from onnxprune.report.evaluation import finetuning_fields, finetuning_tables
    from onnxprune.train import finetune
    from onnxprune.train.history import to_csv

    if (resume or every) and checkpoint is None:
        flag = "--resume" if resume else "--every"
        raise PlanError("OP302", f"{flag} needs a file", hint="say which with --checkpoint")
    check_output(output, force)
    if history is not None:
        check_output(history, force)
    if checkpoint is not None:
        check_output(checkpoint, force or resume)
    user_functions(data, backend, metric)
    settings = build(TrainSettings, training)
    seed = settings.seed
    with out.step("load"):
        source = load(model)
        original = None if teacher is None else load(teacher)
    recipe = None if preprocess is None else read_recipe(preprocess)
    with out.step("open data"):
        samples = open_data(data, source.proto, recipe=recipe, limit=limit, seed=seed)
        judged = None if validation is None else open_data(validation, source.proto, recipe=recipe, seed=seed)
    for note in samples.notes:
        out.note(f"note: {note}")
    with out.progress() as progress:
        result = finetune(
            source,
            samples,
            teacher=original,
            validation=judged,
            hold_out=hold_out,
            settings=settings,
            backend=backend,
            training_python=training_python,
            metric=metric,
            progress=progress,
            checkpoint=checkpoint,
            every=every or 0,
            resume=resume,
            providers=providers,
            threads=threads,
        )
    if result.failure is None or result.kept == "after":
        with out.step("write"):
            save(replace(source, proto=result.proto), output, force=force)
    if history is not None:
        csv = history.suffix == ".csv"
        write_text(history, to_csv(result.history) if csv else to_json(document("history", epochs=result.history)))
    out.summary(
        document("finetune", model=model, output=output, **finetuning_fields(result)), finetuning_tables(result)
    )
    if result.failure is not None:
        if result.kept == "after":
            out.note(f"wrote {output}, the best model before that")
        raise result.failure
    out.note(f"wrote {output}")
