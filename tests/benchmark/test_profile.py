"""Profiles: read from events written by hand, and taken of real networks, whose kernels find their layers."""

from __future__ import annotations

from typing import Any

import pytest

from onnxprune.benchmarking.layer_changes import compare_layers
from onnxprune.benchmarking.layers import TimedLayer, layers, partition, tag, tag_of
from onnxprune.benchmarking.profile import Kernel, Profile, profile, read
from onnxprune.benchmarking.settings import SessionSettings
from onnxprune.normalize import normalize
from onnxprune.runtime.provider import Provider
from onnxprune.shapes import concretize, generate_inputs
from tests.toolbox import Net

CPU = SessionSettings(Provider("CPUExecutionProvider"), threads=1)


def event(name: str, start: float, duration: float, *, provider: str = "CPUExecutionProvider", op: str = "Conv") -> Any:
    args = {"op_name": op, "provider": provider}
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": start, "dur": duration, "args": args}


def a_run(start: float, duration: float) -> Any:
    return {"cat": "Session", "name": "model_run", "ts": start, "dur": duration, "args": {}}


class TestRead:
    def test_times_are_of_one_run(self) -> None:
        events = [
            e for s in (0, 100, 200, 300, 400) for e in (a_run(s, 50), event("a", s + 1, 10), event("b", s + 20, 30))
        ]
        found = read(events, {})
        assert {k.name: k.seconds for k in found.kernels} == pytest.approx({"a": 10e-6, "b": 30e-6})
        assert found.total == pytest.approx(50e-6)

    def test_nodes_of_subgraphs_count_once(self) -> None:
        events = [a_run(0, 100), event("loop", 1, 50, op="Loop"), event("inner", 2, 5), event("next", 60, 7)]
        assert [k.name for k in read(events, {}).kernels] == ["loop", "next"]

    def test_a_node_that_runs_several_times(self) -> None:
        events = [a_run(0, 100), event("a", 1, 10), event("a", 20, 15)]
        assert read(events, {}).kernels[0].seconds == pytest.approx(25e-6)

    def test_what_comes_before_the_first_run_is_no_run(self) -> None:
        assert read([event("a", 0, 10)], {}).kernels == ()

    def test_placement(self) -> None:
        events = [a_run(0, 100), event("a", 1, 30), event("b", 40, 10, provider="CUDAExecutionProvider")]
        cpu, cuda = read(events, {}).placement()
        assert (cpu.provider, cpu.nodes, cpu.time) == ("CPUExecutionProvider", 0.5, pytest.approx(0.75))
        assert (cuda.nodes, cuda.time) == (0.5, pytest.approx(0.25))


class TestLayers:
    def test_what_follows_belongs_to_the_latest_contraction(self) -> None:
        net = Net()
        x = net.op("Relu", net.input((1, 8, 4, 4)))
        first = net.op("Relu", net.conv(x, 8, 3))
        second = net.conv(first, 8, 3)
        net.output(net.op("Add", first, second))
        assert partition(net.model()) == [0, 1, 1, 2, 2]

    def test_figures(self) -> None:
        net = Net()
        net.output(net.conv(net.input((1, 8, 4, 4)), 16, 3, name="c"))
        proto = normalize(net.model())
        start, conv = layers(proto, concretize(proto))
        assert (start.macs, start.channels) == (0, ()) and conv.name == "c" and conv.channels == (16, 8, 3, 3)
        assert conv.macs == 16 * 16 * 8 * 9
        assert conv.traffic == 4 * (8 * 16 + 16 * 8 * 9 + 16 + 16 * 16)

    def test_unnamed_nodes_of_a_layer_are_told_apart(self) -> None:
        net = Net()
        net.output(net.op("Tanh", net.op("Relu", net.conv(net.input((1, 8, 4, 4)), 8, 3))))
        proto = normalize(net.model())
        for node in proto.graph.node:
            node.ClearField("name")
        feeds = generate_inputs(proto, concretize(proto).inputs)
        assert {k.op for k in profile(proto, feeds, CPU, seconds=0.0).kernels} >= {"Tanh"}  # ONNX Runtime loads it
        names = [node.name for node in tag(proto).graph.node]
        assert len(set(names)) == 3 and [tag_of([name]) for name in names] == [1, 1, 1]

    def test_tags(self) -> None:
        assert tag_of(["layer3|a_nchwc", "layer12|b"]) == 12
        assert tag_of(["a layered cake"]) is None

    def test_every_kernel_finds_its_layer(self) -> None:
        """Fused, renamed, moved to another layout, inserted: whatever ONNX Runtime does, the layer is known."""
        net = Net()
        x = net.input((1, 3, 32, 32))
        a = net.op("Relu", net.conv(x, 32, 3))
        b = net.op("Add", net.op("Relu", net.conv(a, 32, 3)), a)
        c = net.op("Mul", net.op("Sigmoid", net.conv(b, 32)), b)
        flat = net.op("Flatten", net.op("GlobalAveragePool", c))
        net.output(net.op("Relu", net.linear(flat, 10)))
        proto = normalize(net.model())
        found = profile(proto, generate_inputs(proto, concretize(proto).inputs), CPU, seconds=0.02)
        assert {k.layer for k in found.kernels} == {1, 2, 3, 4}
        assert [k.layer for k in found.kernels if k.op == "Conv"] == [1, 2, 3]
        assert not any("layer" in k.name for k in found.kernels)
        assert 0 < sum(k.seconds for k in found.kernels) <= found.total * 1.1

    def test_subgraphs_keep_what_they_capture(self) -> None:
        """A tensor that a body of If reads must keep its name, or the tagged model wouldn't load."""
        from onnx import TensorProto, helper

        def body(name: str, op: str) -> Any:
            node = helper.make_node(op, ["captured"], [f"{name}_out"], name=f"{name}_node")
            out = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, [1, 4])
            return helper.make_graph([node], name, [], [out])

        nodes = [
            helper.make_node("Relu", ["x"], ["captured"], name="relu"),
            helper.make_node(
                "If", ["flag"], ["y"], then_branch=body("a", "Neg"), else_branch=body("b", "Abs"), name="if"
            ),
        ]
        inputs = [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4]),
            helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
        ]
        output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])
        graph = helper.make_graph(nodes, "g", inputs, [output])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        assert tag(model).graph.node[0].output[0] == "captured"
        found = profile(model, generate_inputs(model, {"x": (1, 4), "flag": ()}), CPU, seconds=0.01)
        assert {k.op for k in found.kernels} == {"Relu", "If"}


