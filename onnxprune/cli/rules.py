"""`onnxprune rules`: list the known operators."""

from __future__ import annotations

from difflib import get_close_matches

import click

from onnxprune.cli.group import Command
from onnxprune.cli.output import Output, reporting
from onnxprune.errors import UsageError


@click.command("rules", cls=Command)
@click.argument("name", required=False)
@reporting
def command(name: str | None, out: Output) -> None:
    """List every operator, and whether it has a rule, has none on purpose, or is unknown.

    With NAME, list only operators whose names contain it.
    """
    from onnxprune.report.console import operator_tables
    from onnxprune.report.documents import document
    from onnxprune.report.operators import count_states, operators

    every = operators()
    chosen = [o for o in every if name is None or name.lower() in o.name.lower()]
    if name is not None and not chosen:
        near = get_close_matches(name, [o.name for o in every], n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "`onnxprune rules` lists all"
        raise UsageError("OP606", f"there is no operator {name!r}", hint=hint)
    out.data(document("rules", operators=chosen, counts=count_states(chosen)), operator_tables(chosen))
