"""Layers in two by rank: rewritten, proved, repaired as one, chosen by measurement, planned, and read back."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

import onnxprune as op
from onnxprune.cost.cost import cost, model_cost
from onnxprune.errors import OnnxPruneError, PlanError, VerificationError
from onnxprune.model.checks import subgraphs
from onnxprune.planning.plan import Moves, PrunePlan
from onnxprune.rank import factors
from onnxprune.rank.budget import allowed_ranks, by_weights, spend
from onnxprune.rank.factors import Factored, factor, find_split
from onnxprune.rank.proof import prove_factored
from onnxprune.recover import recover
from onnxprune.recover.lstsq import Moments
from onnxprune.recover.pairs import of_rank, split
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.sensitivity import Curve, Point
from onnxprune.settings.planning import Constraints
from onnxprune.shapes import concretize
from onnxprune.trace import ChannelGraph, trace
from onnxprune.trace.pruned_graph import PrunedGraph
from onnxprune.workflow.analysis import moved
from tests.property.nets import Sample, samples
from tests.toolbox import (
    Net,
    analyze,
    assert_proved,
    inputs_of,
    largest_difference,
    removal,
    run_once,
)

HALF = op.Target("macs", 0.5)
RNG = np.random.default_rng(0)


def chain(kind: str) -> ModelProto:
    """Return a network whose layer "wide" is of some kind."""
    net = Net(opset=9 if kind == "old gemm" else 17)
    if kind in ("conv", "strided", "transposed"):
        x = net.op("Relu", net.conv(net.input((2, 3, 9, 9), "x"), 12, 3))
        if kind == "transposed":
            w, b = net.weight(12, 10, 3, 3, name="w", fan_in=108), net.weight(10)
            y = net.op("ConvTranspose", x, w, b, name="wide", strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1])
        else:
            how: dict[str, Any] = {"strides": [2, 2], "auto_pad": "SAME_UPPER"} if kind == "strided" else {}
            y = net.conv(x, 10, 3, name="wide", **how)
        net.output(net.op("GlobalAveragePool", net.op("Relu", y)))
        return net.model()
    x = net.op("Tanh", net.linear(net.input((3, 8) if "gemm" in kind else (2, 3, 8), "x"), 12))
    w = net.weight(*((10, 12) if kind in ("gemm", "einsum") else (12, 10)), name="w", fan_in=12)
    if "gemm" in kind:
        y = net.op("Gemm", x, w, net.weight(10), name="wide", transB=int(kind == "gemm"))
    elif kind == "einsum":
        y = net.op("Einsum", x, w, name="wide", equation="abk,ok->abo")
    else:
        y = net.op("Add", net.op("MatMul", x, w, name="wide"), net.weight(10))
    net.output(net.linear(net.op("Tanh", y), 4))
    return net.model()


KINDS = ["conv", "strided", "transposed", "gemm", "old gemm", "matmul", "einsum"]


def lowered(model: ModelProto, rank: int) -> ModelProto:
    """Return a model whose layer "wide" has a weight of lower rank, by NumPy's SVD of it."""
    copy = ModelProto.FromString(model.SerializeToString())
    (node,) = (n for n in copy.graph.node if n.name == "wide")
    (tensor,) = (t for t in copy.graph.initializer if t.name == node.input[1])
    weight = numpy_helper.to_array(tensor).astype(np.float64)
    first = np.moveaxis(weight, 1, 0) if node.op_type == "ConvTranspose" else weight
    u, s, v = np.linalg.svd(first.reshape(len(first), -1), full_matrices=False)
    near = ((u[:, :rank] * s[:rank]) @ v[:rank]).reshape(first.shape)
    near = np.moveaxis(near, 1, 0) if node.op_type == "ConvTranspose" else near
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(near, dtype=np.float32), tensor.name))
    return copy


def factored(graph: ChannelGraph, ranks: dict[str, int]) -> tuple[Factored, ChannelGraph]:
    found = factor(graph.proto, graph.shapes, ranks)
    if not any(True for node in graph.proto.graph.node for _ in subgraphs(node)):  # of If, which stand open here
        onnx.checker.check_model(found.proto, full_check=True)
    return found, trace(found.proto, shapes=concretize(found.proto, graph.shapes.inputs), policies=graph.policies)


