"""`onnxprune sweep pick`: take a model of a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxprune.cli import options
from onnxprune.cli.group import Command
from onnxprune.cli.output import Output, check_output, reporting, write_text
from onnxprune.cli.receipts import receipts
from onnxprune.settings import PickSettings, build

_EXAMPLES = """\b
Examples:
  onnxprune sweep pick model.sweep --max-drop 1% -o small.onnx
  onnxprune sweep pick model.sweep --max-drop 1% --minimize size -o small.onnx
  onnxprune sweep pick model.sweep --max-drop 1% --latency-on cuda -o small.onnx
  onnxprune run small.toml                                      the same again
"""


@click.command("sweep pick", cls=Command, epilog=_EXAMPLES)
@click.argument("store")
@options.output("File for the model.")
@options.of(PickSettings, "given", required=("max_drop",))
@options.recipe
@options.force
@receipts()
@reporting
def command(store: str, output: Path, given: dict[str, Any], recipe: Path | None, force: bool, out: Output) -> None:
    """Take the cheapest model of the sweep in STORE within a drop in accuracy: make it again, prove it, and write it.

    Samples that chose nothing judge it, once.
    """
    from onnxprune.model.file import save
    from onnxprune.report.sweep import picked_document, picked_tables
    from onnxprune.sweeping.session import pick
    from onnxprune.workflow.recipe import write_recipe

    settings = build(PickSettings, given)
    recipe = recipe or output.with_suffix(".toml")
    reads = [settings.model, settings.data, store]
    check_output(output, force, inputs=reads)
    check_output(recipe, force, inputs=[*reads, output])
    with out.progress() as progress:
        found = pick(store, settings, progress=progress)
        save(found.candidate.model, output, force=force)
        text = write_recipe(recipe, found.model, output, found.candidate.settings, found.candidate.result)
        write_text(recipe, text)
    out.summary(picked_document(found, store, output, recipe), picked_tables(found))
    out.note(f"wrote {output} and {recipe}")
