"""`onnxprune sweep show`: what a sweep has found."""

from __future__ import annotations

import click

from onnxprune.cli.group import Command
from onnxprune.cli.output import Output, reporting
from onnxprune.cli.receipts import receipts

_EXAMPLES = """\b
Examples:
  onnxprune sweep show model.sweep
  onnxprune sweep show model.sweep --report front.html
  onnxprune sweep show postgresql://me@host/sweeps --format json
"""


@click.command("sweep show", cls=Command, epilog=_EXAMPLES)
@click.argument("store")
@receipts()
@reporting
def command(store: str, out: Output) -> None:
    """Show the models of the sweep in STORE that no other one beats. Workers may still be at it."""
    from onnxprune.report.sweep import sweep_document, sweep_tables
    from onnxprune.sweeping.session import found

    with out.step("load"):
        sweep = found(store)
    out.data(sweep_document(sweep, store), sweep_tables(sweep))
