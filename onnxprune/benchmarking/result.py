"""The results of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnxprune.benchmarking.layer_changes import LayerChange
from onnxprune.benchmarking.profile import Placement
from onnxprune.benchmarking.rounds import Summary
from onnxprune.evaluation.intervals import Estimate
from onnxprune.runtime.environment import Environment
from onnxprune.settings.benchmarking import BenchmarkSettings


@dataclass(frozen=True, slots=True)
class OperatorTime:
    """The kernels of one operator in a model.

    Attributes:
        op: the operator, as ONNX Runtime runs it.
        count: number of kernels.
        seconds: their time per run.
    """

    op: str
    count: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Result:
    """One model on one provider at one batch size; times in seconds.

    Attributes:
        model: its name.
        weights: the type of most of its weights, such as float16; empty if it has none.
        file_size: bytes of its files.
        load: time to open it.
        first: time of the first run.
        latency: the timings.
        throughput: samples per second, at the median.
        speedup: speed-up over the first model; None for the first model.
        settled: whether its median became stable during warm-up.
        peak_memory: peak bytes of host memory, from opening it; None if unsupported.
        copies: time to copy inputs to the device and outputs back; None without a device.
        placement: the providers that run it.
        provider_options: the provider's effective options.
        operators: time by operator; empty unless profiled.
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
    operators: tuple[OperatorTime, ...] = ()


@dataclass(frozen=True, slots=True)
class Case:
    """All models on one provider at one batch size.

    Attributes:
        provider: the provider's short name.
        batch: the batch size, as far as known.
        shapes: the inputs' shapes.
        results: a result per model; the others are compared with the first.
        layers: each layer in the first and the second model; empty unless profiled.
        notes: remarks on the results.
    """

    provider: str
    batch: int
    shapes: Mapping[str, tuple[int, ...]]
    results: tuple[Result, ...]
    layers: tuple[LayerChange, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A benchmark.

    Attributes:
        environment: the machine and the versions.
        settings: the settings.
        cases: one per provider and batch size.
    """

    environment: Environment
    settings: BenchmarkSettings
    cases: tuple[Case, ...]
