"""Limits relative to the user's file, absolute ones and several at once. Times are made up: none decides a test."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

import onnxprune as op
from onnxprune.benchmarking.session import TimedSession
from onnxprune.cost.cost import cost
from onnxprune.evaluation.intervals import Estimate
from onnxprune.latency import Options, plan as plan_module
from onnxprune.latency.model import NetworkModel
from onnxprune.latency.probe import Probe
from onnxprune.planning.budget import choose
from onnxprune.planning.plan import apply_plan
from onnxprune.settings.planning import Constraints, Target
from onnxprune.trace.pruned_graph import PrunedGraph
from onnxprune.workflow.analysis import analyze
from onnxprune.workflow.planning import latency_options
from tests.cli.support import invoke, refused
from tests.latency.networks import chain

ORIGINAL = 0.01  # seconds that the file takes


def network(*, as_inputs: bool = True, unread: int = 0) -> ModelProto:
    """Return a chain of convolutions, its weights also inputs of the graph, with a weight that nothing reads."""
    proto = ModelProto()
    proto.CopyFrom(chain(layers=4, width=32).proto)
    if as_inputs:
        proto.ir_version = 4
        for tensor in proto.graph.initializer:
            value = proto.graph.input.add(name=tensor.name)
            value.type.tensor_type.elem_type = tensor.data_type
            for size in tensor.dims:
                value.type.tensor_type.shape.dim.add(dim_value=size)
    if unread:
        proto.graph.initializer.append(numpy_helper.from_array(np.zeros(unread, np.float32), "unread"))
    return proto


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], list[TimedSession]]:
    """Replace measurements: cleaning takes a share of the file's time, pruning a share of the MACs of that."""

    def replace(cleaned: float) -> list[TimedSession]:
        originals: list[TimedSession] = []
        monkeypatch.setattr(plan_module, "_seconds", lambda opened: ORIGINAL)

        def compare(self: Any, session: TimedSession) -> Estimate:
            originals.append(self.original)
            self.seconds_of_original = ORIGINAL
            return Estimate(cleaned, cleaned, cleaned)

        def measure(self: Any, config: np.ndarray) -> Estimate:
            kept = PrunedGraph(self.graph, plan_module.removal(self.candidates, config, self.fixed))
            share = cleaned * cost(kept).macs / cost(PrunedGraph(self.graph)).macs
            self.seconds_of_original = ORIGINAL
            return Estimate(share, share, share)

        def layers(self: Any, config: np.ndarray) -> np.ndarray:
            return np.array([1e-6 + 1e-11 * w.macs(self._sizes, config) for w in self._works])

        def fit(self: Any) -> NetworkModel:
            return NetworkModel(self.works, self.sizes, self.configs, np.stack(self.seconds), self.counts)

        monkeypatch.setattr(plan_module._Planner, "_compare", compare)
        monkeypatch.setattr(plan_module._Planner, "_measure", measure)
        monkeypatch.setattr(plan_module._Planner, "_fit", fit)
        monkeypatch.setattr(Probe, "__call__", layers)
        return originals

    return replace


def macs(plan: op.PrunePlan) -> float:
    return plan.after["macs"] / plan.before["macs"]


