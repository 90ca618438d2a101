"""Every criterion against a slow, obvious version of it, and what must not change a score."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxprune.errors import PlanError
from onnxprune.importance import builtin, score
from onnxprune.trace import ChannelGraph
from tests.importance.network import Arrays, build, folded, nodes, weights

Vectors = list[list[float]]
Shares = dict[tuple[str, int], float]
# What weights' slots count for: those that read a group's units three quarters, those that make them a quarter.
WEIGHTS = {("conv1.w", 0): 0.25, ("conv2.w", 1): 0.75, ("conv2.w", 0): 0.25, ("fc.w", 1): 0.75}
MAGNITUDES = ["l1", "l2", "fpgm", "lamp"]


def slots(graph: ChannelGraph, units: NDArray[np.int64], wanted: Shares) -> list[tuple[float, Vectors]]:
    """For every weight axis that is wanted, its share, and the elements of every unit, one by one."""
    arrays = {t.name: numpy_helper.to_array(t) for t in graph.proto.graph.initializer}
    found: dict[tuple[str, int], Vectors] = {}
    for unit in units:
        for part in graph.unit(int(unit)).slices:
            if (part.tensor, part.axis) in wanted:
                taken = np.take(arrays[part.tensor], part.positions, part.axis)
                found.setdefault((part.tensor, part.axis), []).append(taken.astype(np.float64).ravel().tolist())
    return [(wanted[slot], vectors) for slot, vectors in found.items()]


def norms(vectors: Vectors, power: int) -> list[float]:
    return [sum(abs(w) ** power for w in vector) for vector in vectors]


def group_norms(graph: ChannelGraph, units: NDArray[np.int64], power: int) -> list[float]:
    total = [0.0] * len(units)
    for share, vectors in slots(graph, units, WEIGHTS):
        sums = norms(vectors, power)
        for u, value in enumerate(sums):
            total[u] += share * value / (sum(sums) / len(sums))
    return total


def slow_l1(graph: ChannelGraph, units: NDArray[np.int64]) -> list[float]:
    return group_norms(graph, units, 1)


def slow_l2(graph: ChannelGraph, units: NDArray[np.int64]) -> list[float]:
    return [math.sqrt(v) for v in group_norms(graph, units, 2)]


def slow_lamp(graph: ChannelGraph, units: NDArray[np.int64]) -> list[float]:
    squares = group_norms(graph, units, 2)
    return [s / sum(t for t in squares if t >= s) for s in squares]


def slow_fpgm(graph: ChannelGraph, units: NDArray[np.int64]) -> list[float]:
    vectors: Vectors = [[] for _ in units]
    for share, slot in slots(graph, units, WEIGHTS):
        mean = sum(norms(slot, 2)) / len(slot)
        for u, vector in enumerate(slot):
            vectors[u] += [w * math.sqrt(share / mean) for w in vector]
    return [sum(math.dist(a, b) for b in vectors) for a in vectors]


def slow_bn_scale(graph: ChannelGraph, units: NDArray[np.int64]) -> list[float]:
    for _, gammas in slots(graph, units, {("bn1.scale", 0): 1}):
        return [abs(gamma) for (gamma,) in gammas]
    return [math.nan] * len(units)


SLOW: dict[str, Callable[[ChannelGraph, NDArray[np.int64]], list[float]]] = {
    "bn-scale": slow_bn_scale,
    "fpgm": slow_fpgm,
    "l1": slow_l1,
    "l2": slow_l2,
    "lamp": slow_lamp,
}


def expected(name: str, arrays: Arrays) -> list[NDArray[np.float64]]:
    """Scores by the slow version, of the model whose BatchNormalization was folded by hand."""
    graph = build(arrays if name == "bn-scale" else folded(arrays))
    found = []
    for group in graph.groups:
        values = np.array(SLOW[name](graph, group.units))
        found.append(values if name == "lamp" else values / values.mean())
    return found


@pytest.mark.parametrize("name", SLOW)
def test_equals_the_slow_version(name: str) -> None:
    graph = build(weights())
    assert [len(g.units) for g in graph.groups] == [12, 10]
    assert [g.width for g in graph.groups] == [1, 16]
    actual = score(graph, name)
    for fast, slow in zip(actual, expected(name, weights()), strict=True):
        np.testing.assert_allclose(fast, slow, rtol=1e-5)
    # Negative control: it does tell other weights apart.
    for fast, other in zip(actual, expected(name, weights(seed=1)), strict=True):
        assert np.isnan(fast).all() or not np.allclose(fast, other, rtol=1e-2)


@pytest.mark.parametrize("name", [*SLOW, "random"])
def test_scores_average_to_one_or_reach_one(name: str) -> None:
    for scores in score(build(weights()), name):
        if not np.isnan(scores).any():
            assert (scores >= 0).all()
            assert (scores.max() if name == "lamp" else scores.mean()) == pytest.approx(1)


@pytest.mark.parametrize("name", MAGNITUDES)
def test_a_folded_model_scores_the_same(name: str) -> None:
    arrays = weights()
    for plain, fold in zip(
        score(build(arrays), name), score(build(folded(arrays), nodes(bn=False)), name), strict=True
    ):
        np.testing.assert_allclose(plain, fold, rtol=1e-5)


@pytest.mark.parametrize("name", MAGNITUDES)
def test_only_the_product_of_weight_and_gamma_counts(name: str) -> None:
    plain = score(build(weights()), name)
    arrays = weights()
    by = np.random.default_rng(1).uniform(0.1, 10, 12).astype(np.float32)
    arrays["conv1.w"] *= by[:, None, None, None]
    assert not np.allclose(score(build(arrays), name)[0], plain[0], rtol=1e-2)
    arrays["bn1.scale"] /= by
    for a, b in zip(score(build(arrays), name), plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize("name", MAGNITUDES)
def test_scaling_a_whole_layer_changes_nothing(name: str) -> None:
    arrays = weights()
    arrays["conv2.w"] *= 100
    arrays["fc.w"] /= 1000
    for a, b in zip(score(build(arrays), name), score(build(weights()), name), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize("name", SLOW)
def test_permuting_channels_permutes_scores(name: str) -> None:
    plain = score(build(weights()), name)
    first, second = np.random.default_rng(1).permutation(12), np.random.default_rng(2).permutation(10)
    arrays = weights()
    for tensor in ("conv1.w", "bn1.scale", "bn1.bias", "bn1.mean", "bn1.var"):
        arrays[tensor] = arrays[tensor][first]
    arrays["conv2.w"] = arrays["conv2.w"][second][:, first]
    arrays["conv2.b"] = arrays["conv2.b"][second]
    arrays["fc.w"] = arrays["fc.w"].reshape(7, 10, 16)[:, second].reshape(7, 160)
    permuted = score(build(arrays), name)
    np.testing.assert_allclose(permuted[0], plain[0][first], rtol=1e-5)
    np.testing.assert_allclose(permuted[1], plain[1][second], rtol=1e-5)


@pytest.mark.parametrize("name", MAGNITUDES)
def test_a_duplicate_scores_like_its_twin_and_a_dead_unit_scores_least(name: str) -> None:
    arrays = weights()
    for tensor in ("conv1.w", "bn1.scale", "bn1.var"):
        arrays[tensor][3] = arrays[tensor][8]
    arrays["conv2.w"][:, 3] = arrays["conv2.w"][:, 8]
    arrays["conv2.w"][4] = 0
    arrays["fc.w"][:, 4 * 16 : 5 * 16] = 0
    first, second = score(build(arrays), name)
    assert first[3] == pytest.approx(first[8])
    assert np.argmin(second) == 4
    if name == "fpgm":  # the origin is near the median of vectors around it
        assert second[4] > 0
    else:
        assert second[4] == 0


def test_random_is_told_by_seed_and_group() -> None:
    graph = build(weights())
    first, again, other = (score(graph, "random", seed=s) for s in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    assert not np.allclose(first[0][:10], first[1], rtol=1e-2)
    with pytest.raises(PlanError) as caught:
        score(graph, "random", seed=-1)
    assert caught.value.code == "OP303"


def test_bn_scale_needs_a_normalization() -> None:
    first, second = score(build(weights()), "bn-scale")
    assert not np.isnan(first).any()
    assert np.isnan(second).all()
    with pytest.raises(PlanError) as caught:
        score(build(weights(), nodes(bn=False)), "bn-scale")
    assert caught.value.code == "OP311"
    assert "fold" in str(caught.value) and "l2" in str(caught.value)


def test_fpgm_in_blocks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = score(build(weights()), "fpgm")
    monkeypatch.setattr(builtin, "_DISTANCES", 60)  # 5 of 12 units at a time, 6 of 10
    for a, b in zip(score(build(weights()), "fpgm"), whole, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
