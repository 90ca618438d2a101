"""Plans as data: what goes in comes out, and what doesn't fit is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from onnxprune.cost.cost import cost
from onnxprune.errors import PlanError
from onnxprune.planning.plan import PrunePlan, apply_plan, plan_of
from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.pruned_graph import PrunedGraph
from tests.property.nets import Sample, samples
from tests.toolbox import Net, analyze, removal

ALL = tuple(range(6))


@lru_cache
def network() -> ChannelGraph:
    net = Net()
    x = net.op("Relu", net.conv(net.input((1, 3, 6, 6)), 8, 3, name="stem"))
    y = net.conv(net.op("Relu", net.conv(x, 6, 3, name="inner")), 8, name="outer")
    net.output(net.conv(net.op("Add", x, y), 2, name="head"))
    return analyze(net.model())


def plan(seed: int = 0, settings: dict[str, Any] | None = None) -> PrunePlan:
    kept = removal(network().groups, network(), np.random.default_rng(seed))
    return plan_of(PrunedGraph(network(), kept.removed), "ab" * 32, settings or {"ratio": 0.5, "seed": seed})


@given(samples(), st.integers(0, 2**16))
@settings(max_examples=30)
def test_round_trip(sample: Sample, seed: int) -> None:
    graph = analyze(sample.model, sample.shapes)
    kept = removal(graph.groups, graph, np.random.default_rng(seed))
    made = plan_of(PrunedGraph(graph, kept.removed), "0" * 64, {"seed": seed, "nested": {"a": [1, None]}})
    assert PrunePlan.from_json(made.to_json()) == made
    assert PrunePlan.from_json(made.to_json().encode()).digest == made.digest
    assert (apply_plan(graph, made).removed == kept.removed).all()


def test_what_a_plan_says() -> None:
    made = plan()
    document = json.loads(made.to_json())
    assert document["format"] == 5
    assert document["model_sha256"] == "ab" * 32
    assert document["inputs"] == {"input0": [1, 3, 6, 6]}
    kept = apply_plan(network(), made)
    assert document["cost"] == {"before": cost(PrunedGraph(network())).totals(), "after": cost(kept).totals()}
    # Coupled weights lose the same places: the stem's outputs, the block's, and what the head reads.
    removed = document["removed"]
    assert removed["stem_w"]["0"] == removed["outer_w"]["0"] == removed["head_w"]["1"] == removed["inner_w"]["1"]
    assert removed["inner_w"]["0"] == removed["outer_w"]["1"]


def test_digest_is_of_the_model_and_what_leaves() -> None:
    made = plan()
    shuffled = replace(
        made,
        removed={n: dict(sorted(made.removed[n].items(), reverse=True)) for n in sorted(made.removed, reverse=True)},
    )
    assert shuffled.digest == made.digest
    assert replace(made, settings={"other": 1}).digest == made.digest
    assert replace(made, model="cd" * 32).digest != made.digest
    assert plan(seed=1).digest != made.digest


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"format": 1}',
        b"\xff\xfe",
        "[" * 100_000,
        '{"format": 2}',
    ],
)
def test_what_is_no_plan(text: str | bytes) -> None:
    with pytest.raises(PlanError) as caught:
        PrunePlan.from_json(text, "file.json")
    assert caught.value.code == "OP305"
    assert caught.value.where == "file.json"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("removed",), [1]),
        (("removed", "stem_w"), [1]),
        (("removed", "stem_w", "0"), ["a"]),
        (("removed", "stem_w", "0"), [-1]),
        (("removed", "stem_w", "0"), [1.5]),
        (("removed", "stem_w", "0"), [True]),
        (("removed", "stem_w"), {"x": [1]}),
        (("inputs", "input0"), ["N"]),
        (("cost",), 3),
        (("settings",), 3),
    ],
)
def test_fields_of_the_wrong_kind(path: tuple[str, ...], value: Any) -> None:
    document = json.loads(plan().to_json())
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(PlanError) as caught:
        PrunePlan.from_json(json.dumps(document))
    assert caught.value.code == "OP305"


def changed(**changes: dict[int, tuple[int, ...]] | None) -> PrunePlan:
    """Return the plan with other removals for some initializers."""
    made = plan()
    removed = {**made.removed, **{name: axes for name, axes in changes.items() if axes is not None}}
    return replace(made, removed={n: a for n, a in removed.items() if changes.get(n, a) is not None})


@pytest.mark.parametrize(
    "made",
    [
        changed(nowhere={0: (1,)}),
        changed(stem_w={5: (1,)}),
        changed(stem_w={0: (99,)}),
        changed(head_w=None),  # coupled weights left out
        changed(stem_b=None),
        changed(stem_w={0: (0,)}, stem_b={0: (1,)}),
        changed(stem_w={0: tuple(plan().removed["stem_w"][0]), 1: (0,)}),  # a graph input's channels
        changed(head_w={0: (0,), 1: plan().removed["head_w"][1]}),  # a graph output's
        replace(plan(), removed={"inner_w": {0: ALL}, "inner_b": {0: ALL}, "outer_w": {1: ALL}}),
    ],
)
def test_plans_that_do_not_fit(made: PrunePlan) -> None:
    with pytest.raises(PlanError) as caught:
        apply_plan(network(), made)
    assert caught.value.code == "OP307"
    assert caught.value.where


def test_an_empty_plan() -> None:
    made = plan_of(PrunedGraph(network(), np.zeros(len(network().pinned), dtype=bool)), "0" * 64, {})
    assert made.removed == {}
    assert made.before == made.after
    assert not apply_plan(network(), made).removed.any()


def test_the_prediction_is_of_what_leaves() -> None:
    """Counted by hand: a plan that takes 2 of 6 inner channels."""
    inner = next(g for g in network().groups if len(g.units) == 6)
    removed = np.zeros(len(network().pinned), dtype=bool)
    removed[inner.units[[1, 4]]] = True
    made = plan_of(PrunedGraph(network(), removed), "0" * 64, {})
    assert made.removed == {"inner_w": {0: (1, 4)}, "inner_b": {0: (1, 4)}, "outer_w": {1: (1, 4)}}
    assert made.before["params"] - made.after["params"] == 2 * (8 * 9 + 1 + 8)
    assert made.before["macs"] - made.after["macs"] == 2 * 36 * (8 * 9 + 8)
    assert made.before["size"] - made.after["size"] == 4 * 2 * (8 * 9 + 1 + 8)
    assert PrunedGraph(network(), removed).shape("outer_w") == (8, 4, 1, 1)
