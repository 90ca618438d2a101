"""What weights bring that make up for rounding in INT8 models: ``python -m benchmarks.rounding``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from onnx import ModelProto

import onnxprune as op
from benchmarks.common import Column, Report, Table, chosen, log, options
from benchmarks.recovery_cases import SUBJECTS, Subject
from onnxprune.data import some
from onnxprune.evaluation import Estimate
from onnxprune.model.file import load
from onnxprune.quantization.correction import correct
from onnxprune.quantization.quantizers import calibrate, prepare, static
from onnxprune.report.layout import percent
from onnxprune.workflow.inputs import calibration_batches

_SAMPLES, _JUDGED, _BATCH = 96, 1000, 16

NOTES = (
    f"INT8 weights and activations by ONNX Runtime's quantizer, with a scale for each output channel and ranges by the "
    f"extremes on {_SAMPLES} samples. *Solved for* are weights and biases that make up for rounding, as `quantize` and "
    f"`shrink` try them: on the same samples, without labels. Others judge both, up to {_JUDGED}: *agreement* is the "
    "share of answers that equal the original's, with intervals of 95 %.",
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a form of a model answers.

    Attributes:
        model: the model.
        bits: bits of its weights.
        weights: "rounded" or "solved for".
        agreement: the share of answers that equal the original's.
        samples: the number of samples that judged.
    """

    model: str
    bits: int
    weights: str
    agreement: Estimate
    samples: int


def measured(subject: Subject) -> Iterator[Outcome]:
    """Yield what the forms of a model answer."""
    analysis = op.analyze(subject.path)
    calibration, judged = subject.data(analysis)
    work, judging = some(calibration["own"], _SAMPLES, 0), some(list(judged.values())[-1], _JUDGED, 0)
    ready = prepare(analysis.graph.proto)
    batches = calibration_batches(work, analysis.graph.proto, _BATCH)
    ranges = calibrate(ready, batches(), "minmax")
    for bits in (8, 7):
        for weights in ("rounded", "solved for"):
            log.print(f"{subject.name}: {bits} bits, {weights}", style="dim")
            model: ModelProto = load(static(ready, ranges, reduced=bits == 7)).proto
            if weights != "rounded":
                correct(model, ready, batches)
            found = op.evaluate(model, judging, against=analysis.original, seed=0)
            yield Outcome(subject.name, bits, weights, found["agreement"].model, found.samples)


def tables(found: list[Outcome]) -> list[Table]:
    """Return one table."""
    columns: list[Column[Outcome]] = [
        Column("model", lambda o: o.model, True),
        Column("bits", lambda o: str(o.bits)),
        Column("weights", lambda o: o.weights, True),
        Column(
            "agreement",
            lambda o: f"{percent(o.agreement.value)} ({100 * o.agreement.low:.1f} to {100 * o.agreement.high:.1f})",
        ),
        Column("samples", lambda o: f"{o.samples:,}"),
    ]
    return [Table.of("Answers", columns, found)]


@click.command()
@options
def main(output: Path, only: str, repeats: int, clock: str) -> None:
    """Measure what weights bring that make up for rounding."""
    present = {s.name: s for s in SUBJECTS if s.path.is_file()}
    found = [outcome for name in chosen(list(present), only) for outcome in measured(present[name])]
    settings: dict[str, Any] = {"clock": clock, "samples": _SAMPLES, "judged": _JUDGED}
    report = Report(
        "rounding", "Weights that make up for rounding", NOTES, tables(found), settings, {"outcomes": found}
    )
    report.publish(output, whole=only == "*")


if __name__ == "__main__":
    main()
