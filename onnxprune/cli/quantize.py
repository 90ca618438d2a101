"""`onnxprune quantize`: store and compute a model in fewer bits, if that pays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onnxprune.cli.making import makes
from onnxprune.cli.models import user_functions
from onnxprune.cli.output import Output, check_output
from onnxprune.settings import QuantizeSettings, build

_EXAMPLES = """\b
Examples:
  onnxprune quantize model.onnx -o small.onnx --data images/
  onnxprune quantize model.onnx -o small.onnx --data x.npz --kind static --calibration entropy
  onnxprune quantize model.onnx -o small.onnx --data x.npz --objective size
"""


@makes("quantize", QuantizeSettings, "File for the quantized model.", examples=_EXAMPLES, required=("data",))
def command(model: Path, output: Path, given: dict[str, Any], force: bool, examples: int, out: Output) -> None:
    """Write MODEL in fewer bits, in the form that pays most on this machine.

    Forms are made by ONNX Runtime's quantizers. Each is tried on samples that weren't used to find ranges, and timed
    against MODEL. Layers that lose too much, or that INT8 makes slower, stay in float. If no form keeps the outputs and
    pays, nothing is written and the exit status is 1. The form that is kept is judged on further samples.
    """
    from onnxprune.model.file import file_size, load, save
    from onnxprune.report.documents import document
    from onnxprune.report.evaluation import evaluation_tables
    from onnxprune.report.quantization import quantization_fields, quantization_tables
    from onnxprune.workflow.quantizing import quantize

    settings = build(QuantizeSettings, given)
    check_output(output, force, inputs=[model, settings.samples.data])
    user_functions(settings.samples.data, settings.samples.reading.postprocess)
    with out.progress() as progress:
        progress("load", 0, None)
        loaded = load(model)
        result = quantize(loaded, settings, examples=examples, progress=progress)
        progress("write", 0, None)
        save(result.model, output, force=force)
        out.on_stop(lambda: f"stopped; {output} was written")
    size = file_size(loaded)
    out.summary(
        document(
            "quantize",
            model=model,
            output=output,
            **quantization_fields(result),
            file_size={"before": size, "after": result.best.size},
            evaluation=result.evaluation,
        ),
        quantization_tables(result.found, size),
        evaluation_tables(result.evaluation),
    )
    out.note(f"wrote {output}")
