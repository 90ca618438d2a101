"""What a benchmark found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnxprune.benchmarking.paid import LayerChange
from onnxprune.benchmarking.profile import Placement
from onnxprune.benchmarking.settings import BenchmarkSettings
from onnxprune.benchmarking.statistics import Summary
from onnxprune.evaluation.intervals import Estimate
from onnxprune.runtime.environment import Environment


@dataclass(frozen=True, slots=True)
class Operator:
    """The kernels of one operator in a model.

    Attributes:
        op: the operator, as ONNX Runtime runs it.
        count: how many kernels.
        seconds: their time in one run.
    """

    op: str
    count: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Result:
    """One model on one provider at one batch size; times in seconds.

    Attributes:
        model: its name.
        weights: the type that most of its weights have, such as float16; empty if it has none.
        file_size: bytes of its files.
        load: time to open it.
        first: time of the first run.
        latency: the timings.
        throughput: samples in a second, at the median.
        speedup: how many times as fast as the first model; None for that itself.
        settled: whether its median came to rest while it was warmed up.
        peak_memory: bytes of the host's memory that it takes at most, from opening it; None where nobody keeps count.
        copies: time to copy inputs to the device and outputs back; None where nothing is copied.
        placement: which providers run it.
        provider_options: the options that the provider really ran with.
        operators: time by operator; empty unless it was profiled.
    """

    model: str
    weights: str
    file_size: int
    load: float
    first: float
    latency: Summary
    throughput: float
    speedup: Estimate | None
    settled: bool
    peak_memory: int | None
    copies: tuple[float, float] | None
    placement: tuple[Placement, ...]
    provider_options: Mapping[str, str]
    operators: tuple[Operator, ...] = ()


@dataclass(frozen=True, slots=True)
class Case:
    """All models on one provider at one batch size.

    Attributes:
        provider: the provider's short name.
        batch: samples in a run, as far as it can be told.
        shapes: the inputs' shapes.
        results: of every model; the first is what the others are compared with.
        layers: what became of each layer of the first model in the second; empty unless they were profiled.
        notes: what must be known to read the results.
    """

    provider: str
    batch: int
    shapes: Mapping[str, tuple[int, ...]]
    results: tuple[Result, ...]
    layers: tuple[LayerChange, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A benchmark with all that it takes to judge it.

    Attributes:
        environment: where it was measured.
        settings: how.
        cases: one for each provider and batch size.
    """

    environment: Environment
    settings: BenchmarkSettings
    cases: tuple[Case, ...]
