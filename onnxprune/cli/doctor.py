"""`onnxprune doctor`: check the installation."""

from __future__ import annotations

import click

from onnxprune.cli.group import Command
from onnxprune.cli.output import Output, reporting
from onnxprune.errors import InstallationError


@click.command("doctor", cls=Command)
@reporting
def command(out: Output) -> None:
    """Check the installed versions, their compatibility, and which execution providers start.

    For a provider that doesn't start, the missing libraries are listed. The exit status is 1 if there are errors.
    """
    from onnxprune.report.diagnosis import diagnosis_tables
    from onnxprune.report.documents import document, fields
    from onnxprune.runtime.doctor import diagnose

    with out.step("diagnose"):
        found = diagnose()
    out.data(document("doctor", healthy=found.healthy, **fields(found)), diagnosis_tables(found))
    if not found.healthy:
        first = next(f for f in found.findings if f.level == "error")
        raise InstallationError("OP609", first.what, hint=first.hint or None)
