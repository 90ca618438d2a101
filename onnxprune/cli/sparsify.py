"""`onnxprune sparsify`: set weights to zero, one by one or in patterns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onnxprune.cli.making import makes
from onnxprune.cli.models import user_functions
from onnxprune.cli.output import Output, check_output
from onnxprune.settings import SparsifySettings, build

_EXAMPLES = """\b
Examples:
  onnxprune sparsify model.onnx -o sparse.onnx --sparsity 80% --data images/
  onnxprune sparsify model.onnx -o sparse.onnx --pattern 2:4 --data x.npz
  onnxprune sparsify model.onnx -o sparse.onnx --pattern block-1x2 --sparsity 75% --data x.npz
"""


@makes("sparsify", SparsifySettings, "File for the sparse model.", examples=_EXAMPLES)
def command(model: Path, output: Path, given: dict[str, Any], force: bool, examples: int, out: Output) -> None:
    """Set weights of MODEL to zero where the outputs change least, and solve for those that stay.

    ONNX Runtime runs zeros no faster. They pay where the file is compressed for downloads, and on runtimes that use
    patterns of zeros: a table says which ones may use those of each layer.

    With --data, weights are chosen and solved for layer by layer, and the result is judged on other samples. Without,
    they are chosen by magnitude alone. The result is checked before it is written: only these weights changed, they are
    what was solved for, and their zeros are in the pattern. A pruned MODEL keeps its plan.
    """
    from onnxprune.model.file import load, save
    from onnxprune.report.documents import document
    from onnxprune.report.sparsity import sparsity_fields, sparsity_tables
    from onnxprune.workflow.sparsifying import sparsify

    settings = build(SparsifySettings, given)
    check_output(output, force, inputs=[model, settings.samples.data])
    user_functions(settings.samples.data, settings.samples.reading.postprocess)
    with out.progress() as progress:
        progress("load", 0, None)
        loaded = load(model)
        result = sparsify(loaded, settings, examples=examples, progress=progress)
        progress("write", 0, None)
        save(result.model, output, force=force)
        out.on_stop(lambda: f"stopped; {output} was written")
    out.summary(
        document("sparsify", model=model, output=output, **sparsity_fields(result, settings)),
        sparsity_tables(result, settings, every=out.verbosity > 0),
    )
    out.note(f"wrote {output}")