class TestPaid:
    """The reason given for a layer that stayed slow."""

    def layer(self, out: int, channels: int, *, macs: int | None = None, traffic: int = 1000) -> list[TimedLayer]:
        start = TimedLayer("start", "", 0, 0, ())
        shape = out, channels, 3, 3
        return [start, TimedLayer("c", "Conv", macs or out * channels * 9000, traffic, shape)]

    def kernels(self, seconds: float, *extra: tuple[str, float], domain: str = "com.microsoft.nchwc") -> Profile:
        own = Kernel("c", "Conv", domain, "CPU", 1, seconds)
        return Profile((own, *(Kernel(op, op, "", "CPU", 1, t) for op, t in extra)), seconds)

    def verdict(self, before: Any, after: Any) -> tuple[bool | None, str]:
        (found,) = (c for c in compare_layers(before, after) if c.name == "c")
        return found.paid, found.reason

    def test_half_the_work_in_half_the_time(self) -> None:
        before = self.layer(64, 64), self.kernels(1e-3)
        assert self.verdict(before, (self.layer(32, 64), self.kernels(0.5e-3))) == (True, "")

    @pytest.mark.parametrize(("seconds", "paid"), [(0.24e-3, True), (0.39e-3, True), (0.7e-3, False), (1.1e-3, False)])
    def test_a_tenth_of_the_work(self, seconds: float, paid: bool) -> None:
        """A layer that is four times as fast paid off, whatever the share of work that is left."""
        before = self.layer(64, 64), self.kernels(1e-3)
        assert self.verdict(before, (self.layer(8, 64, macs=3_700_000), self.kernels(seconds)))[0] is paid

    def test_a_layer_that_was_left_alone(self) -> None:
        side = self.layer(64, 64), self.kernels(1e-3)
        assert self.verdict(side, side) == (None, "")

    @pytest.mark.parametrize(
        ("layer", "kernels", "reason"),
        [
            ((32, 64), {"extra": [("ReorderOutput", 0.4e-3)]}, "layout conversion"),
            ((32, 64), {"domain": ""}, "blocked layout"),
            ((4, 64), {}, "too few channels"),
            ((36, 64), {}, "whole vectors"),
            ((32, 64), {}, "less efficiently"),
        ],
    )
    def test_reasons(self, layer: tuple[int, int], kernels: dict[str, Any], reason: str) -> None:
        before = self.layer(64, 64), self.kernels(1e-3)
        options = dict(kernels)
        after = self.layer(*layer, traffic=100), self.kernels(0.9e-3, *options.pop("extra", ()), **options)
        paid, found = self.verdict(before, after)
        assert paid is False and reason in found

    def test_a_depthwise_layer_has_one_input_channel_by_design(self) -> None:
        before = self.layer(64, 1), self.kernels(1e-3)
        assert "few channels" not in self.verdict(before, (self.layer(32, 1), self.kernels(0.9e-3)))[1]

    def test_memory_bound(self) -> None:
        """One layer shows what the machine computes in a second, another what it moves."""
        compute, move = (
            TimedLayer("a", "Conv", 10**9, 10**3, (64, 64)),
            TimedLayer("b", "Conv", 10**3, 10**8, (64, 64)),
        )
        start = TimedLayer("start", "", 0, 0, ())
        small = TimedLayer("b", "Conv", 500, 10**8, (32, 64))

        def took(seconds: float) -> Profile:
            return Profile((Kernel("a", "Conv", "", "", 1, 1e-3), Kernel("b", "Conv", "", "", 2, seconds)), 2e-3)

        found = compare_layers(([start, compute, move], took(1e-3)), ([start, compute, small], took(0.95e-3)))
        assert "memory-bound" in next(c for c in found if c.name == "b").reason