class TestLatency:
    def test_cleaning_alone_is_enough(
        self, tmp_path: Path, made_up: Callable[[float], list[TimedSession]], caplog: pytest.LogCaptureFixture
    ) -> None:
        path = tmp_path / "model.onnx"
        path.write_bytes(network().SerializeToString())
        originals, measured = made_up(0.3), list[str]()
        inputs = [{"x": np.ones((2, 3, 16, 16), np.float32)}] * 2
        data: Any = lambda: [dict(zip([network().graph.input[0].name], b.values(), strict=True)) for b in inputs]  # noqa: E731
        with caplog.at_level(logging.INFO, "onnxprune"):
            plan = op.plan(
                str(path),
                target=Target("latency", 0.7),
                latency=Options(),
                data=data,
                axes=("channels",),
                progress=lambda phase, *_: measured.append(phase) if "sensitivity" in phase else None,
            )
        assert not plan.removed and plan.after["macs"] == plan.before["macs"]
        assert originals[0].session.get_overridable_initializers(), "what is compared with is the file as it is"
        assert plan.settings["latency"]["cleaned_share"]["value"] == 0.3 and plan.settings["latency"]["tries"] == []
        assert "cleaning alone makes the model 3.33 times as fast" in caplog.text
        assert not measured, "no sensitivity is measured for a limit that cleaning meets"
        assert "latency=70% holds without removing channels" in caplog.text

    @pytest.mark.parametrize("source", ["bytes", "proto", "traced"])
    def test_models_from_memory(self, source: str, made_up: Callable[[float], list[TimedSession]]) -> None:
        """What was given is compared with, except for a traced model, which doesn't keep it."""
        originals, proto = made_up(0.3), network()
        given: Any = {"bytes": proto.SerializeToString(), "proto": proto}.get(source) or analyze(proto)
        plan = op.plan(given, target=Target("latency", 0.7), latency=Options(), round_to=4)
        if source == "traced":
            assert not originals and plan.settings["latency"]["cleaned_share"] is None
        else:
            assert originals[0].session.get_overridable_initializers() and not plan.removed

    def test_the_rest_is_pruned(self, tmp_path: Path, made_up: Callable[[float], list[TimedSession]]) -> None:
        path = tmp_path / "model.onnx"
        path.write_bytes(network().SerializeToString())
        made_up(0.8)
        plan = op.plan(str(path), target=Target("latency", 0.4), latency=Options(), round_to=2)
        assert 0.9 * 0.5 < macs(plan) <= 0.5, "0.8 of the file's time, and half of that"
        assert plan.settings["latency"]["original_seconds"] == ORIGINAL

    @pytest.mark.parametrize(("limit", "share"), [("latency=6ms", 0.6), ("speedup=2x", 0.5), ("latency=60%", 0.6)])
    def test_ways_to_limit_it(
        self, limit: str, share: float, tmp_path: Path, made_up: Callable[[float], list[TimedSession]]
    ) -> None:
        made_up(1.0)
        plan = op.plan(network(as_inputs=False), target=Target.parse(limit), latency=Options(), round_to=2)
        assert 0.9 * share < macs(plan) <= share

    def test_the_strictest_of_several(self, made_up: Callable[[float], list[TimedSession]]) -> None:
        made_up(1.0)
        limits = Target.parse("latency=8ms"), Target.parse("speedup=2x"), Target("latency", 0.9)
        plan = op.plan(network(as_inputs=False), target=limits, latency=Options(), round_to=2)
        assert 0.45 < macs(plan) <= 0.5

    def test_out_of_reach_says_the_limit(self, made_up: Callable[[float], list[TimedSession]]) -> None:
        made_up(1.0)
        with pytest.raises(op.PlanError, match=r"can't be brought to 0\.01ms on cpu") as caught:
            op.plan(network(as_inputs=False), target=Target.parse("latency=10us"), latency=Options())
        assert caught.value.code == "OP301" and " ms was reached" in str(caught.value.hint)

    @pytest.mark.parametrize(("latency", "params"), [(0.9, 0.4), (0.4, 0.9), (0.5, 0.5)])
    def test_with_a_counted_cost(
        self, latency: float, params: float, made_up: Callable[[float], list[TimedSession]]
    ) -> None:
        made_up(1.0)
        model = analyze(network(as_inputs=False))
        limits = Target("latency", latency), Target("params", params)
        plan = op.plan(model, target=limits, latency=Options(), round_to=2)
        left = cost(apply_plan(model.graph, plan))
        assert left.params <= params * plan.before["params"] and macs(plan) <= latency
        assert macs(plan) > 0.8 * latency or left.params > 0.8 * params * plan.before["params"], "not more than needed"

    def test_a_file_that_does_not_run(
        self, tmp_path: Path, made_up: Callable[[float], list[TimedSession]], caplog: pytest.LogCaptureFixture
    ) -> None:
        made_up(1.0)
        model = analyze(network())
        path = tmp_path / "gone.onnx"
        path.write_bytes(b"nothing")
        graph = model.graph
        scores = [np.arange(len(g.units)) + 1.0 for g in graph.groups]
        found = plan_module.plan_for_latency(
            graph, scores, Constraints(round_to=4), Target("latency", 0.6), Options(), original=path
        )
        assert found.cleaned is None and "the file can't be timed" in caplog.text.replace("as the", "the")


def test_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXPRUNE_CACHE", "/somewhere")
    assert latency_options(op.LatencySettings(), 0).cache == Path("/somewhere")
    assert latency_options(op.LatencySettings(cache=False), 0).cache is None


