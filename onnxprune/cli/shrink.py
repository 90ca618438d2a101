"""`onnxprune shrink`: from a file to what is deployed, in several stages."""

from __future__ import annotations

import tomllib
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from time import time
from typing import Any

import click

from onnxprune.cli import options
from onnxprune.cli.making import makes
from onnxprune.cli.models import user_functions
from onnxprune.cli.output import Output, check_output, what_is_kept, write_text
from onnxprune.errors import VerificationError
from onnxprune.settings import ShrinkSettings, build

_EXAMPLES = """\b
Examples:
  onnxprune shrink model.onnx -o small.onnx --data images/ --max-drop 1%
  onnxprune shrink model.onnx -o small.onnx --data images/ --dry-run
  onnxprune shrink model.onnx -o small.onnx --data x.npz --target latency=50% --for avx2
  onnxprune shrink model.onnx -o small.onnx --data x.npz --stages clean,quantize --set quantize.kind=static
  onnxprune run small.toml                                      the same again
"""


def _change(text: str) -> tuple[str, str, Any]:
    key, equals, value = text.partition("=")
    table, dot, name = key.strip().partition(".")
    if not (equals and dot and table and name):
        raise ValueError(f"{text!r} is not of the form STAGE.KEY=VALUE")
    try:
        return table, name.replace("-", "_"), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return table, name.replace("-", "_"), value


changes = click.option(
    "--set",
    "changes",
    type=options.Parsed("STAGE.KEY=VALUE", _change),
    multiple=True,
    help="Set any setting of a stage, by the name that its own command has: prune.criterion=l1, "
    'quantize.keep=["/head/*"]. Values are as in TOML; text needs no quotes. Repeatable.',
)


@makes("shrink", ShrinkSettings, "File for the result.", examples=_EXAMPLES)
@changes
@click.option("--dry-run", is_flag=True, help="Only show what each stage is expected to bring.")
@options.recipe
def command(
    model: Path,
    output: Path,
    given: dict[str, Any],
    changes: list[tuple[str, str, Any]],
    dry_run: bool,
    recipe: Path | None,
    force: bool,
    examples: int,
    out: Output,
) -> None:
    """Make MODEL as small and fast as an allowed loss permits: clean it, prune and repair it, quantize it.

    Each stage is judged by samples that it hasn't seen and timed against the model before it. What loses too much, or
    doesn't pay on this machine, is left out, and the output says why. Other samples judge the result, once.

    How much may be lost is said by --max-drop or --target. Without either, it is what goes unnoticed: what the model's
    own answers lose when its inputs are shifted by a hair. Without --data, only cleaning and --target apply.

    Ctrl-C keeps the best model so far.
    """
    stages: dict[str, dict[str, Any]] = {}
    for stage, key, value in changes:
        stages.setdefault(stage, {})[key] = value
    settings = build(ShrinkSettings, {**given, "options": stages})
    how: dict[str, Any] = {"dry_run": dry_run, "force": force, "examples": examples}
    deploy(out, model, output, settings, recipe or output.with_suffix(".toml"), **how)


def deploy(
    out: Output,
    model: Path,
    output: Path,
    settings: ShrinkSettings,
    recipe: Path | None,
    *,
    dry_run: bool,
    force: bool,
    examples: int,
) -> str | None:
    """Shrink a model and write it, with its recipe if a file for it is named; return the digest of what was written.

    Raises:
        VerificationError: no stage pays (OP507), or a limit is missed (OP509).
    """
    from onnxprune.model.file import load, save
    from onnxprune.report.documents import document
    from onnxprune.report.evaluation import evaluation_tables
    from onnxprune.report.pipeline import (
        brought,
        expected_tables,
        result_tables,
        stage_fields,
        verdict_checks,
        verdict_tables,
    )
    from onnxprune.workflow.pipeline import planned
    from onnxprune.workflow.recipe import write_recipe

    samples = settings.samples
    reads = [model, samples.data, samples.labels, samples.tokenizer]
    user_functions(samples.data, samples.reading.postprocess)
    checkpoint = None if settings.checkpoint is None else Path(settings.checkpoint)
    if not dry_run:
        check_output(output, force, inputs=reads)
        if recipe is not None:
            check_output(recipe, force, inputs=[*reads, output])
        if checkpoint is not None:
            check_output(checkpoint, force or settings.resume, inputs=[*reads, output])
    kept = partial(what_is_kept, checkpoint, time(), useful=recipe is not None)  # `run` has no checkpoint
    out.on_stop(kept)
    with ExitStack() as stack:
        with out.step("estimate"):
            pipeline = stack.enter_context(planned(load(model), settings))
        plan = expected_tables(pipeline.expected, pipeline.notes)
        if dry_run:
            out.data(document("shrink", model=model, expected=pipeline.expected, notes=pipeline.notes), plan)
            return None
        out.tables(plan)
        with out.progress() as progress:
            pipeline.progress = progress
            pipeline.describe, pipeline.examples, pipeline.layers = stage_fields, examples, out.reports
            result = pipeline.run()
            written = load(result.model.proto).sha256 if result.kept else None
            if result.kept:
                progress("write", 0, None)
                save(result.model, output, force=force)
                if recipe is not None:
                    write_text(recipe, write_recipe(recipe, model, output, settings, result))
    files, counts = [output] if recipe is None else [output, recipe], result.samples
    out.summary(
        document(
            "shrink",
            model=model,
            output=output if result.kept else None,
            recipe=recipe if result.kept else None,
            expected=result.expected,
            stages=result.verdicts,
            kept=result.kept,
            file_size={"before": result.size[0], "after": result.size[1]},
            outcome=brought(result),
            allowed={"drop": result.allowed, "why": result.basis, "metric": result.metric},
            samples=None if counts is None else dict(zip(("work", "choice", "judged"), counts, strict=True)),
            drop=result.drop,
            evaluation=result.evaluation,
            also=result.also,
            missed=result.missed,
            notes=result.notes,
        ),
        verdict_tables(result),
        *([] if result.evaluation is None or out.verbosity < 1 else [evaluation_tables(result.evaluation)]),
        result_tables(result),
        checks=verdict_checks(result),
    )
    if result.kept:
        out.note(f"wrote {' and '.join(map(str, files))}")
    if result.stopped:
        done = f"{output} has the stages that were done: {', '.join(result.kept)}"
        out.on_stop(partial(kept, written=done if result.kept else ""))
        raise KeyboardInterrupt
    if not result.kept:
        causes = "; ".join(f"{v.stage}: {v.why}" for v in result.verdicts)
        hint = "allow a larger drop with `max_drop`, or leave the model as it is"
        raise VerificationError("OP507", f"no stage pays, and nothing was written ({causes})", hint=hint)
    if result.missed:
        hint = f"{output} was written nevertheless; allow more, give more data, or try `effort` thorough"
        raise VerificationError("OP509", "; ".join(result.missed), hint=hint)
    return written
