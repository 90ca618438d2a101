"""Every table at 60, 80 and 100 columns: it fits, and has every number that the wide table has."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest
from onnx import ModelProto
from rich.console import RenderableType

from onnxprune.benchmarking.gate import Change
from onnxprune.benchmarking.layer_changes import LayerChange
from onnxprune.benchmarking.profile import Placement
from onnxprune.benchmarking.result import Benchmark, Case, OperatorTime, Result
from onnxprune.benchmarking.rounds import Summary
from onnxprune.evaluation import Evaluation
from onnxprune.evaluation.intervals import Estimate
from onnxprune.evaluation.score import Score
from onnxprune.recover import LeftOut
from onnxprune.report import console, explanation, verification
from onnxprune.report.benchmark import benchmark_tables, changes_tables
from onnxprune.report.coupling import explain_node, held_by
from onnxprune.report.diagnosis import diagnosis_tables
from onnxprune.report.evaluation import evaluation_tables, left_out_tables
from onnxprune.report.gates import gate_tables
from onnxprune.report.index import Index
from onnxprune.report.labels import Labels
from onnxprune.report.layout import Name, flexible, left, right, table
from onnxprune.report.operators import operators
from onnxprune.report.sensitivity import sensitivity_tables
from onnxprune.report.summary import summarize, summarize_plan
from onnxprune.rewrite.comparison import Comparison, OutputDistance, header_of
from onnxprune.rewrite.verify import OutputCheck, Verification
from onnxprune.rewrite.weights import WeightCheck
from onnxprune.runtime.doctor import Diagnosis, Finding, ProviderState
from onnxprune.runtime.environment import Environment
from onnxprune.sensitivity import Curve, Point
from onnxprune.settings import BenchmarkSettings
from onnxprune.trace.pruned_graph import PrunedGraph
from onnxprune.workflow.gates import Gate
from tests.report.network import network
from tests.report.test_console import drawn
from tests.toolbox import analyze

LONG = "stateful/partitioned/call/model/block/{}/expand/depthwise/convolution/fused/with/normalization"  # no digits
NUMBER = re.compile(r"(?<![\w.])[-+<>]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?(?:x\d+)*(?!\w)")


def model() -> ModelProto:
    found = network()
    for node in found.graph.node:
        node.name = LONG.format(node.name)
    return found


def estimate(value: float) -> Estimate:
    return Estimate(value, value - 0.0321, value + 0.0213)


def evaluation() -> Evaluation:
    scores = (
        Score("top1", None, True, estimate(0.91629), estimate(0.92004), estimate(-0.00375)),
        Score("mse", LONG.format("logits"), False, estimate(1234.5678), None, None),
    )
    return Evaluation(12345, scores, 0, 0.95, 1000, 0, ("CPUExecutionProvider",))


def benchmark(count: int) -> Benchmark:
    where = Environment(
        *("2026-01-02 03:04", "Linux 6.1 x86_64", "a processor at 2.60 GHz", 8, "performance", 0.25),
        *(("a card, driver 555.42",), "3.11.9", "1.32.0", {"onnx": "1.23.2", "numpy": "2.4.1"}),
    )
    names = [f"{LONG.format('model')}.onnx", f"{LONG.format('pruned')}.onnx"]
    results = tuple(
        Result(
            *(
                name,
                "float32",
                12345678 + i,
                0.1234,
                0.0456,
                Summary(0.0123 + i, 0.0134, 0.0178, 0.01, 0.01, 300, 12),
            ),
            *(81.31, estimate(1.527) if i else None, True, 98765432, (0.000321, 0.000765)),
            *((Placement("cpu", 0.875, 0.625), Placement("cuda", 0.125, 0.375)), {"key": "17"}),
            (OperatorTime("Conv", 53, 0.00987), OperatorTime("Gemm", 2, 0.00123)),
        )
        for i, name in enumerate(names)
    )
    layers = tuple(
        LayerChange(
            *(LONG.format(chr(97 + i)), "Conv", ((512 + i, 512, 3, 3), (352, 288 + i, 3, 3)), (1000, 400 + i)),
            *((0.00152 - i * 1e-5, 0.000566), None if i == 1 else i > 3, f"reason {chr(97 + i)}" if i <= 3 else ""),
            i + 1,
        )
        for i in range(count)
    )
    case = Case("cpu", 8, {"image": (8, 3, 224, 224)}, results, layers, ("the median had not settled",))
    return Benchmark(where, BenchmarkSettings(profile=True), (case,))


def reports() -> Mapping[str, Callable[[], Iterable[RenderableType]]]:
    graph = analyze(model())
    index, summary, plan = Index(graph), summarize(graph), summarize_plan(PrunedGraph(graph))
    labels, outputs = Labels.of(graph.proto), [LONG.format("one"), LONG.format("other")]
    checked = Verification(True, 1e-4, tuple(OutputCheck(name, 1.7e-7, 0.8456) for name in outputs))
    apart = tuple(OutputDistance(name, 0.0512, 0.9876, name == outputs[0]) for name in outputs)
    since = WeightCheck(12, {name: ("repair", "training") for name in outputs}, altered=(LONG.format("weight"),))
    gates = [Gate(LONG.format("mse:boxes"), "most", 0.01, Estimate(0.0123, 0.0089, 0.0151), "share")]
    share = {"value": 0.4567, "low": 0.4432, "high": 0.4711}
    latency = {"original_seconds": 0.01234, "predicted_share": 0.4555, "measured_share": share, "provider": "cpu"}
    latency |= {"layers": {"measured": 785, "known": 321}, "tries": [1, 2, 3], "importance_kept": 0.6923}
    curves = [Curve(g.index, tuple(range(len(g.units))), (Point(4, 0.0123), Point(6, 9.8e-6))) for g in graph.groups]
    changes = [Change("cpu", 8, LONG.format("m"), "latency", 0.01234, 0.01357, 0.0997)]
    sick = Diagnosis(
        *("3.11.9", "a processor at 2.60 GHz", 8, ("a card, driver 555.42",)),
        *({"onnx": "1.23.2"}, {"runtime": "1.32.0"}),
        *((ProviderState("cuda", False, "12 libraries are missing"),), (Finding("note", "2 of 3"),)),
    )
    return {
        "model": lambda: console.model_tables(Path("model.onnx"), header_of(model()), summary, 1234567),
        "pins": lambda: console.pin_tables(summary, "see `explain`"),
        "costs": lambda: console.cost_tables(plan, (2000, 1000)),
        "removed": lambda: console.removal_tables(plan),
        "changes": lambda: console.group_tables(plan),
        "latency": lambda: console.latency_tables(latency),
        "proof": lambda: verification.comparison_tables(Comparison(verification=checked)),
        "repaired": lambda: verification.comparison_tables(
            Comparison(verification=checked, distances=apart, weights=since)
        ),
        "gates": lambda: gate_tables(gates),
        "comparison": lambda: verification.comparison_tables(Comparison(distances=apart)),
        "node": lambda: explanation.node_tables(
            graph.proto.graph.node[0].name, "Conv", explain_node(index, graph.proto.graph.node[0]), labels
        ),
        "held": lambda: explanation.held_tables("OP202", list(held_by(index, "OP202")), labels),
        "operators": lambda: console.operator_tables(operators()[:40]),
        "evaluation": lambda: evaluation_tables(evaluation()),
        "left out": lambda: left_out_tables("not repaired", [LeftOut(outputs[0], "Conv", "its 12 weights are shared")]),
        "sensitivity": lambda: sensitivity_tables(graph, curves, (0.25, 0.5, 1.0), "error"),
        "benchmark": lambda: benchmark_tables(benchmark(6)),
        "benchmark, many layers": lambda: benchmark_tables(benchmark(15)),
        "baseline": lambda: changes_tables(changes, 0.05),
        "diagnosis": lambda: diagnosis_tables(sick),
    }


def numbers(text: str) -> Counter[str]:
    return Counter(found.rstrip(",") for found in NUMBER.findall(text))


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("report", list(reports()))
def test_no_number_is_lost(report: str, width: int) -> None:
    made = reports()[report]
    wide, narrow = drawn(made(), width=1000), drawn(made(), width=width)
    assert max(map(len, narrow.splitlines())) <= width
    assert not numbers(wide) - numbers(narrow), narrow


def test_numbers_that_are_cut_are_noticed() -> None:
    """The check above, with a table of rich's own: at 16 columns it cuts figures."""
    from rich.table import Table

    def cut() -> Table:
        grid = Table("node", "before", "after", box=None)
        grid.columns[1].no_wrap = grid.columns[2].no_wrap = True
        grid.add_row("a" * 40, "123456.789", "987654.321")
        return grid

    assert numbers(drawn([cut()], width=1000)) - numbers(drawn([cut()], width=16))