class TestRewriting:
    @pytest.mark.parametrize("kind", KINDS)
    def test_two_layers_are_the_one_of_lower_rank(self, kind: str) -> None:
        model, inputs = chain(kind), inputs_of(analyze(chain(kind)))
        graph = analyze(model)
        found, _ = factored(graph, {"wide": 3})
        expected = run_once(lowered(model, 3), inputs)
        assert largest_difference(run_once(found.proto, inputs), expected) < 1e-5
        assert largest_difference(run_once(lowered(model, 4), inputs), expected) > 1e-3
        assert prove_factored(graph.proto, found, inputs) < 1e-5

    @pytest.mark.parametrize("kind", KINDS)
    def test_costs_are_those_that_were_expected(self, kind: str) -> None:
        graph = analyze(chain(kind))
        (split,) = (s for s in find_split(graph.proto, graph.shapes)[0] if s.layer.node.name == "wide")
        found, after = factored(graph, {"wide": 3})
        before, now = cost(PrunedGraph(graph)), cost(PrunedGraph(after))
        assert before.macs - now.macs == split.cost.macs - split.macs(3) > 0
        assert before.params - now.params == split.outputs * split.features - split.params(3)
        assert found.cheaper(PrunedGraph(after)) == {"wide": 3}
        most = split.most
        assert split.macs(most) < split.cost.macs and split.params(most) < split.outputs * split.features
        more = most + 1
        assert split.macs(more) >= split.cost.macs or split.params(more) >= split.outputs * split.features

    def test_what_is_between_is_a_group(self) -> None:
        """Channels between the two leave as others do, and the proof holds."""
        graph = analyze(chain("conv"))
        found, after = factored(graph, {"wide": 4})
        firsts = found.firsts["wide"]
        assert any(group.producers == (firsts,) and len(group.units) == 4 for group in after.groups)
        assert_proved(removal(list(after.groups), after, np.random.default_rng(1)))

    @pytest.mark.parametrize("break_", ["another weight", "not the nearest"])
    def test_wrong_ones_are_noticed(self, break_: str) -> None:
        graph = analyze(chain("conv"))
        found, _ = factored(graph, {"wide": 3})
        tensor = next(t for t in found.proto.graph.initializer if t.name == "wide_w_second")
        second = numpy_helper.to_array(tensor).copy()
        if break_ == "another weight":
            name = next(n.input[1] for n in found.proto.graph.node if n.op_type == "Conv")
            tensor = next(t for t in found.proto.graph.initializer if t.name == name)
            second = 1.1 * numpy_helper.to_array(tensor)
        else:
            second[:, 0] *= 1.1  # a product of the same rank
        tensor.CopyFrom(numpy_helper.from_array(second.astype(np.float32), tensor.name))
        with pytest.raises(VerificationError) as caught:
            prove_factored(graph.proto, found, inputs_of(graph))
        assert caught.value.code == "OP501"

    def test_layers_that_cannot_be_two_have_reasons(self) -> None:
        net = Net()
        x = net.conv(net.input((1, 8, 6, 6), "x"), 8, 3, name="grouped", group=2)
        x = net.conv(x, 1, 1, name="narrow")
        net.output(net.op("Conv", x, net.const(np.full((4, 1, 3, 3), np.nan)), name="broken"))
        graph = analyze(net.model())
        found, others = find_split(graph.proto, graph.shapes)
        reasons = {other.node: other.reason for other in others}
        assert not found
        assert reasons["grouped"] == "it has groups of channels"
        assert "single channel" in reasons["narrow"] and "finite" in reasons["broken"]

    @pytest.mark.parametrize("ranks", [{"wide": 99}, {"none": 2}])
    def test_plans_that_do_not_fit_are_refused(self, ranks: dict[str, int]) -> None:
        graph = analyze(chain("conv"))
        with pytest.raises(PlanError) as caught:
            factor(graph.proto, graph.shapes, ranks)
        assert caught.value.code == "OP307"


