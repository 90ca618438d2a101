"""`onnxprune pack`: a model in fewer bytes, to download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onnxprune.cli.making import makes
from onnxprune.cli.models import user_functions
from onnxprune.cli.output import Output, check_output
from onnxprune.settings import PackSettings, build

_EXAMPLES = """\b
Examples:
  onnxprune pack model.onnx -o model.onnxpack
  onnxprune pack model.onnx -o model.onnxpack --clusters 16 --data images/ --max-drop 1%
  onnxprune pack model.onnx -o small.onnx --clusters 16 --data x.npz --direct
"""


@makes("pack", PackSettings, "File to write.", examples=_EXAMPLES)
def command(model: Path, output: Path, given: dict[str, Any], force: bool, examples: int, out: Output) -> None:
    """Write MODEL in fewer bytes. `onnxprune unpack` makes the same files of it again, byte for byte.

    Zeros, weights of few different values, and the bytes of numbers that repeat take little space, so that this comes
    after pruning, sparsity and quantization. It changes the size of a download, not the speed of the model. With
    --clusters, weights are made to share values before, and what that loses is measured on samples of --data.
    """
    from onnxprune.report.documents import document
    from onnxprune.report.evaluation import evaluation_tables
    from onnxprune.report.packing import packing_fields, packing_tables
    from onnxprune.workflow.packing import pack

    settings = build(PackSettings, given)
    check_output(output, force, inputs=[model, settings.samples.data])
    user_functions(settings.samples.data, settings.samples.reading.postprocess)
    with out.progress() as progress:
        progress("load", 0, None)
        result = pack(model, output, settings, force=force, examples=examples, progress=progress)
        out.on_stop(lambda: f"stopped; {output} was written")
    judged = () if result.evaluation is None else evaluation_tables(result.evaluation)
    out.summary(
        document("pack", model=model, output=output, **packing_fields(result)), packing_tables(result), iter(judged)
    )
    out.note(f"wrote {output}")
