"""Tables for people: they fit a terminal, lose nothing in a pipe, and can't be made to hurt by names in a model."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import pytest
from onnx import ModelProto
from rich.console import Console, RenderableType

from onnxprune.errors import CATALOG
from onnxprune.report import console, explanations
from onnxprune.report.coupling import explain_node, held_by
from onnxprune.report.index import Index
from onnxprune.report.layout import Name, table
from onnxprune.report.operators import Operator, operators
from onnxprune.report.summary import summarize, summarize_plan
from onnxprune.rewrite.verify import OutputCheck, Verification
from onnxprune.trace.pruned_graph import PrunedGraph
from tests.report.network import network
from tests.toolbox import analyze

LONG = "StatefulPartitionedCall/model/block_7/expand/Conv2D;model/block_7/expand_BN/FusedBatchNormV3"


def drawn(*parts: RenderableType, width: int = 100) -> str:
    file = io.StringIO()
    out = Console(file=file, width=width, markup=False, emoji=False, highlight=False, color_system=None)
    for part in parts:
        out.print(part)
    return file.getvalue()


def with_long_names() -> ModelProto:
    model = network()
    for node in model.graph.node:
        node.name = f"{LONG}/{node.name}"
    return model


def reports(model: ModelProto) -> dict[str, RenderableType]:
    graph = analyze(model)
    index, summary, plan = Index(graph), summarize(graph), summarize_plan(PrunedGraph(graph))
    checks = (OutputCheck("logits", 1e-7, 0.8),)
    node = graph.proto.graph.node[0]
    return {
        "header": console.model_header("model.onnx", model, summary),
        "layers": console.layers(summary),
        "groups": console.groups(summary),
        "pins": console.what_stays(summary, "see `onnxprune explain`"),
        "totals": console.totals(summary, 1234),
        "costs": console.costs(plan, (2000, 1000)),
        "changes": console.group_changes(plan),
        "verdict": console.verdict((), Verification(True, 1e-4, checks)),
        "node": explanations.node_channels(node.name, node.op_type, explain_node(index, node)),
        "held": explanations.held_axes("OP202", list(held_by(index, "OP202"))),
        "code": explanations.catalog_entry("OP204", CATALOG["OP204"]),
    }


@pytest.mark.parametrize("report", list(reports(network())))
def test_fits_100_columns(report: str) -> None:
    text = drawn(reports(with_long_names())[report])
    # A line of running text that is one long name is folded by the terminal; tables must fit by themselves.
    assert max(map(len, text.splitlines())) <= 100


def test_nothing_is_lost_in_a_pipe() -> None:
    text = drawn(*reports(with_long_names()).values(), width=10_000)
    assert "…" not in text
    assert f"{LONG}/stem" in text


def test_figures() -> None:
    found = {name: drawn(part) for name, part in reports(network()).items()}
    layers = [line.split() for line in found["layers"].splitlines()]
    assert ["stem", "Conv", "16x3x3x3", "1x16x8x8", "448", "27.6", "k", "OP201", "→", "g0"] in layers
    assert ["head", "MatMul", "8x10", "1x10", "80", "80", "g1", "→", "OP202"] in layers
    assert "prunable parameters   98.8 %" in found["totals"]
    assert "taken as 1x3x8x8" in found["header"]
    assert "OP202  graph output       2  11.1 %  1.2 %" in found["pins"]
    assert "2.00 kB  1.00 kB  -50.0 %" in found["costs"]
    assert "proved right" in found["verdict"]
    assert "seed 0" not in found["verdict"] and "your inputs" in found["verdict"]


def test_numbers_are_set_to_the_right() -> None:
    lines = drawn(table("a|b >", [("x", "1"), ("y", "1000")])).splitlines()
    assert [line.rstrip() for line in lines] == ["  a     b", "  x     1", "  y  1000"]


def test_a_name_gives_way_before_figures_do() -> None:
    lines = drawn(table("node ~|n >", [(Name("a" * 200), "123456789")]), width=40).splitlines()
    assert lines[1].rstrip().endswith("123456789")
    assert "…" in lines[1]


@pytest.mark.parametrize(
    "make", [lambda n: console.heading(n), lambda n: table("a", [(n,)]), lambda n: table("a ~", [(Name(n),)])]
)
def test_names_can_not_command_the_terminal(make: Callable[[str], RenderableType]) -> None:
    text = drawn(make("\x1b[2J[red]:smile:\x07"))
    assert "\x1b" not in text and "\x07" not in text
    assert "\\x1b[2J[red]:smile:\\x07" in text


def test_not_proved_is_said() -> None:
    assert "not proved" in drawn(console.verdict((), None))
    failed = Verification(False, 1e-4, (OutputCheck("y", 1.0, 2.0),), seed=3)
    assert "NOT right" in drawn(console.verdict((), failed))
    assert "seed 3" in drawn(console.verdict((), failed))
    assert "input 'x' became 'z'" in drawn(console.verdict(["input 'x' became 'z'"], None))
    assert "isn't proved" in drawn(console.verdict((), None, ()))


def test_operators_are_counted() -> None:
    known: Sequence[Operator] = operators()
    last = drawn(explanations.operator_table(known)).splitlines()[-1]
    assert last.startswith(f"{len(known)} operators: ")
