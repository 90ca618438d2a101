"""Golden lines: each operator's rule, told in one line and proved by the masked oracle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxprune.errors import ModelError
from onnxprune.trace.registry import rules
from tests.toolbox import analyse, assert_proved, inputs_of, removal, run_once
from tests.trace.golden import Golden, build, found, parse

LINES = [
    line
    for line in (Path(__file__).parent / "golden.txt").read_text().splitlines()
    if line.strip() and not line.startswith("#")
]
GOLDEN = [parse(line) for line in LINES]


@pytest.mark.parametrize("golden", GOLDEN, ids=str)
def test_groups(golden: Golden) -> None:
    graph = analyse(build(golden))
    assert found(graph) == golden.expected


@pytest.mark.parametrize("golden", [g for g in GOLDEN if any(w[0] in "~0123456789" for w in g.expected)], ids=str)
def test_pruned_equals_masked(golden: Golden) -> None:
    graph = analyse(build(golden))
    try:
        run_once(graph.proto, inputs_of(graph))
    except ModelError as error:
        assert error.code == "OP122"
        assert "NOT_IMPLEMENTED" in str(error.__cause__), error
        pytest.skip(f"ONNX Runtime has no kernel for {golden.operator}")
    for seed in range(3):
        assert_proved(removal(graph.groups, graph, np.random.default_rng(seed)))


def test_every_rule_has_a_golden_line() -> None:
    assert set(rules()) == {g.operator for g in GOLDEN}


def test_table_is_alphabetical() -> None:
    names = [g.operator for g in GOLDEN]
    assert names == sorted(names)
