"""Latency of models on ONNX Runtime's execution providers, measured so that the numbers can be trusted."""

from __future__ import annotations

from onnxprune.benchmark.gate import Change, check, compare
from onnxprune.benchmark.provider import Provider, parse_provider
from onnxprune.benchmark.result import Benchmark, Case, Result
from onnxprune.benchmark.run import benchmark
from onnxprune.benchmark.settings import Settings

__all__ = [
    "Benchmark",
    "Case",
    "Change",
    "Provider",
    "Result",
    "Settings",
    "benchmark",
    "check",
    "compare",
    "parse_provider",
]
