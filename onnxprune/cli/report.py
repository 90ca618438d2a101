"""`onnxprune report`: make a report of the documents of other commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from onnxprune.cli import options
from onnxprune.cli.group import Command
from onnxprune.cli.output import Output, reporting
from onnxprune.cli.receipts import check_reports, write_reports
from onnxprune.errors import UsageError
from onnxprune.settings import ReportSettings, build

_LARGEST = 1 << 28  # bytes of a document

_EXAMPLES = """\b
Examples:
  onnxprune evaluate small.onnx --against model.onnx --data val/ --format json > accuracy.json
  onnxprune benchmark model.onnx small.onnx --format json > speed.json
  onnxprune report accuracy.json speed.json --report report.html --report receipt.md
"""


@click.command("report", cls=Command, epilog=_EXAMPLES)
@click.argument("documents", nargs=-1, required=True, metavar="FILE.json...", type=click.Path(path_type=Path))
@options.of(ReportSettings, "given", without=("examples",))
@options.force
@reporting
def command(documents: tuple[Path, ...], given: dict[str, Any], force: bool, out: Output) -> None:
    """Make one report of what several commands found: a page, a Markdown receipt, or a model card.

    The documents are those that commands print with --format json; `benchmark -o` writes one as well. Without --report
    and --card, the receipt is printed.
    """
    from onnxprune.report.page import story, to_receipt

    settings = build(ReportSettings, given)
    check_reports(settings, {"documents": documents}, force)
    found = [_read(path) for path in documents]
    if not (settings.report or settings.card):
        click.echo(to_receipt(story(found)), nl=False)
    for path in write_reports(settings, found):
        out.note(f"wrote {path}")


def _read(path: Path) -> dict[str, Any]:
    """Read a document.

    Raises:
        UsageError: it can't be read, is too large, or is no JSON object (OP611).
    """
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST + 1)
    except OSError as error:
        raise UsageError("OP611", f"can't read the file: {error.strerror or error}", where=str(path)) from error
    if len(text) > _LARGEST:
        raise UsageError("OP611", f"the file is larger than {_LARGEST >> 20} MiB", where=str(path))
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        hint = "give what a command printed with --format json"
        raise UsageError("OP611", "not a JSON document", where=str(path), hint=hint) from error
    if not isinstance(found, dict):
        raise UsageError("OP611", "not the document of a command", where=str(path))
    return found