class TestRegression:
    def test_best_of_its_rank(self) -> None:
        """No other weights of the rank have a smaller error: those of a general optimizer, started there, have not."""
        rng = np.random.default_rng(3)
        mixed = rng.standard_normal((400, 6)) * np.logspace(0, -1.5, 6)
        goal = mixed / np.logspace(0, -1, 6) @ rng.standard_normal((6, 5)) + 0.1 * rng.standard_normal((400, 5)) + 1
        moments = Moments()
        moments.add(mixed[:, None], goal)
        full = moments.solve(np.zeros((1, 5, 7)), 1e-12)
        found = of_rank(full, 2, moments)
        assert np.linalg.matrix_rank(found[0, :, :-1], tol=1e-8) == 2
        centered, targets = mixed - mixed.mean(0), goal - goal.mean(0)
        fitted = centered @ np.linalg.lstsq(centered, targets, rcond=None)[0]
        _, _, directions = np.linalg.svd(fitted, full_matrices=False)
        best = np.square(targets - fitted @ directions[:2].T @ directions[:2]).sum() / 400
        assert moments.error(found) == pytest.approx(best, rel=1e-6)
        u, s, v = np.linalg.svd(full[0, :, :-1])  # the nearest weights aren't the nearest outputs
        by_weight = np.concatenate([(u[:, :2] * s[:2]) @ v[:2], full[0, :, -1:]], axis=1)[None]
        assert moments.error(by_weight) > 1.1 * best

    def test_outputs_that_count_more_are_nearer(self) -> None:
        """Differences are counted behind a normalization: held against the SVD of outputs that are scaled."""
        rng = np.random.default_rng(6)
        x, scale = rng.standard_normal((300, 5)), np.array([10.0, 1.0, 0.1, -3.0])
        moments = Moments()
        moments.add(x[:, None], x @ rng.standard_normal((5, 4)))
        full = moments.solve(np.zeros((1, 4, 6)), 1e-12)
        outputs = (x - x.mean(0)) @ full[0, :, :-1].T * scale

        def left(**how: Any) -> float:
            near = of_rank(full, 2, moments, **how)[0, :, :-1]
            return float(np.square(outputs - (x - x.mean(0)) @ near.T * scale).sum())

        best = np.square(np.linalg.svd(outputs, compute_uv=False)[2:]).sum()
        assert left(scale=scale) == pytest.approx(best, rel=1e-6)
        assert left() > 1.5 * best

    def test_without_an_intercept_outputs_are_not_centered(self) -> None:
        rng = np.random.default_rng(4)
        x = rng.standard_normal((300, 5)) + 2.0
        moments = Moments()
        moments.add(x[:, None], x @ rng.standard_normal((5, 4)), intercept=False)
        full = moments.solve(np.zeros((1, 4, 6)), 1e-12)
        found = of_rank(full, 1, moments)
        outputs = x @ full[0, :, :-1].T
        sizes = np.linalg.svd(outputs, compute_uv=False)
        assert moments.error(found) == pytest.approx(np.square(sizes[1:]).sum() / 300, rel=1e-6)
        assert (found[0, :, -1] == 0).all()

    def test_a_pair_is_repaired_as_one(self) -> None:
        """The error on the samples is that of reduced-rank regression to the original's outputs, by NumPy on them."""
        net = Net()
        net.output(net.op("Gemm", net.input((8, 10), "x"), net.weight(10, 8), net.weight(8), name="wide"))
        model = net.model()
        graph = analyze(model)
        _, after = factored(graph, {"wide": 2})
        mix = RNG.standard_normal((10, 10)) * np.logspace(0, -2, 10)
        given_ = [{"x": (RNG.standard_normal((8, 10)) @ mix).astype(np.float32)} for _ in range(40)]
        proto = rewrite(PrunedGraph(after))
        before = [run_once(model, batch)[model.graph.output[0].name] for batch in given_]

        def error(candidate: ModelProto) -> float:
            now = [run_once(candidate, batch)[model.graph.output[0].name] for batch in given_]
            return float(np.square(np.concatenate(now) - np.concatenate(before)).mean())

        start = error(proto)
        (done,) = recover(PrunedGraph(after), proto, lambda: iter(given_), teacher=graph.proto)
        targets = np.concatenate(before)
        sizes = np.linalg.svd(targets - targets.mean(0), compute_uv=False)
        best = float(np.square(sizes[2:]).sum() / targets.size)
        assert done.node == "wide" and done.after < done.before
        assert best <= error(proto) <= 1.2 * best < start / 1.5
        shapes = [t.dims for t in proto.graph.initializer if t.name.startswith("const")]
        assert [list(s) for s in shapes if 2 in s] == [[10, 2], [2, 8]]


