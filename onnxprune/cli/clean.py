"""`onnxprune clean`: fewer nodes, the same outputs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxprune.cli import options
from onnxprune.cli.making import makes
from onnxprune.cli.models import read_model
from onnxprune.cli.output import Output, check_output
from onnxprune.settings import CleanSettings, build

_EXAMPLES = """\b
Examples:
  onnxprune clean model.onnx -o clean.onnx
  onnxprune clean model.onnx -o clean.onnx --optimizers onnxruntime --no-timed
"""


@makes("clean", CleanSettings, "File for the cleaned model.", examples=_EXAMPLES, compares=False)
@options.input_shapes
@options.inputs
def command(
    model: Path,
    output: Path,
    given: dict[str, Any],
    input_shapes: list[Any],
    inputs: list[Any],
    force: bool,
    out: Output,
) -> None:
    """Write MODEL with constants folded, dead code removed and nodes fused.

    ONNX Runtime's own rewrites and, if it is installed, onnxsim do it. What they make is taken only if its outputs
    equal those of MODEL, and if it is neither larger nor slower. If nothing is better, MODEL is written as it is.
    """
    from onnxprune.model.file import save
    from onnxprune.report.cleaning import cleaning_fields, cleaning_tables
    from onnxprune.report.documents import document
    from onnxprune.workflow.cleaning import clean

    settings = build(CleanSettings, given)
    check_output(output, force, inputs=[model, *(path for _, path in inputs)])
    with out.progress() as progress:
        progress("load", 0, None)
        loaded, shapes, arrays = read_model(model, input_shapes, inputs)
        result = clean(loaded, replace(settings, input_shapes=shapes, inputs=arrays), progress=progress)
        progress("write", 0, None)
        save(result.model, output, force=force)
    out.summary(
        document(
            "clean",
            model=model,
            output=output,
            **cleaning_fields(result),
        ),
        cleaning_tables(result),
    )
    out.note(f"wrote {output}" + ("" if result.best is not None else ", as it was: nothing makes it better"))
