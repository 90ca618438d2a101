"""Tables: they fit a terminal, lose nothing in a pipe, and names in a model can't control the terminal."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path

import pytest
from onnx import ModelProto
from rich.console import Console, RenderableType

from onnxprune.report import console, explanation, verification
from onnxprune.report.coupling import explain_node, held_by
from onnxprune.report.index import Index
from onnxprune.report.layout import Name, flexible, heading, left, right, table
from onnxprune.report.operators import operators
from onnxprune.report.summary import summarize, summarize_plan
from onnxprune.rewrite.comparison import Comparison, OutputDistance, header_of
from onnxprune.rewrite.verify import OutputCheck, Verification
from onnxprune.trace.pruned_graph import PrunedGraph
from tests.report.network import network
from tests.toolbox import analyze

LONG = "StatefulPartitionedCall/model/block_7/expand/Conv2D;model/block_7/expand_BN/FusedBatchNormV3"


def drawn(parts: Iterable[RenderableType], width: int = 100) -> str:
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


def reports(model: ModelProto) -> dict[str, Iterable[RenderableType]]:
    graph = analyze(model)
    index, summary, plan = Index(graph), summarize(graph), summarize_plan(PrunedGraph(graph))
    checks = (OutputCheck("logits", 1e-7, 0.8),)
    node = graph.proto.graph.node[0]
    return {
        "model": console.model_tables(Path("model.onnx"), header_of(model), summary, 1234),
        "pins": console.pin_tables(summary, "see `onnxprune explain`"),
        "costs": console.cost_tables(plan, (2000, 1000)),
        "changes": console.group_tables(plan),
        "comparison": verification.comparison_tables(Comparison(verification=Verification(True, 1e-4, checks))),
        "node": explanation.node_tables(node.name, node.op_type, explain_node(index, node)),
        "held": explanation.held_tables("OP202", list(held_by(index, "OP202"))),
        "code": explanation.code_tables("OP204"),
    }


@pytest.mark.parametrize("report", list(reports(network())))
def test_fits_100_columns(report: str) -> None:
    text = drawn(reports(with_long_names())[report])
    # A line of running text that is one long name is folded by the terminal; tables must fit by themselves.
    assert max(map(len, text.splitlines())) <= 100


def test_nothing_is_lost_in_a_pipe() -> None:
    text = drawn(chain.from_iterable(reports(with_long_names()).values()), width=10_000)
    assert "…" not in text
    assert f"{LONG}/stem" in text


def test_figures() -> None:
    found = {name: drawn(part) for name, part in reports(network()).items()}
    layers = [line.split() for line in found["model"].splitlines()]
    assert ["L1", "stem", "Conv", "16x3x3x3", "1x16x8x8", "448", "27.6", "k", "OP201", "→", "g0"] in layers
    assert ["L4", "head", "MatMul", "8x10", "1x10", "80", "80", "g1", "→", "OP202"] in layers
    assert "prunable parameters   98.8 %" in found["model"]
    assert "taken as 1x3x8x8" in found["model"]
    assert "OP202  graph output       2  11.1 %   1.2 %" in found["pins"]
    assert "2.00 kB  1.00 kB  -50.0 %" in found["costs"]
    assert "rewriting proved" in found["comparison"]
    assert "seed 0" not in found["comparison"] and "your inputs" in " ".join(found["comparison"].split())


def test_numbers_are_set_to_the_right() -> None:
    lines = drawn([table(left("a") + right("b"), [("x", "1"), ("y", "1000")])]).splitlines()
    assert [line.rstrip() for line in lines] == ["  a     b", "  x     1", "  y  1000"]


def test_a_name_gives_way_before_figures_do() -> None:
    lines = drawn([table(flexible("node") + right("n"), [(Name("a" * 200), "123456789")])], width=40).splitlines()
    assert lines[1].rstrip().endswith("123456789")
    assert "…" in lines[1]


@pytest.mark.parametrize(
    "make",
    [
        heading,
        lambda n: table(left("a"), [(n,)]),
        lambda n: table(flexible("a"), [(Name(n),)]),
        *(lambda n, column=column: table(column(n), [("a",)]) for column in (left, right, flexible)),
    ],
)
def test_names_can_not_command_the_terminal(make: Callable[[str], RenderableType]) -> None:
    text = drawn([make("\x1b[2J[red]:smile:\x07")])
    assert "\x1b" not in text and "\x07" not in text
    assert "\\x1b[2J[red]:smile:\\x07" in text


def test_comparisons() -> None:
    def text(comparison: Comparison) -> str:
        return drawn(verification.comparison_tables(comparison))

    assert "not proved" in text(Comparison())
    failed = Comparison(verification=Verification(False, 1e-4, (OutputCheck("y", 1.0, 2.0),), seed=3))
    assert not failed.proved
    assert "NOT right" in text(failed) and "seed 3" in text(failed)
    assert "input 'x' became 'z'" in text(Comparison(("input 'x' became 'z'",)))
    apart = (OutputDistance("y", 0.5, None, True),)
    assert "The outputs differ" in text(Comparison(distances=apart, tolerance=0.4))
    assert "The outputs agree" in text(Comparison(distances=apart, tolerance=0.6))
    assert "Nothing is proved" in text(Comparison(distances=apart))


def test_operators_are_counted() -> None:
    known = operators()
    last = drawn(console.operator_tables(known)).splitlines()[-1]
    assert last.startswith(f"{len(known)} operators: ")