class TestBudget:
    def test_the_least_error_within_the_limit(self) -> None:
        """Held against all combinations."""
        rng = np.random.default_rng(5)
        graph = analyze(_deep())
        layers, _ = find_split(graph.proto, graph.shapes)
        ranks = allowed_ranks(graph, layers, Constraints(round_to=2, max_ratio=0.8))
        curves = [
            Curve(i, tuple(range(layers[i].full)), tuple(Point(layers[i].full - r, error) for r, error in pairs))
            for i, own in ranks.items()
            for pairs in [list(zip(own, np.sort(rng.uniform(0.01, 1, len(own))), strict=True))]
        ]
        errors = {c.group: [0.0, *(p.error for p in c.points)] for c in curves}
        whole = float(cost(PrunedGraph(graph)).macs)

        def total(choice: tuple[int, ...]) -> tuple[float, float]:
            saved = error = 0.0
            for (i, own), k in zip(ranks.items(), choice, strict=True):
                error += errors[i][k]
                saved += layers[i].cost.macs - layers[i].macs(own[k - 1]) if k else 0
            return error, whole - saved

        every = [total(choice) for choice in product(*(range(len(own) + 1) for own in ranks.values()))]
        for share in (0.9, 0.7, 0.5):
            chosen = spend(layers, ranks, curves, {"macs": (whole, share * whole)})
            by_name = {layers[i].layer.node.name: (i, own) for i, own in ranks.items()}
            picked = tuple(
                1 + list(own).index(chosen[name]) if name in chosen else 0 for name, (_, own) in by_name.items()
            )
            error, left = total(picked)
            assert left <= share * whole
            assert error <= 1.0001 * min(e for e, macs in every if macs <= left), "nothing as cheap is better"
        with pytest.raises(PlanError, match="can't bring macs"):
            spend(layers, ranks, curves, {"macs": (whole, 0.01 * whole)})

    def test_without_data_by_what_is_lost_of_the_weights(self) -> None:
        graph = analyze(_deep())
        layers, _ = find_split(graph.proto, graph.shapes)
        ranks = allowed_ranks(graph, layers, Constraints(round_to=2))
        for curve in by_weights(graph.proto, layers, ranks):
            split = layers[curve.group]
            name = split.layer.weight
            weight = next(numpy_helper.to_array(t) for t in graph.proto.graph.initializer if t.name == name)
            sizes = np.linalg.svd(weight.reshape(len(weight), -1), compute_uv=False) ** 2
            for point in curve.points:
                rank = split.full - point.removed
                assert point.error == pytest.approx(sizes[rank:].sum() / sizes.sum(), abs=1e-6)

    def test_constraints_name_layers(self) -> None:
        graph = analyze(_deep())
        layers, _ = find_split(graph.proto, graph.shapes)

        def names(**how: Any) -> set[str]:
            return {layers[i].layer.node.name for i in allowed_ranks(graph, layers, Constraints(**how))}

        assert names() == {"one", "two", "three", "head"}
        assert names(exclude=("two",)) == {"one", "three", "head"} and names(include=("two",)) == {"two"}
        with pytest.raises(PlanError, match="no node's name"):
            names(exclude=("nothing",))


def _deep(rank: int | None = None) -> ModelProto:
    """Return a classifier of three convolutions; if a rank is given, their weights have it, about."""
    net = Net(seed=7)
    x = net.input((4, 3, 12, 12), "image")
    for name in ("one", "two", "three"):
        x = net.op("Relu", net.conv(x, 16, 3, name=name))
    if rank is not None:
        for name in ("two", "three"):
            weight = numpy_helper.to_array(net.tensors[f"{name}_w"]).reshape(16, -1)
            u, s, v = np.linalg.svd(weight, full_matrices=False)
            s[rank:] *= 1e-3
            net.tensors[f"{name}_w"] = numpy_helper.from_array(
                np.ascontiguousarray(((u * s) @ v).reshape(16, 16, 3, 3), dtype=np.float32), f"{name}_w"
            )
    net.output(net.linear(net.op("Flatten", net.op("GlobalAveragePool", x)), 6, name="head"))
    return net.model()


