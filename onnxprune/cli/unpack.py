"""`onnxprune unpack`: the model of a packed file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxprune.cli import options
from onnxprune.cli.group import Command
from onnxprune.cli.output import Output, check_output, reporting
from onnxprune.settings import UnpackSettings, build

_EXAMPLES = """\b
Examples:
  onnxprune unpack model.onnxpack -o model.onnx
"""


@click.command("unpack", cls=Command, epilog=_EXAMPLES)
@click.argument("packed", type=click.Path(path_type=Path))
@options.output("File for the model; external data go beside it.")
@options.of(UnpackSettings, "given")
@options.force
@reporting
def command(packed: Path, output: Path, given: dict[str, Any], force: bool, out: Output) -> None:
    """Write the model that the file PACKED holds: the same bytes that were packed.

    The file isn't trusted. Sizes and checksums are checked before anything is written, and no file is written outside
    the folder of the output.
    """
    from onnxprune.report.documents import document
    from onnxprune.report.packing import unpacking_fields, unpacking_tables
    from onnxprune.workflow.packing import unpack

    settings = build(UnpackSettings, given)
    check_output(output, force, inputs=[packed])
    with out.progress() as progress:
        result = unpack(packed, output, settings, force=force, progress=progress)
        out.on_stop(lambda: f"stopped; {output} was written")
    fields = unpacking_fields(result)
    out.summary(document("unpack", model=packed, output=output, **fields), unpacking_tables(result))
    out.note(f"wrote {output}")
