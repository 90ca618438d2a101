"""Benchmarks: latency, memory and layer times of models on ONNX Runtime's execution providers."""

from __future__ import annotations

from onnxprune.benchmarking.gate import Change, check, compare
from onnxprune.benchmarking.result import Benchmark, Case, Result
from onnxprune.benchmarking.run import benchmark
from onnxprune.benchmarking.settings import BenchmarkSettings
from onnxprune.runtime.provider import Provider, parse_provider

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