def images(count: int = 8) -> Callable[[], Iterator[dict[str, NDArray[Any]]]]:
    data = np.random.default_rng(2).standard_normal((count, 4, 3, 12, 12)).astype(np.float32)
    return lambda: ({"image": batch} for batch in data)


class TestPlans:
    def test_ranks_where_they_lose_less(self) -> None:
        model = _deep(rank=5)
        plan = op.plan(model, target=HALF, data=images(), axes=("channels", "rank"))
        tried = plan.settings["tried"]
        assert tried[0]["ranks"] == {} and plan.ranks.keys() & {"two", "three"}
        assert min(t["error"] for t in tried) < tried[0]["error"] / 2
        assert plan.after["macs"] <= 0.5 * plan.before["macs"]

    def test_channels_where_nothing_else_is_allowed(self) -> None:
        for axes in ((), ("channels",)):
            assert op.plan(_deep(rank=5), target=HALF, data=images(), axes=axes).ranks == {}

    @pytest.mark.parametrize("data", [None, images()])
    def test_ranks_alone(self, data: Any) -> None:
        plan = op.plan(_deep(rank=5), target=HALF, data=data, axes=("rank",))
        assert plan.ranks and not plan.removed and plan.after["macs"] <= 0.5 * plan.before["macs"]

    def test_written_applied_and_verified(self, tmp_path: Path) -> None:
        model, path = _deep(rank=5), tmp_path / "plan.json"
        at = moved(op.analyze(model), Moves(ranks={"two": 6, "three": 5}))
        plan = op.plan(at, ratio=0.3, axes=("channels",), round_to=2)
        assert plan.removed
        path.write_text(plan.to_json())
        again = PrunePlan.from_json(path.read_bytes())
        assert (
            again.to_json() == plan.to_json()
            and again.digest == plan.digest
            and again.ranks
            and json.loads(path.read_text())["format"] == 4
        )
        small, twice = op.prune(model, plan), op.prune(model, again)
        assert small.proto.SerializeToString(deterministic=True) == twice.proto.SerializeToString(deterministic=True)
        assert [link.what for link in small.links] == ["lower ranks"] and small.links[0].error < 1e-5
        assert model_cost(small.proto, concretize(small.proto)).macs == plan.after["macs"]
        assert op.verify(model, small.proto).proved
        op.repair(small, images())
        found = op.verify(model, small.proto)
        assert found.proved and found.weights is not None and found.weights.passed
        name = next(t.name for t in small.proto.graph.initializer if t.name.endswith("_second"))
        tensor = next(t for t in small.proto.graph.initializer if t.name == name)
        tensor.CopyFrom(numpy_helper.from_array(1.01 * numpy_helper.to_array(tensor), name))
        assert op.verify(model, small.proto).weights.altered == (name,)  # type: ignore[union-attr]

    def test_verified_where_decompositions_have_other_signs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = _deep(rank=5)
        at = moved(op.analyze(model), Moves(ranks={"two": 6}))
        small = op.prune(model, op.plan(at, ratio=0.3, axes=("channels",)))

        def elsewhere(matrix: NDArray[np.float64], rank: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
            left, right = split(matrix, rank)
            return -left, -right

        monkeypatch.setattr(factors, "split", elsewhere)
        found = op.verify(model, small.proto)
        assert found.proved and found.weights is not None and found.weights.passed
        assert set(found.weights.changed.values()) == {("rank",)}
        again = op.prune(model, small.plan)
        assert small.proto.SerializeToString() != again.proto.SerializeToString(), "the signs are others"

    def test_older_plans_are_read(self) -> None:
        document = json.loads(op.plan(_deep(), ratio=0.5).to_json())
        del document["ranks"]
        assert PrunePlan.from_json(json.dumps({**document, "format": 3})).ranks == {}
        with pytest.raises(PlanError):
            PrunePlan.from_json(json.dumps(document))
        for bad in ({"one": 0}, {"one": 1.5}, {"one": True}, [1]):
            with pytest.raises(PlanError):
                PrunePlan.from_json(json.dumps({**document, "ranks": bad}))

    def test_layers_become_one_again_where_two_cost_as_much(self) -> None:
        """With few inputs and outputs left, the channels between would be the most expensive part."""
        analysis = op.analyze(_deep())
        at = moved(analysis, Moves(ranks={"two": 12, "three": 12}))
        narrow = np.zeros(at.graph.unit_count, dtype=bool)
        for group in at.graph.groups:
            if "one" in group.producers or "two" in group.producers:
                narrow[group.units[:12]] = True
        kept = PrunedGraph(at.graph, narrow)
        assert at.cheaper(kept).ranks == {}
        assert at.cheaper(PrunedGraph(at.graph)).ranks == {"two": 12, "three": 12}

    @pytest.mark.parametrize(
        ("code", "options"),
        [
            ("OP302", {"ratio": 0.5}),
            ("OP302", {"target": op.Target("memory", 0.5)}),
            ("OP312", {"target": HALF, "axes": ("channels", "rank")}),
            ("OP312", {"target": HALF, "data": images(1)}),
            ("OP301", {"target": op.Target("macs", 0.01)}),
            ("OP302", {"target": HALF, "data": images(), "axes": ("channels", "rank"), "allocation": "uniform"}),
            ("OP302", {"target": op.Target.parse("latency=8ms"), "data": images()}),
            ("OP302", {"target": op.Target.parse("latency=50%"), "data": images()}),
            ("OP302", {"target": op.Target.parse("latency=8ms"), "data": images(), "axes": ("channels", "rank")}),
        ],
    )
    def test_what_cannot_be_chosen_is_refused(self, code: str, options: dict[str, Any]) -> None:
        with pytest.raises(OnnxPruneError) as caught:
            op.plan(_deep(), **{"axes": ("rank",), **options})
        assert caught.value.code == code

    def test_with_a_resolution(self) -> None:
        model = _deep(rank=5)
        at = moved(op.analyze(model), Moves({"image": (9, 9)}, {"two": 5}))
        small = op.prune(at, op.plan(at, ratio=0.3, axes=("channels",)))
        assert [link.what for link in small.links] == ["resizing", "lower ranks"]
        assert small.plan.moves == Moves({"image": (9, 9)}, {"two": 5})
        assert op.verify(model, small.proto).proved


def examine(sample: Sample, seed: int) -> Counter[str]:
    """Lower ranks of a random model, prune it at random, and hold each against its oracle."""
    seen: Counter[str] = Counter(models=1)
    rng, graph = np.random.default_rng(seed), analyze(sample.model, sample.shapes)
    layers, _ = find_split(graph.proto, graph.shapes)
    ranks = {s.layer.node.name: int(rng.integers(1, s.most + 1)) for s in layers if rng.random() < 0.7}
    if not ranks:
        return seen
    seen["lowered"] += 1
    found, after = factored(graph, ranks)
    inputs = inputs_of(graph)
    prove_factored(graph.proto, found, inputs)
    assert_proved(removal(list(after.groups), after, rng), tolerance=1e-4)
    name = next(iter(ranks))
    second = next(node.input[1] for node in found.proto.graph.node if node.name == name)
    tensor = next(t for t in found.proto.graph.initializer if t.name == second)
    tensor.CopyFrom(numpy_helper.from_array(1.5 * numpy_helper.to_array(tensor), second))
    seen["controls"] += 1
    try:
        prove_factored(graph.proto, found, inputs)
    except VerificationError:
        seen["caught"] += 1
    return seen


@pytest.mark.slow
def test_random_graphs() -> None:
    total: Counter[str] = Counter()

    @settings(max_examples=300, suppress_health_check=list(HealthCheck), deadline=None)
    @given(samples(), st.integers(0, 2**16))
    def inner(sample: Sample, seed: int) -> None:
        total.update(examine(sample, seed))

    inner()
    assert total["lowered"] > 0.5 * total["models"], total
    assert total["caught"] == total["controls"], total