def test_a_row_becomes_a_block() -> None:
    columns = flexible("node") + right("model") + left("") + right("original")
    rows = [(Name("first"), "91.6 %", "88.2 to 93.6", "92.0 %"), (Name("second"), "1.0 %", "", "-")]
    assert [line.rstrip() for line in drawn([table(columns, rows)], width=30).splitlines()] == [
        "  first",
        "    model     91.6 %  88.2 to",
        "              93.6",
        "    original  92.0 %",
        "  second",
        "    model     1.0 %",
        "    original  -",
    ]
    assert drawn([table(columns, rows)], width=60).splitlines()[0].split() == ["node", "model", "original"]


def test_many_rows_are_packed() -> None:
    columns = flexible("node") + right("params", "macs", "bytes")
    rows = [(Name(f"layer {chr(97 + i)}"), "12345", "678901234", "99") for i in range(20)]
    lines = [line.rstrip() for line in drawn([table(columns, rows)], width=32).splitlines()]
    assert lines[:3] == ["  layer a", "    params 12345  macs 678901234", "    bytes 99"] and len(lines) == 60


def test_names_lose_what_they_share() -> None:
    names = [f"model/backbone/stage/{part}/convolution/Conv2D;fused/{part}" for part in ("a", "b/c", "d")]
    labels = Labels.numbered({name: i for i, name in enumerate(names, 1)})
    assert [labels.short(name) for name in names] == ["a", "b/c", "d"]
    assert labels.name(names[1]).tag.strip() == "L2"
    assert labels.short("another") == "another"  # which doesn't begin as the layers do
    said = " ".join(drawn(labels.note(), width=1000).split())
    assert '"model/backbone/stage/" in front' in said and '"/convolution/Conv2D" at the end' in said and '";"' in said


@pytest.mark.parametrize(
    "names",
    [
        ["/stem/conv/Conv", "/stage/conv/Conv"],  # short
        ["one/rather/long/name/of/a/layer/in/a/model", "two/rather/long/name/of/a/layer/but/in/it"],  # nothing shared
        ["same;a", "same;b"],  # the first part doesn't tell them apart
    ],
)
def test_names_that_stay(names: list[str]) -> None:
    labels = Labels.numbered({name: i for i, name in enumerate(names, 1)})
    assert [labels.short(name) for name in names] == names
    assert not list(labels.note())
