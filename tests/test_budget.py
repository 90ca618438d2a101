"""Budgets: targets are met closely from below, constraints hold, and contradictions are errors."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray

from onnxprune.cost.cost import cost
from onnxprune.errors import PlanError
from onnxprune.planning import budget
from onnxprune.planning.budget import allowed_counts, choose, multiples
from onnxprune.settings.planning import QUANTITIES, Constraints, Target
from onnxprune.trace.graph import ChannelGraph
from onnxprune.trace.groups import Group
from onnxprune.trace.pruned_graph import PrunedGraph
from tests.toolbox import Net, analyze


@lru_cache
def network() -> ChannelGraph:
    """A small residual network with a grouped convolution, a squeeze-and-excitation and a flatten."""
    net = Net()
    x = net.op("Relu", net.conv(net.input((1, 3, 8, 8)), 32, 3, name="stem"))
    y = net.conv(net.op("Relu", net.conv(x, 64, 3, name="block.wide")), 32, name="block.out")
    x = net.op("Relu", net.op("Add", x, y))
    y = net.conv(x, 48, 3, group=4, name="grouped")
    gate = net.op("GlobalAveragePool", y)
    gate = net.conv(net.op("Relu", net.conv(gate, 12, name="se.reduce")), 48, name="se.expand")
    y = net.op("Mul", y, net.op("Sigmoid", gate))
    y = net.op("MaxPool", net.conv(y, 24, name="neck"), kernel_shape=[4, 4], strides=[4, 4])
    z = net.linear(net.op("Relu", net.linear(net.op("Flatten", y), 40, name="fc")), 10, name="classifier")
    z = net.op("LayerNormalization", net.linear(z, 20, name="late"), net.weight(20))
    net.output(net.linear(z, 5, name="head"))
    return analyze(net.model())


def scores(seed: int = 0) -> list[NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    return [rng.random(len(g.units)) for g in network().groups]


def group_of(producer: str) -> Group:
    (group,) = (g for g in network().groups if producer in g.producers)
    return group


def remaining(removed: NDArray[np.bool_], group: Group) -> int:
    return int((~removed[group.units]).sum())


def channels(removed: NDArray[np.bool_], producer: str) -> int:
    """Count the output channels that a node keeps, by the weights alone."""
    kept = PrunedGraph(network(), removed)
    axis = 0 if network().values[f"{producer}_w"].shape[2:] else 1
    return kept.shape(f"{producer}_w")[axis]


def total(removed: NDArray[np.bool_], quantity: str) -> int:
    return int(cost(PrunedGraph(network(), removed)).totals()[quantity])


@given(
    st.sampled_from(QUANTITIES),
    st.floats(0.3, 1.0),
    st.sampled_from(["uniform", "global"]),
    st.sampled_from([None, 1, 4, 8]),
    st.integers(0, 100),
)
@settings(max_examples=100)
def test_target_is_met_closely(quantity: Any, share: float, allocation: Any, round_to: int | None, seed: int) -> None:
    graph, constraints = network(), Constraints(round_to=round_to)
    value = scores(seed)
    try:
        removed = choose(graph, value, constraints, target=Target(quantity, share), allocation=allocation)
    except PlanError as error:
        assert error.code == "OP301"
        assert quantity == "memory", "all other quantities can be brought to 30 % of this network"
        return
    limit = share * total(np.zeros_like(removed), quantity)
    assert total(removed, quantity) <= limit

    # Undoing one step of some group would miss the target: no more was removed than necessary.
    missed = not removed.any()
    for group in graph.groups:
        order = group.units[group.deal(value[group.index]).ravel()]
        gone = int(removed[group.units].sum())
        assert removed[order[:gone]].all(), "the least important are removed first"
        sets, size = group.sets.shape
        rungs = [
            0,
            *(
                size * (sets - n)
                for n in allowed_counts(sets, group.widths, constraints, multiples(graph, constraints))
            ),
        ]
        assert gone in rungs
        if gone:
            less = removed.copy()
            less[order[rungs[rungs.index(gone) - 1] : gone]] = False
            missed |= total(less, quantity) > limit
    assert missed


def counts(units: int, widths: list[int], *, wide: bool = True, **limits: Any) -> list[int]:
    """Return the allowed counts of a group in a network with wide layers, or one without."""
    constraints = Constraints(**limits)
    defaults = budget._WIDE if wide else budget._NARROW
    return allowed_counts(
        units, widths, constraints, defaults if constraints.round_to is None else multiples(network(), constraints)
    )


@given(
    st.integers(1, 200),
    st.lists(st.integers(1, 16), min_size=1, max_size=3),
    st.integers(1, 32),
    st.floats(0, 0.99),
    st.one_of(st.none(), st.integers(1, 16)),
    st.booleans(),
)
def test_allowed_counts(
    units: int, widths: list[int], least: int, ratio: float, round_to: int | None, wide: bool
) -> None:
    rungs = counts(units, widths, wide=wide, min_channels=least, max_ratio=ratio, round_to=round_to)
    assert rungs == sorted(set(rungs), reverse=True)
    for n in rungs:
        assert 1 <= n < units
        assert units - n <= ratio * units + 1e-6
        for width in widths:
            assert n * width >= least
            assert n * width % (round_to or 1) == 0
    if round_to is None and units >= 32 and ratio >= 0.5 and least <= 16:
        assert all(n * width % (16 if wide else 8) == 0 for n in rungs for width in widths)
    if round_to == 1:  # nothing that the constraints allow is missing
        allowed = [n for n in range(1, units) if n * min(widths) >= least and units - n <= ratio * units + 1e-9]
        assert rungs == allowed[::-1]


def test_narrow_layers_have_choices() -> None:
    assert counts(64, [1]) == [48, 32, 16] and counts(32, [1]) == [16] and counts(24, [1]) == [16, 8]
    assert counts(32, [1], max_ratio=0.3) == [24], "finer if nothing could be removed otherwise"
    assert counts(16, [1]) == [12, 8, 4]
    assert counts(12, [1], max_ratio=0.99) == [10, 8, 6, 4, 2]
    assert counts(2, [1]) == [1]
    assert counts(1, [1]) == []


def test_narrow_networks_have_more_choices() -> None:
    assert counts(64, [1], wide=False) == [56, 48, 40, 32, 24, 16, 8]
    assert counts(32, [1], wide=False) == [24, 16, 8] and counts(24, [1], wide=False) == [16, 8]
    assert counts(16, [1], wide=False) == [8, 4] and counts(12, [1], wide=False, max_ratio=0.99) == [10, 8, 6, 4, 2]
    for width, finest in ((64, 8), (128, 16)):
        net = Net()
        net.output(net.conv(net.op("Relu", net.conv(net.input((1, 3, 8, 8)), width)), 4))
        assert multiples(analyze(net.model()), Constraints())[0][0] == finest


def test_each_axis_is_rounded() -> None:
    """After a flatten, a channel is many features; in the convolution before it, it is one."""
    assert counts(24, [1, 4], round_to=8) == [16, 8]
    assert counts(24, [4], round_to=8)[:2] == [22, 20]
    assert counts(12, [4, 6], round_to=8) == [8, 4]


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 0.75])
def test_uniform_ratio(ratio: float) -> None:
    removed = choose(network(), scores(), Constraints(round_to=1), ratio=ratio)
    for group in network().groups:
        gone = len(group.units) - remaining(removed, group)
        assert abs(gone - ratio * len(group.units)) <= 0.5


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 0.75])
def test_global_ratio(ratio: float) -> None:
    removed = choose(network(), scores(), Constraints(round_to=1), ratio=ratio, allocation="global")
    units = sum(len(g.units) for g in network().groups)
    assert abs(removed.sum() - ratio * units) <= 1
    shares = {remaining(removed, g) / len(g.units) for g in network().groups}
    assert ratio == 0 or len(shares) > 1


def test_rounding_is_to_the_nearest() -> None:
    removed = choose(network(), scores(), Constraints(round_to=8), ratio=0.4)
    assert {g.name: channels(removed, g.name) for g in network().groups} == {
        "stem": 16,  # of 32, ideally 19.2: 16 and 24 are the neighbors
        "block.wide": 40,  # of 64, ideally 38.4
        "grouped": 32,  # of 48, ideally 28.8
        "se.reduce": 8,  # of 12, ideally 7.2
        "neck": 16,  # of 24, ideally 14.4; four features each after the flatten
        "fc": 24,
        "late": 8,  # of 20, ideally 12: 8 and 16 are equally near
        "classifier": 8,
    }


def test_min_channels() -> None:
    removed = choose(network(), scores(), Constraints(min_channels=20, round_to=1), ratio=0.8)
    for group in network().groups:
        least = min(len(group.units), 20 // min(group.widths))
        assert remaining(removed, group) >= least


def test_max_ratio() -> None:
    constraints = Constraints(max_ratio=0.3, round_to=1)
    removed = choose(network(), scores(), constraints, ratio=0.8, allocation="global")
    for group in network().groups:
        assert remaining(removed, group) >= 0.7 * len(group.units)


def test_exclude_keeps_weights_as_they_are() -> None:
    removed = choose(network(), scores(), Constraints(exclude=("block.*", "fc")), ratio=0.5)
    gone = PrunedGraph(network(), removed).positions()
    assert gone
    assert not [name for name in gone if name.startswith(("block.", "fc"))]


def test_include_is_by_producer() -> None:
    removed = choose(network(), scores(), Constraints(include=("block.wide",)), ratio=0.5)
    assert {g.name for g in network().groups if removed[g.units].any()} == {"block.wide"}


def test_exact_only() -> None:
    assert not group_of("late").exact
    removed = choose(network(), scores(), Constraints(exact_only=True), ratio=0.5)
    assert not removed[group_of("late").units].any()
    assert all(removed[g.units].any() for g in network().groups if g.exact)


def test_ratio_for_overrides_and_the_last_wins() -> None:
    constraints = Constraints(round_to=1, ratio_for=(("block.*", 0.0), ("block.wide", 0.75)))
    removed = choose(network(), scores(), constraints, ratio=0.5)
    assert channels(removed, "block.wide") == 16
    assert channels(removed, "block.out") == 32
    assert channels(removed, "fc") == 20


def test_ratio_for_counts_toward_a_target() -> None:
    constraints = Constraints(ratio_for=(("block.wide", 0.75),))
    removed = choose(network(), scores(), constraints, target=Target("macs", 0.5))
    free = choose(network(), scores(), Constraints(), target=Target("macs", 0.5))
    assert total(removed, "macs") <= 0.5 * total(np.zeros_like(removed), "macs")
    assert remaining(removed, group_of("neck")) >= remaining(free, group_of("neck"))


def test_scores_that_are_nan_keep_a_group() -> None:
    values = scores()
    values[group_of("fc").index][:] = np.nan
    removed = choose(network(), values, Constraints(), ratio=0.5)
    assert not removed[group_of("fc").units].any()


def test_unreachable_target_says_what_is_reachable() -> None:
    constraints = Constraints(max_ratio=0.5)
    with pytest.raises(PlanError) as caught:
        choose(network(), scores(), constraints, target=Target("macs", 0.05))
    assert caught.value.code == "OP301"
    assert caught.value.hint is not None
    reachable = float(caught.value.hint.split("%")[0]) / 100
    assert 0.05 < reachable < 0.5
    removed = choose(network(), scores(), constraints, target=Target("macs", reachable + 0.001))
    share = total(removed, "macs") / cost(PrunedGraph(network())).macs
    assert share == pytest.approx(reachable, abs=0.001)


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        ("OP302", lambda: {}),
        ("OP302", lambda: {"ratio": 0.5, "target": Target("macs", 0.5)}),
        ("OP303", lambda: {"ratio": 1.0}),
        ("OP303", lambda: {"ratio": -0.1}),
        ("OP303", lambda: {"ratio": float("nan")}),
        ("OP303", lambda: {"target": Target("macs", 0.0)}),
        ("OP303", lambda: {"target": Target("macs", 1.5)}),
        ("OP303", lambda: {"ratio": 0.5, "constraints": Constraints(min_channels=0)}),
        ("OP303", lambda: {"ratio": 0.5, "constraints": Constraints(max_ratio=1.0)}),
        ("OP303", lambda: {"ratio": 0.5, "constraints": Constraints(round_to=0)}),
        ("OP303", lambda: {"ratio": 0.5, "constraints": Constraints(ratio_for=(("fc", 1.0),))}),
        ("OP304", lambda: {"ratio": 0.5, "constraints": Constraints(include=("nowhere*",))}),
        ("OP304", lambda: {"ratio": 0.5, "constraints": Constraints(exclude=("nowhere*",))}),
        ("OP304", lambda: {"ratio": 0.5, "constraints": Constraints(ratio_for=(("nowhere", 0.1),))}),
        ("OP310", lambda: {"ratio": 0.5, "constraints": Constraints(exclude=("*",))}),
        ("OP310", lambda: {"target": Target("macs", 0.5), "constraints": Constraints(exclude=("*",))}),
    ],
)
def test_refusals(code: str, arguments: Callable[[], dict[str, Any]]) -> None:
    with pytest.raises(PlanError) as caught:
        choose(network(), scores(), **{"constraints": Constraints(), **arguments()})
    assert caught.value.code == code
