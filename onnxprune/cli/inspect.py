"""`onnxprune inspect`: what a model is, and what of it can be pruned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxprune.cli import options
from onnxprune.cli.models import open_model
from onnxprune.cli.output import Output, reporting


@click.command("inspect", short_help="Show what a model is and what can be pruned.")
@options.model_argument
@options.input_shapes
@options.policies
@reporting
def command(model: Path, input_shapes: list[Any], policies: dict[str, Any], out: Output) -> None:
    """Show the layers and groups of MODEL, and what of it can be pruned.

    A group is a set of channels that leave together, unit by unit: those of a layer and of
    everything coupled to it.
    """
    from onnxprune.model.file import file_size
    from onnxprune.report import console, documents
    from onnxprune.report.summary import summarize

    analysis, _ = open_model(out, model, input_shapes, policies=policies)
    proto = analysis.model.proto
    summary = summarize(analysis.graph)
    size = file_size(analysis.model)
    out.data(
        lambda: documents.document(
            "inspect",
            model=str(model),
            **documents.header_fields(proto),
            file_size=size,
            **documents.model_fields(summary),
        ),
        lambda: console.model_header(str(model), proto, summary),
        lambda: console.layers(summary),
        lambda: console.groups(summary),
        lambda: console.what_stays(summary, f"see `onnxprune explain {model}`"),
        lambda: console.totals(summary, size),
    )
