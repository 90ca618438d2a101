"""Regression gate: comparison with an earlier benchmark, failing if a model has become slower."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from onnxprune.benchmarking.result import Benchmark
from onnxprune.errors import BenchmarkError, RegressionError

FORMAT = 1

Key = tuple[str, int, str]  # provider, batch, model


@dataclass(frozen=True, slots=True)
class Change:
    """The change of a figure from an earlier benchmark to this one.

    Attributes:
        provider: the execution provider.
        batch: batch size.
        model: the model.
        figure: the median latency or, on different hardware, the speed-up over the first model.
        before: the earlier figure, in seconds or as a factor.
        after: the figure now.
        slower: relative slowdown; negative for an improvement.
    """

    provider: str
    batch: int
    model: str
    figure: Literal["latency", "speed-up"]
    before: float
    after: float
    slower: float


def compare(found: Benchmark, baseline: Path) -> tuple[Change, ...]:
    """Compare a benchmark with an earlier one, case by case.

    Latencies are compared on the same hardware; on different hardware, speed-ups over the first model are.

    Args:
        found: a benchmark.
        baseline: the JSON document of an earlier one.

    Raises:
        BenchmarkError: the file isn't such a document (OP804), or they have no figure in common (OP805).
    """
    document = _read(baseline)
    try:
        earlier = dict(_figures(document["cases"]))
        hardware = tuple(map(str, document["hardware"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _no_baseline(baseline, f"{type(error).__name__}: {error}") from error
    same = hardware == found.environment.hardware
    changes = []
    for case in found.cases:
        for result in case.results:
            latency, speedup = earlier.get((case.provider, case.batch, result.model), (None, None))
            place = case.provider, case.batch, result.model
            if same and latency is not None:
                now = result.latency.median
                changes.append(Change(*place, "latency", latency, now, now / latency - 1))
            elif not same and speedup is not None and result.speedup is not None:
                now = result.speedup.value
                changes.append(Change(*place, "speed-up", speedup, now, speedup / now - 1))
    if not changes:
        cause = "the baseline has no figure in common with this benchmark"
        hint = "measure the same models, providers and batch sizes" + ("" if same else "; the hardware differs")
        raise BenchmarkError("OP805", cause, where=str(baseline), hint=hint)
    return tuple(changes)


def check(changes: tuple[Change, ...], most: float) -> None:
    """Raise an error if a figure became worse than is allowed.

    Args:
        changes: changes since the baseline.
        most: the largest relative slowdown allowed.

    Raises:
        RegressionError: a figure is worse by more (OP806).
    """
    worst = max(changes, key=lambda c: c.slower)
    if worst.slower > most:
        cause = f"{worst.figure} is {worst.slower:.1%} worse than the baseline; {most:.1%} is allowed"
        raise RegressionError("OP806", cause, where=f"{worst.model}, {worst.provider}, batch {worst.batch}")


def _read(path: Path) -> Mapping[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BenchmarkError("OP804", f"can't be read: {error.strerror or error}", where=str(path)) from error
    except (ValueError, RecursionError) as error:
        raise _no_baseline(path, str(error)) from error
    if not isinstance(document, dict) or document.get("report") != "benchmark":
        raise _no_baseline(path, 'its field `report` isn\'t "benchmark"')
    if document.get("format") != FORMAT:
        raise _no_baseline(path, f"unknown format {document.get('format')!r}; this version reads {FORMAT}")
    return document


def _figures(cases: Any) -> Iterator[tuple[Key, tuple[float, float | None]]]:
    for case in cases:
        for result in case["results"]:
            latency, speedup = float(result["latency"]["median"]), result["speedup"]
            if not latency > 0:
                raise ValueError(f"{latency} isn't a latency")
            key = str(case["provider"]), int(case["batch"]), str(result["model"])
            yield key, (latency, None if speedup is None else float(speedup["value"]))


def _no_baseline(path: Path, why: str) -> BenchmarkError:
    hint = "write one with the command `benchmark MODEL -o BASELINE.json`"
    return BenchmarkError("OP804", f"not a benchmark document: {why}", where=str(path), hint=hint)
