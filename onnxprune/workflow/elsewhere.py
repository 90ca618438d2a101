"""The result of `shrink` on another execution provider: does it run there, how fast, with the same answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from onnx import ModelProto

from onnxprune.benchmarking.session import Feeds, TimedSession
from onnxprune.benchmarking.settings import SessionSettings
from onnxprune.benchmarking.speed import Speed, speed_of, typical_seconds
from onnxprune.errors import OnnxPruneError
from onnxprune.model.session import run, session
from onnxprune.rewrite.difference import difference
from onnxprune.runtime.library import import_onnxruntime
from onnxprune.runtime.provider import CPU, Provider


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A model on another execution provider.

    Attributes:
        provider: its short name.
        failure: why the model wasn't run there; "" if it was.
        speed: how much faster it is there than the file.
        difference: largest difference of its outputs from those on the CPU, relative to an output's largest magnitude.
        agreement: share of samples with the same top class as on the CPU; None if no output is a score for each class.
        samples: the number of samples that were compared.
    """

    provider: str
    failure: str = ""
    speed: Speed | None = None
    difference: float | None = None
    agreement: float | None = None
    samples: int = 0


def elsewhere(
    provider: Provider,
    file: ModelProto,
    result: ModelProto,
    batches: Iterable[Feeds],
    example: Feeds,
    *,
    threads: int | None = None,
    seed: int = 0,
) -> Elsewhere:
    """Run a model on another provider, time it against its file there, and compare its outputs with those on the CPU.

    Args:
        provider: the provider.
        file: the file that the model was made of.
        result: the model.
        batches: inputs to compare outputs on.
        example: inputs to time both on.
        threads: threads within an operator.
        seed: random seed of the interval.
    """
    found = Elsewhere(provider.short)
    if provider.name not in import_onnxruntime().get_available_providers():
        return replace(found, failure=f"{provider.name} isn't here")
    try:
        there = session(result, providers=provider.chain(threads), threads=threads)
        here = session(result, providers=[CPU], threads=threads)
        inputs = list(batches)
        found = _compared(found, [(run(there, feeds), run(here, feeds)) for feeds in inputs])
        found = replace(found, samples=sum(len(next(iter(feeds.values()))) for feeds in inputs))
        how = SessionSettings(provider, threads)
        subjects = TimedSession(file, example, how), TimedSession(result, example, how)
    except OnnxPruneError as error:
        return replace(found, failure=error.cause)
    return replace(found, speed=speed_of(*subjects, typical_seconds(subjects), provider.short, seed))


def _compared(found: Elsewhere, pairs: Sequence[tuple[Feeds, Feeds]]) -> Elsewhere:
    """Compare outputs, pairs of those there and those on the CPU."""
    apart = max((difference(there[name], here[name]) for there, here in pairs for name in here), default=0.0)
    same = [there[name].argmax(1) == here[name].argmax(1) for there, here in pairs if (name := _scores(here))]
    return replace(found, difference=apart, agreement=float(np.concatenate(same).mean()) if same else None)


def _scores(outputs: Feeds) -> str | None:
    """Return the only output, if it is a score for each of several classes."""
    (name, found), *others = outputs.items()
    scores = isinstance(found, np.ndarray) and found.ndim == 2 and found.shape[1] > 1 and found.dtype.kind == "f"
    return name if scores and not others else None
