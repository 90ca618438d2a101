"""`onnxprune verify`: check a pruned model against its original."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxprune.cli import options
from onnxprune.cli.group import Command
from onnxprune.cli.models import read_model, user_functions
from onnxprune.cli.output import Output, reporting, warn_of_gaps
from onnxprune.cli.receipts import receipts
from onnxprune.settings import build
from onnxprune.settings.pruning import VerifySettings

_EXAMPLES = """\b
Examples:
  onnxprune verify model.onnx small.onnx                      by the plan in its metadata
  onnxprune verify model.onnx small.onnx --plan plan.json     by a plan that you reviewed
  onnxprune verify model.onnx repaired.onnx --data images/    also how far the answers agree
  onnxprune verify model.onnx same.onnx --tolerance 0.01      without a plan: do they compute the same?
"""


@click.command("verify", cls=Command, epilog=_EXAMPLES)
@click.argument("original", type=click.Path(path_type=Path))
@click.argument("pruned", type=click.Path(path_type=Path))
@options.of(VerifySettings, "given")
@options.input_shapes
@options.inputs
@options.force
@receipts(examples=True)
@reporting
@options.custom_ops
def command(
    original: Path,
    pruned: Path,
    given: dict[str, Any],
    input_shapes: list[Any],
    inputs: list[Any],
    force: bool,
    examples: int,
    out: Output,
) -> None:
    """Check PRUNED against the ORIGINAL that it was made from.

    The plan is read from --plan or from PRUNED's metadata. PRUNED must compute what ORIGINAL computes with the removed
    weights set to zero; this is a proof. If PRUNED was repaired or trained afterwards, this is checked with the
    original's weights put back, and the others must be as the repair or training left them. What these do to the
    answers is measured: give --data.

    Without a plan, nothing is proved: PRUNED must have ORIGINAL's interface, and its outputs must agree within
    --tolerance. That suits models from which nothing was removed.

    The exit status is 1 if a check fails.
    """
    from onnxprune.evaluation import evaluate
    from onnxprune.model.file import load
    from onnxprune.planning.signature import signed_plan
    from onnxprune.report.documents import document, fields
    from onnxprune.report.evaluation import evaluation_tables
    from onnxprune.report.verification import comparison_checks, comparison_tables
    from onnxprune.workflow.inputs import open_samples
    from onnxprune.workflow.planning import read_plan
    from onnxprune.workflow.verifying import require_equal, verify

    settings = build(VerifySettings, {**given, **({"inputs": True} if inputs else {})})
    plan, data, seed = None if settings.plan is None else read_plan(settings.plan), settings.calibration, settings.seed
    user_functions(data.data, data.reading.postprocess)
    with out.step("load"):
        source, shapes, arrays = read_model(original, input_shapes, inputs)
        loaded = load(pruned)
    evaluation = None
    with out.progress() as progress:
        progress("verify", 0, None)
        options: dict[str, Any] = {"tolerance": settings.tolerance, "seed": seed, "data": data}
        found = verify(source, loaded, plan, input_shapes=shapes, inputs=arrays, **options)
        if data.data is not None and not found.changes:
            samples = open_samples(data, source, seed=seed or 0, progress=progress)
            evaluation = evaluate(loaded, samples, against=source, seed=seed or 0, examples=examples, progress=progress)
    out.data(
        document("verify", original=original, pruned=pruned, **fields(found), evaluation=evaluation),
        comparison_tables(found),
        *([] if evaluation is None else [evaluation_tables(evaluation)]),
        checks=comparison_checks(found),
    )
    require_equal(found, str(pruned))
    if found.verification is not None and evaluation is None:
        out.note("whether the answers are still good isn't part of the proof: --data measures it")
    warn_of_gaps(out, plan or signed_plan(loaded.proto), found.verification)
