"""`onnxprune cache`: show or clear the times of layers that are kept for latency targets."""

from __future__ import annotations

import click

from onnxprune.cli.group import Command
from onnxprune.cli.output import Output, reporting
from onnxprune.errors import PlanError

_EXAMPLES = """\b
Examples:
  onnxprune cache show
  onnxprune cache clear --stale
"""


@click.command("cache", cls=Command, epilog=_EXAMPLES)
@click.argument("action", type=click.Choice(["show", "clear"]))
@click.option(
    "--stale", is_flag=True, help="With clear: delete only tables of other machines, or of another ONNX Runtime."
)
@reporting
def command(action: str, stale: bool, out: Output) -> None:
    """Show or clear the times of layers that a latency target measures and keeps.

    A table belongs to a processor, an ONNX Runtime, a provider and its settings; others never use it. Times that were
    disturbed by other processes are marked as noisy, and measured again by the next plan that needs them. The folder is
    ONNXPRUNE_CACHE if that is set.
    """
    import os

    from onnxprune.latency.table import cache_folder, cached_tables, clear_tables
    from onnxprune.report.cache import cache_tables
    from onnxprune.report.documents import document

    if stale and action == "show":
        raise PlanError("OP302", "--stale is for clear", hint="show marks stale tables")
    folder = cache_folder(os.environ)
    found = list(cached_tables(folder))
    if action == "clear":
        found = clear_tables(table for table in found if table.stale or not stale)
    out.data(document("cache", action=action, folder=folder, tables=found), cache_tables(folder, found, action))
