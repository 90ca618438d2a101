"""`onnxprune finetune`: train a model further, on ONNX Runtime."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from time import time
from typing import Any

import click

from onnxprune.cli import options
from onnxprune.cli.making import makes
from onnxprune.cli.models import note_fixed_batch, sizes_for, user_functions
from onnxprune.cli.output import Output, check_output, what_is_kept, write_text
from onnxprune.errors import PlanError
from onnxprune.settings import DataSettings, TrainSettings, build

_EXAMPLES = """\b
Examples:
  onnxprune finetune small.onnx -o tuned.onnx --teacher model.onnx --data images/
  onnxprune finetune small.onnx -o tuned.onnx --data train.npz --epochs 20 --flip --crop 4
  onnxprune finetune small.onnx -o tuned.onnx --data train.zip --checkpoint run.npz --resume
  onnxprune finetune start.onnx -o ticket.onnx --data train.zip --sparse ticket --sparsity 90% --steps 5
"""


@makes("finetune", DataSettings, "File for the trained model.", examples=_EXAMPLES, required=("data",))
@options.input_shapes
@options.file(
    "--teacher", "ORIGINAL", "Learn from the outputs of this model (knowledge distillation); labels are optional."
)
@options.file("--plan", "PLAN", "Plan that MODEL was pruned with: it tells which channels of a --feature stayed.")
@click.option("--validation", metavar="DATA", help="Validation data. [default: part of --data]")
@click.option(
    "--hold-out", type=options.SHARE, default=0.1, help="Share of --data to hold out for validation. [default: 10%]"
)
@click.option(
    "--metric",
    help="Metric that selects the better model; see `onnxprune evaluate`. [default: distance from the teacher, or "
    "accuracy without one]",
)
@options.of(TrainSettings, "training")
@click.option(
    "--rewind",
    type=click.Path(path_type=Path),
    metavar="EARLY",
    help="With --sparse ticket: the same network with early weights, which each training after the first begins with. "
    "[default: MODEL]",
)
@click.option(
    "--backend",
    default="native",
    show_default=True,
    metavar="NAME",
    help="Training backend: native, that of a plug-in (ort-training), or a Python function module:function that takes "
    "the model and the data and returns the trained model.",
)
@options.file(
    "--training-python",
    "PYTHON",
    "Python interpreter for --backend ort-training; `python -m onnxprune_ort_training` sets one up.",
)
@options.file("--checkpoint", "FILE", "Save the state of training to this file after every epoch.")
@click.option("--every", type=click.IntRange(min=1), metavar="STEPS", help="Also write --checkpoint every STEPS steps.")
@click.option("--resume", is_flag=True, help="Resume from --checkpoint, if the file exists.")
@options.file("--history", "FILE", "Write losses and metrics by epoch to this .json or .csv file.")
@options.providers
@click.option("--threads", type=click.IntRange(min=1), help="Number of intra-operator threads. [default: all cores]")
@options.custom_ops
def command(
    model: Path,
    output: Path,
    given: dict[str, Any],
    input_shapes: list[Any],
    teacher: Path | None,
    plan: Path | None,
    validation: str | None,
    hold_out: float,
    metric: str | None,
    training: dict[str, Any],
    rewind: Path | None,
    backend: str,
    training_python: Path | None,
    checkpoint: Path | None,
    every: int | None,
    resume: bool,
    history: Path | None,
    providers: tuple[str, ...],
    threads: int | None,
    force: bool,
    examples: int,
    out: Output,
) -> None:
    """Train MODEL further, and write the better of the models before and after training.

    The model learns from the outputs of --teacher (knowledge distillation), from labels, or from both. The training
    step is an ONNX graph, and runs on any execution provider.
    """
    from onnxprune.model.file import load, save
    from onnxprune.planning.plan import apply_plan
    from onnxprune.report.documents import document, to_json
    from onnxprune.report.evaluation import finetuning_fields, finetuning_tables
    from onnxprune.report.outcome import trained_tables
    from onnxprune.rewrite.comparison import check_origin
    from onnxprune.shapes.batch import fix_batch
    from onnxprune.train import finetune
    from onnxprune.train.history import to_csv
    from onnxprune.workflow.analysis import analyze
    from onnxprune.workflow.inputs import as_opened, in_batches, open_samples
    from onnxprune.workflow.planning import read_plan

    if (resume or every) and checkpoint is None:
        flag = "--resume" if resume else "--every"
        raise PlanError("OP302", f"{flag} needs a checkpoint", hint="name the file with --checkpoint")
    reads = [model, teacher, plan, given.get("data"), validation]
    check_output(output, force, inputs=reads)
    if history is not None:
        check_output(history, force, inputs=reads)
    if checkpoint is not None:
        check_output(checkpoint, force or resume, inputs=reads)
    out.on_stop(partial(what_is_kept, checkpoint, time()))
    inputs, settings = build(DataSettings, given), build(TrainSettings, training)
    user_functions(inputs.data, inputs.reading.postprocess, backend, metric)
    with out.step("load"):
        source = load(model)
        original = None if teacher is None else load(teacher)
        kept = None
        if plan is not None:
            if original is None:
                raise PlanError("OP302", "--plan needs the original", hint="name it with --teacher")
            made = read_plan(plan)
            check_origin(source.proto, made)
            kept = apply_plan(analyze(original, plan=made).graph, made)
        if training.get("batch") != 1:
            source, original = in_batches(source, original)
    with out.progress() as progress:
        sizes = sizes_for(input_shapes, source.proto)
        samples = open_samples(inputs, source, seed=settings.seed, input_shapes=sizes, progress=progress)
        judged = None
        if validation is not None:
            alike = replace(as_opened(inputs, samples), data=validation, limit=None, labels=None)
            judged = open_samples(alike, source, seed=settings.seed)
    note_fixed_batch(out, samples, training.get("batch"))
    with out.progress() as progress:
        progress("train", 0, None)
        result = finetune(
            source,
            samples,
            teacher=original,
            kept=kept,
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
            examples=examples,
            providers=providers,
            threads=threads,
            rewind=rewind,
        )
    fix_batch(result.proto)
    if result.failure is None or result.kept == "after":
        with out.step("write"):
            save(replace(source, proto=result.proto), output, force=force)
        out.on_stop(lambda: f"stopped; {output} was written")
    if history is not None:
        csv = history.suffix == ".csv"
        write_text(history, to_csv(result.history) if csv else to_json(document("history", epochs=result.history)))
    out.summary(
        document("finetune", model=model, output=output, **finetuning_fields(result)),
        finetuning_tables(result),
        trained_tables(result),
    )
    if result.failure is not None:
        if result.kept == "after":
            out.note(f"wrote {output}, the best model before the failure")
        raise result.failure
    out.note(f"wrote {output}")
