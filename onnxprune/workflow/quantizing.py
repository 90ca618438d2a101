"""Quantization as the command `quantize` runs it: search on some samples, judge on others."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from onnx import ModelProto

from onnxprune.errors import UsageError, VerificationError
from onnxprune.evaluation import Evaluation, evaluate
from onnxprune.model.file import Model, Source, load
from onnxprune.model.metadata import QUANTIZED, VERSION, write_notes
from onnxprune.model.session import with_threads
from onnxprune.progress import Progress, silent
from onnxprune.quantization.search import Found, Search, Trial
from onnxprune.runtime.library import custom_ops
from onnxprune.settings.quantization import QuantizeSettings
from onnxprune.settings.reading import either
from onnxprune.version import __version__
from onnxprune.workflow.analysis import analyze
from onnxprune.workflow.inputs import batch_within, calibration_batches, divided, open_all

_RANGES, _CHOICE = 96, 64  # largest numbers of samples
_OBSERVED = 1 << 26  # numbers of a batch's tensors: ONNX Runtime's calibration holds all of them, twice


@dataclass(frozen=True, slots=True)
class Quantized:
    """The result of `quantize`.

    Attributes:
        model: the model in its best form.
        best: that form, and what was measured of it.
        found: everything that was tried.
        evaluation: the model against the original, on samples that neither set ranges nor chose anything.
        samples: the number of samples that ranges were found on, that forms were chosen on, and that judged.
    """

    model: Model
    best: Trial
    found: Found
    evaluation: Evaluation
    samples: tuple[int, int, int]


def quantize(
    model: Source,
    settings: QuantizeSettings | None = None,
    *,
    examples: int = 0,
    progress: Progress = silent,
    **options: Any,
) -> Quantized:
    """Return a model in fewer bits: in the form that pays most, by measured error, time and size.

    Args:
        model: a path, bytes, a ModelProto or an onnx-graphsurgeon graph.
        settings: the settings; `options` are an alternative.
        examples: number of samples on which the two models disagree most to keep in the evaluation.
        progress: called with phases and their parts.
        **options: fields of `QuantizeSettings` and `DataSettings`: data, kind, objective, ...

    Raises:
        UsageError: there are no inputs (OP604), or a setting is unknown (OP602).
        ModelError: the model can't be read, run (OP122) or prepared (OP128).
        DataError: the data can't be read or don't fit, are too few (OP712), or allow no measure of the error (OP711).
        VerificationError: no form pays (OP507).

    Examples:
        >>> import onnxprune as op
        >>> op.quantize("models/digits_resnet.onnx")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        onnxprune.errors.UsageError: error[OP604]: there are no inputs to find ranges and errors with
        ...
    """
    settings = either(QuantizeSettings, settings, options)
    with custom_ops(*settings.running.custom_ops), with_threads(settings.threads):
        return _quantize(load(model), settings, examples, progress)


def _quantize(loaded: Model, settings: QuantizeSettings, examples: int, progress: Progress) -> Quantized:
    if settings.samples.data is None:
        raise UsageError("OP604", "there are no inputs to find ranges and errors with", hint="give some with `data`")
    progress("trace", 0, None)
    analysis = analyze(loaded, data=settings.samples)
    samples = open_all(settings.samples, analysis.graph, near=loaded.path, seed=settings.seed, progress=progress)
    parts = (1 / 2, settings.samples.limit or _RANGES), (1 / 4, _CHOICE)
    ranges, chosen, judged = divided(samples, settings.seed, *parts)
    proto = analysis.graph.proto
    held, one = (calibration_batches(part, proto) for part in (chosen, chosen.subset([0])))
    batches = calibration_batches(ranges, proto, batch_within(analysis.graph.shapes, _OBSERVED))
    search = Search(loaded.proto, proto, batches, held, next(iter(one())), settings, progress)
    found = search.run()
    best = found.best
    if best is None:
        raise VerificationError("OP507", _why_none(found, settings), hint=_hint(found, settings))
    evaluation = evaluate(
        best.model, judged, against=loaded.proto, seed=settings.seed, examples=examples, progress=progress
    )
    _sign(best, loaded.proto)
    counts = len(ranges), len(chosen), len(judged)
    return Quantized(replace(loaded, proto=best.model), best, found, evaluation, counts)


def _why_none(found: Found, settings: QuantizeSettings) -> str:
    made = [t for t in found.trials if t.failure is None]
    if not made:
        return f"no form can be made of the model: {found.trials[0].failure}" if found.trials else "nothing was tried"
    least = min(made, key=lambda t: t.error)
    if least.error > found.allowed:
        return (
            f"no form keeps the error of the outputs within {found.allowed:.2g} of their variance: the least is "
            f"{least.error:.2g} ({least.kind})"
        )
    if not settings.timed or settings.form is not None:
        return "no form within the error allowed can be made"
    fit = max((t for t in made if t.speedup is not None), key=lambda t: t.speedup.value if t.speedup else 0.0)
    assert fit.speedup is not None
    what = "surely faster than the model" if settings.objective == "latency" else "smaller without being slower"
    speed = f"{fit.speedup.value:.2f} times as fast ({fit.speedup.low:.2f} to {fit.speedup.high:.2f})"
    return f"no form within the error allowed is {what}: the best, {fit.kind}, is {speed}"


def _hint(found: Found, settings: QuantizeSettings) -> str:
    if all(t.failure is not None for t in found.trials):
        return "try another `kind`, or all of them, which is the default"
    if all(t.error > found.allowed for t in found.trials):
        return "allow more with `max_error`, or give more data"
    return "the model is better left as it is on this machine" + (
        ", unless its size matters more: set `objective` to size" if settings.objective == "latency" else ""
    )


def _sign(best: Trial, original: ModelProto) -> None:
    """Write into the model's metadata how it was made; what the original's says stays."""
    made = {"kind": best.kind, **best.about, "kept": list(best.kept)}
    del best.model.metadata_props[:]
    best.model.metadata_props.extend(original.metadata_props)
    write_notes(best.model, {VERSION: __version__, QUANTIZED: json.dumps(made, sort_keys=True)})
