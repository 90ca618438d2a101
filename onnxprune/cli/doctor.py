"""`onnxprune doctor`: what is installed, and what is wrong with it."""

from __future__ import annotations

import click

from onnxprune.cli.output import Output, reporting
from onnxprune.errors import InstallationError


@click.command("doctor", short_help="Check the installation and its execution providers.")
@reporting
def command(out: Output) -> None:
    """Check what is installed, whether it fits together, and which execution providers start.

    A provider that doesn't start is told with the libraries that it misses. The exit status is 1 if
    something can't work.
    """
    from onnxprune.report.diagnosis import diagnosis_fields, diagnosis_tables
    from onnxprune.report.documents import document
    from onnxprune.runtime.doctor import diagnose

    with out.step("look around"):
        found = diagnose()
    out.data(lambda: document("doctor", **diagnosis_fields(found)), lambda: diagnosis_tables(found))
    if not found.healthy:
        first = next(f for f in found.findings if f.level == "error")
        raise InstallationError("OP609", first.what, hint=first.hint or None)
