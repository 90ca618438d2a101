"""`onnxprune verify`: check a pruned model against its original."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxprune.cli import options
from onnxprune.cli.models import open_model
from onnxprune.cli.output import Output, reporting, warn_of_gaps
from onnxprune.settings import build
from onnxprune.settings.shrinking import VerifySettings

_EXAMPLES = """\b
Examples:
  onnxprune verify model.onnx small.onnx --plan plan.json     prove it
  onnxprune verify model.onnx same.onnx                       do they compute the same?
  onnxprune verify model.onnx small.onnx --tolerance 0.1      outputs may differ by 10 %
"""


@click.command("verify", short_help="Check a pruned model against its original.", epilog=_EXAMPLES)
@click.argument("original", type=click.Path(path_type=Path))
@click.argument("pruned", type=click.Path(path_type=Path))
@options.of(VerifySettings, "given")
@options.input_shapes
@options.inputs
@reporting
@options.custom_ops
def command(
    original: Path,
    pruned: Path,
    given: dict[str, Any],
    input_shapes: list[Any],
    inputs: list[Any],
    out: Output,
) -> None:
    """Check PRUNED against the ORIGINAL that it was made from.

    With --plan, PRUNED must compute what ORIGINAL computes with the removed weights set to zero; this is a proof.
    Without it, nothing is proved: PRUNED must have ORIGINAL's interface, and its outputs must agree within --tolerance.
    That suits models from which nothing was removed; a pruned model needs its plan.

    The exit status is 1 if a check fails.
    """
    from onnxprune.model.file import load
    from onnxprune.report.console import comparison_tables
    from onnxprune.report.documents import document, fields
    from onnxprune.workflow.planning import read_plan
    from onnxprune.workflow.verifying import require_equal, verify

    settings = build(VerifySettings, {**given, **({"inputs": True} if inputs else {})})
    plan = None if settings.plan is None else read_plan(settings.plan)
    analysis, arrays = open_model(out, original, input_shapes, inputs, plan=plan)
    with out.step("load"):
        loaded = load(pruned)
    with out.step("compare" if plan is None else "verify"):
        found = verify(analysis, loaded, plan, inputs=arrays, tolerance=settings.tolerance, seed=settings.seed)
    out.data(document("verify", original=original, pruned=pruned, **fields(found)), comparison_tables(found))
    require_equal(found, str(pruned))
    warn_of_gaps(out, plan, found.verification)
