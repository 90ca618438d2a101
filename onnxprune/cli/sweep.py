"""`onnxprune sweep`: look for the best trade-offs of a model, alone or with other workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxprune.cli import options
from onnxprune.cli.group import Command
from onnxprune.cli.output import Output, reporting
from onnxprune.cli.receipts import receipts
from onnxprune.settings import SweepSettings, build

_EXAMPLES = """\b
Examples:
  onnxprune sweep model.onnx --data images/ --store model.sweep --trials 60
  onnxprune sweep model.onnx --data images/ --store model.sweep --objective accuracy,latency --time 2h
  onnxprune sweep --join model.sweep                            another worker, also later
  onnxprune sweep --join postgresql://me@host/sweeps --provider cuda
  onnxprune sweep show model.sweep
  onnxprune sweep pick model.sweep --max-drop 1% -o small.onnx
"""


@click.command("sweep", cls=Command, epilog=_EXAMPLES)
@click.argument("model", type=click.Path(path_type=Path), required=False)
@options.of(SweepSettings, "given")
@receipts()
@reporting
def command(model: Path | None, given: dict[str, Any], out: Output) -> None:
    """Try many recipes on MODEL, and keep the models that no other one beats in all objectives.

    A recipe says how many channels stay, at which resolution images are seen, and in which numbers the model computes.
    Every model is proved, repaired and measured. Trials are kept in a store: the same command goes on after an
    interruption, and other workers join with --join, here or on other machines. A worker that dies loses one trial,
    which another one repeats.

    Ctrl-C keeps everything that was found.
    """
    from onnxprune.report.sweep import sweep_document, sweep_tables
    from onnxprune.sweeping.cluster import on_cluster
    from onnxprune.sweeping.session import sweep
    from onnxprune.sweeping.store import shown

    settings = build(SweepSettings, given)
    store = settings.join or settings.store or ""
    out.on_stop(lambda: f"stopped; {shown(store)} has what was found; the same command goes on")
    with out.progress() as progress:
        work = sweep if settings.on is None else on_cluster
        found = work(model, settings, progress=progress)
    out.data(sweep_document(found, store), sweep_tables(found))