class TestCounted:
    @pytest.mark.parametrize("allocation", ["uniform", "global", "reconstruction"])
    def test_several(self, allocation: Any) -> None:
        """Each limit holds; one of them would not hold with the other alone."""
        model = analyze(network(as_inputs=False))
        rng = np.random.default_rng(0)
        data = lambda: [{"x": rng.standard_normal((2, 3, 16, 16)).astype(np.float32)}]  # noqa: E731
        name = model.graph.proto.graph.input[0].name
        inputs = [{name: batch["x"]} for batch in data()] * 2
        own: dict[str, Any] = {"allocation": allocation, "round_to": 2}
        if allocation == "reconstruction":
            own["data"] = lambda: inputs
        limits = Target("macs", 0.6), Target("memory", 0.6)
        plan = op.plan(model, target=limits, **own)
        assert all(plan.after[t.quantity] <= t.value * plan.before[t.quantity] for t in limits)
        alone = op.plan(model, target=limits[0], **own)
        assert alone.after["memory"] > 0.6 * alone.before["memory"]

    @pytest.mark.parametrize(
        ("text", "quantity", "most"),
        [("macs=2M", "macs", 2e6), ("params=10k", "params", 1e4), ("size=40KiB", "size", 40 * 1024)],
    )
    def test_absolute(self, text: str, quantity: str, most: float) -> None:
        graph = analyze(network(as_inputs=False)).graph
        scores = [np.ones(len(group.units)) for group in graph.groups]
        removed = choose(graph, scores, Constraints(round_to=1), target=Target.parse(text))
        left = cost(PrunedGraph(graph, removed)).totals()[quantity]
        assert 0.9 * most < left <= most
        nothing = choose(graph, scores, Constraints(), target=Target(quantity, 1e12, True))  # type: ignore[arg-type]
        assert not nothing.any()

    def test_out_of_reach_is_absolute_too(self) -> None:
        with pytest.raises(op.PlanError, match="size can't be brought to 1kB") as caught:
            op.plan(network(as_inputs=False), target=Target.parse("size=1kB"))
        assert caught.value.hint is not None and "kB is the least" in caught.value.hint

    def test_weights_that_nothing_reads(self, caplog: pytest.LogCaptureFixture) -> None:
        """Cleaning removes them. A budget that it meets needs no pruning; without them the same budget does."""
        whole = sum(int(np.prod(t.dims)) for t in network(as_inputs=False).graph.initializer)
        padded = network(as_inputs=False, unread=whole)
        with caplog.at_level(logging.INFO, "onnxprune"):
            plan = op.plan(padded, target=Target("size", 0.6))
        assert not plan.removed and plan.before["params"] == 2 * whole and plan.after["params"] == whole
        assert "cleaning alone brings size to 50.0% of the file's" in caplog.text
        assert "size=60% holds without removing channels" in caplog.text
        assert op.plan(network(as_inputs=False), target=Target("size", 0.6)).removed
        half = op.plan(padded, target=Target("size", 0.25), round_to=1)
        assert 0.22 * 4 < half.after["size"] / whole <= 0.25 * 8, "a quarter of the file"


class TestCommand:
    @pytest.fixture
    def model(self, tmp_path: Path) -> Path:
        path = tmp_path / "model.onnx"
        path.write_bytes(network(unread=100_000).SerializeToString())
        return path

    def test_several(self, model: Path, tmp_path: Path) -> None:
        path = tmp_path / "plan.json"
        invoke("plan", model, "-o", path, "--target", "macs=60%", "--target", "size=60kB", "--round-to", "4")
        plan = json.loads(path.read_text())
        assert plan["cost"]["after"]["macs"] <= 0.6 * plan["cost"]["before"]["macs"]
        assert plan["cost"]["after"]["size"] <= 60_000
        assert [t["absolute"] for t in plan["settings"]["target"]] == [False, True]
        result = invoke("prune", model, "-o", tmp_path / "small.onnx", "--plan", path)
        assert "proved" in result.stdout

    def test_before_is_the_file(self, model: Path, tmp_path: Path) -> None:
        result = invoke("prune", model, "-o", tmp_path / "same.onnx", "--target", "size=60%", "--format", "json")
        found = json.loads(result.stdout)
        assert found["cost"]["before"]["size"] - found["cost"]["after"]["size"] == 400_000
        assert all(not group["removed"] for group in found["groups"])
        assert "holds without removing channels" in result.stderr

    @pytest.mark.parametrize(
        ("target", "hint"),
        [
            ("macs=50", "did you mean 50%? An absolute limit has a unit, such as macs=100M"),
            ("macs=1000000", "An absolute limit has a unit, such as macs=100M"),
            ("latency=8", "latency=8ms"),
            ("size=2M", "size=2MB"),
            ("speedup=50%", "speedup=1.5x"),
            ("latancy=8ms", "did you mean latency?"),
            ("macs", "macs=50%"),
        ],
    )
    def test_mistakes(self, target: str, hint: str, model: Path, tmp_path: Path) -> None:
        assert hint in refused("OP303", "prune", model, "-o", tmp_path / "o.onnx", "--target", target)

    def test_cache_needs_a_latency(self, model: Path, tmp_path: Path) -> None:
        args = "prune", model, "-o", tmp_path / "o.onnx", "--target", "macs=50%", "--no-cache"
        assert "--no-cache" in refused("OP302", *args)


@pytest.mark.parametrize(
    ("text", "quantity", "value", "absolute"),
    [
        ("macs=50%", "macs", 0.5, False),
        ("params=.25", "params", 0.25, False),
        ("macs=100M", "macs", 1e8, True),
        ("params=1.5k", "params", 1500, True),
        ("size=2MB", "size", 2e6, True),
        ("size=2 MiB", "size", 2 * 1024 * 1024, True),
        ("memory=512KB", "memory", 512_000, True),
        ("size=300B", "size", 300, True),
        ("latency=8ms", "latency", 0.008, True),
        ("latency=250us", "latency", 250e-6, True),
        ("latency=1.5s", "latency", 1.5, True),
        ("speedup=1.25x", "latency", 0.8, False),
        ("speedup=4", "latency", 0.25, False),
    ],
)
def test_parsing(text: str, quantity: str, value: float, absolute: bool) -> None:
    found = Target.parse(text)
    assert (found.quantity, found.absolute) == (quantity, absolute) and found.value == pytest.approx(value)
    again = Target.parse(str(found))
    assert again.value == pytest.approx(value) and (again.quantity, again.absolute) == (quantity, absolute)
