"""`onnxprune inspect`: show a model and what can be pruned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxprune.cli import options
from onnxprune.cli.group import Command
from onnxprune.cli.models import open_model, sample_settings
from onnxprune.cli.output import Output, reporting


@click.command("inspect", cls=Command)
@options.model_argument
@options.input_shapes
@options.inputs
@options.sample_data
@options.policies
@click.option("--measure", is_flag=True, help="Also time the model on the CPU: as it is, cleaned and pruned.")
@reporting
@options.custom_ops
def command(
    model: Path,
    input_shapes: list[Any],
    inputs: list[Any],
    data: dict[str, Any],
    policies: dict[str, Any],
    measure: bool,
    out: Output,
) -> None:
    """Show the layers and groups of MODEL, and how much of it can be pruned.

    A group holds the channels of a layer and of everything coupled to it. It is pruned in units: channels that can only
    be removed together. What cleaning, pruning and INT8 weights would bring is estimated.
    """
    from onnxprune.model.file import file_size
    from onnxprune.report.console import model_tables
    from onnxprune.report.documents import document, fields
    from onnxprune.report.outlook import outlook_tables
    from onnxprune.report.summary import summarize
    from onnxprune.rewrite.comparison import header_of
    from onnxprune.workflow.outlook import outlook

    samples = sample_settings(data)
    analysis, _ = open_model(out, model, input_shapes, inputs, policies=policies, data=samples)
    header, summary, size = header_of(analysis.model.proto), summarize(analysis.graph), file_size(analysis.model)
    with out.step("measure" if measure else "estimate"):
        found = outlook(analysis, measure=measure)
    out.data(
        document("inspect", model=model, **fields(header), file_size=size, **fields(summary), estimates=found),
        model_tables(model, header, summary, size),
        outlook_tables(found, summary),
    )
