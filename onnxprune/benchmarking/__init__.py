"""Benchmarks: latency, memory and layer times of models on ONNX Runtime's execution providers."""

from __future__ import annotations

from onnxprune.benchmarking.gate import Change, check, compare
from onnxprune.benchmarking.result import Benchmark, Case, Result
from onnxprune.benchmarking.run import benchmark
from onnxprune.runtime.provider import Provider, parse_provider
from onnxprune.settings.benchmarking import BenchmarkSettings

__all__ = [
    "Benchmark",
    "BenchmarkSettings",
    "Case",
    "Change",
    "Provider",
    "Result",
    "benchmark",
    "check",
    "compare",
    "parse_provider",
]
