"""The gate, both ways, and what it refuses to compare."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from onnxprune.benchmarking import Benchmark, Case, Result, check, compare
from onnxprune.benchmarking.rounds import Summary
from onnxprune.errors import BenchmarkError, RegressionError
from onnxprune.evaluation.intervals import Estimate
from onnxprune.report.benchmark import benchmark_document
from onnxprune.report.documents import to_json
from onnxprune.runtime.environment import Environment
from onnxprune.settings.benchmarking import BenchmarkSettings

HERE = Environment("now", "Linux", "a CPU", 4, None, 0.0, (), "3.11", "1.31", {})
THERE = replace(HERE, cpu="another CPU")


def result(model: str, latency: float, speedup: float | None = None) -> Result:
    return Result(
        model=model,
        weights="float32",
        file_size=1,
        load=0.1,
        first=0.1,
        latency=Summary(latency, latency, latency, latency, latency, 100, 10),
        throughput=1 / latency,
        speedup=None if speedup is None else Estimate(speedup, speedup, speedup),
        settled=True,
        peak_memory=None,
        copies=None,
        placement=(),
        provider_options={},
    )


def measured(dense: float, pruned: float, where: Environment = HERE) -> Benchmark:
    results = result("dense", dense), result("pruned", pruned, dense / pruned)
    return Benchmark(where, BenchmarkSettings(), (Case("cpu", 1, {"x": (1, 3)}, results),))


@pytest.fixture
def baseline(tmp_path: Path) -> Path:
    path = tmp_path / "base.json"
    path.write_text(to_json(benchmark_document(measured(0.02, 0.01))))
    return path


def altered(path: Path, change: Any) -> Path:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


class TestGate:
    def test_as_fast_as_before_passes(self, baseline: Path) -> None:
        check(compare(measured(0.02, 0.0104), baseline), 0.05)

    def test_slower_fails(self, baseline: Path) -> None:
        with pytest.raises(RegressionError, match=r"6\.0%") as caught:
            check(compare(measured(0.02, 0.0106), baseline), 0.05)
        assert caught.value.exit_status == 1 and "pruned" in str(caught.value.where)

    def test_faster_passes(self, baseline: Path) -> None:
        changes = compare(measured(0.02, 0.005), baseline)
        assert {c.model: c.slower for c in changes} == pytest.approx({"dense": 0.0, "pruned": -0.5})
        check(changes, 0.0)

    def test_other_hardware_compares_by_speed_up(self, baseline: Path) -> None:
        (only,) = compare(measured(0.04, 0.02, THERE), baseline)  # all is slower there, but by the same factor
        assert (only.figure, only.slower) == ("speed-up", 0.0)
        with pytest.raises(RegressionError):
            check(compare(measured(0.04, 0.03, THERE), baseline), 0.05)

    def test_nothing_in_common(self, baseline: Path) -> None:
        altered(baseline, lambda c: c["cases"][0].update(batch=8))
        with pytest.raises(BenchmarkError) as caught:
            compare(measured(0.02, 0.01), baseline)
        assert caught.value.code == "OP805" and caught.value.exit_status == 2

    @pytest.mark.parametrize(
        "change",
        [
            lambda c: c.update(report="plan"),
            lambda c: c.update(format=99),
            lambda c: c.pop("cases"),
            lambda c: c.update(cases=[{}]),
            lambda c: c.update(hardware=3),
            lambda c: c["cases"][0]["results"][0]["latency"].update(median=0),
            lambda c: c["cases"][0]["results"][0]["latency"].update(median="fast"),
        ],
    )
    def test_no_benchmark(self, baseline: Path, change: Any) -> None:
        with pytest.raises(BenchmarkError) as caught:
            compare(measured(0.02, 0.01), altered(baseline, change))
        assert caught.value.code == "OP804"

    @pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000])
    def test_no_document(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "base.json").write_text(text)
        with pytest.raises(BenchmarkError) as caught:
            compare(measured(0.02, 0.01), tmp_path / "base.json")
        assert caught.value.code == "OP804"

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(BenchmarkError, match="can't be read"):
            compare(measured(0.02, 0.01), tmp_path / "absent.json")
