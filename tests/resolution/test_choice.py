"""Plans with a resolution: named, or chosen by measurement."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import onnxprune as op
from onnxprune.errors import OnnxPruneError, PlanError
from onnxprune.planning.plan import Moves, PrunePlan
from onnxprune.sensitivity import OutputError, PredictionError, judge_of
from onnxprune.settings import PlanSettings
from onnxprune.workflow.axes import Points
from onnxprune.workflow.resolution import ladder_of
from tests.resolution.support import classifier, rough, smooth
from tests.toolbox import Net

HALF = op.Target("macs", 0.5)


class TestChoice:
    def test_smaller_images_where_they_lose_less(self) -> None:
        model = classifier()
        plan = op.plan(model, target=HALF, data=smooth())
        tried = plan.settings["tried"]
        errors = [trial["error"] for trial in tried]
        assert tried[0]["resolution"] == {}
        assert plan.resolution
        assert {"image": list(plan.resolution["image"])} == tried[int(np.argmin(errors))]["resolution"]
        assert min(errors) < errors[0] / 2
        assert plan.after["macs"] <= 0.5 * plan.before["macs"]
        small = op.prune(model, plan)
        assert small.links and small.links[0].error < 1e-4
        assert op.plan(model, target=HALF, data=smooth(), resolution="auto").resolution == plan.resolution

    def test_an_interrupt_takes_the_best_so_far(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Without a file from which another run can go on; in the first trial there is nothing to take."""
        model, whole = classifier(), op.plan(classifier(), target=HALF, data=smooth())
        tried, attempt = [], Points.attempt

        def interrupted(points: Points, moves: Moves) -> float:
            tried.append(moves)
            if len(tried) == after:
                raise KeyboardInterrupt
            return attempt(points, moves)

        monkeypatch.setattr(Points, "attempt", interrupted)
        after = 3
        plan = op.plan(model, target=HALF, data=smooth())
        assert plan.settings["tried"] == whole.settings["tried"][:2]
        assert "the best so far is taken" in caplog.text
        assert op.prune(model, plan).verification is not None
        for after in (1, 3):
            tried.clear()
            given = {} if after == 1 else {"checkpoint": tmp_path / "kept.npz"}
            with pytest.raises(KeyboardInterrupt):
                op.prune_model(model, target=HALF, data=smooth(), **given)

    def test_sizes_are_tried_that_strides_divide(self) -> None:
        """Of a network whose strides are 16 in all: the next multiple of 8 above what meets the target by itself."""
        net = Net()
        x = net.input((4, 3, 96, 96), "image")
        for _ in range(4):
            x = net.op("Relu", net.conv(x, 8, kernel=3, strides=[2, 2]))
        net.output(net.linear(net.op("Flatten", net.op("GlobalAveragePool", x)), 6))
        ladder = ladder_of(op.analyze(net.model()), PlanSettings(target=op.Target("macs", 0.4)))
        assert ladder.fits == {"image": (60, 60)}
        assert ladder.joint == ({"image": (64, 64)}, {"image": (80, 80)})
        ladder = ladder_of(op.analyze(net.model()), PlanSettings(target=op.Target("macs", 0.33)))
        assert ladder.fits == {"image": (54, 54)}
        assert [*ladder.joint[0].values()] == [(56, 56)]

    def test_channels_where_they_lose_less(self) -> None:
        plan = op.plan(classifier(doubled=True), target=HALF, data=rough(), round_to=1)
        assert plan.resolution == {} and plan.removed
        assert len(plan.settings["tried"]) >= 1

    def test_the_error_is_that_of_inputs_held_back(self) -> None:
        """Judged by hand: the same plan repaired on the other batches, and run on every fourth."""
        model = classifier()
        plan = op.plan(model, target=HALF, data=smooth())
        pruned = op.prune(model, plan)
        batches = list(smooth()())
        if plan.removed:
            op.repair(pruned, lambda: iter([b for i, b in enumerate(batches) if i % 4]))
        held = batches[::4]

        def outputs(proto: onnx.ModelProto) -> NDArray[Any]:
            import onnxruntime

            session = onnxruntime.InferenceSession(proto.SerializeToString())
            return np.concatenate([session.run(None, batch)[0] for batch in held]).astype(np.float64)

        def log_softmax(x: NDArray[Any]) -> NDArray[Any]:
            return np.asarray(x - np.log(np.exp(x).sum(1, keepdims=True)))

        before, after = log_softmax(outputs(model)), outputs(pruned.proto)
        errors = [(np.exp(before) * (before - log_softmax(after / t))).sum(1).mean() for t in np.linspace(0.5, 2, 301)]
        assert min(errors) == pytest.approx(min(t["error"] for t in plan.settings["tried"]), rel=0.05)

    def test_how_scores_are_scaled_does_not_count(self) -> None:
        model, other = classifier(), classifier()
        weight = next(t for t in other.graph.initializer if t.name == "head_w")
        weight.CopyFrom(onnx.numpy_helper.from_array(3 * onnx.numpy_helper.to_array(weight), "head_w"))
        judge = judge_of(model, smooth())
        assert isinstance(judge, PredictionError)
        assert judge(model) == pytest.approx(0, abs=1e-9)
        assert judge(other) == pytest.approx(0, abs=1e-3)
        weight.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(weight), "head_w"))
        assert judge(other) > 0.01

    def test_outputs_that_are_no_classes_are_judged_by_their_values(self) -> None:
        net = Net()
        net.output(net.op("Tanh", net.conv(net.input((4, 3, 32, 32), "image"), 2)))
        judge = judge_of(net.model(), smooth())
        assert isinstance(judge, OutputError)
        assert judge(net.model()) == 0

    def test_channels_alone_if_so_said(self) -> None:
        plan = op.plan(classifier(), target=HALF, data=smooth(), axes=("channels",))
        assert plan.resolution == {} and plan.removed and "tried" not in plan.settings

    @pytest.mark.parametrize(
        ("code", "options"),
        [
            ("OP312", {"target": HALF}),
            ("OP312", {"target": HALF, "data": "random"}),
            ("OP312", {"target": HALF, "data": smooth(1)}),
            ("OP302", {"target": op.Target("params", 0.5), "data": smooth()}),
            ("OP302", {"target": (HALF, op.Target("size", 0.5)), "data": smooth()}),
            ("OP302", {"ratio": 0.5, "data": smooth()}),
            ("OP302", {"target": HALF, "data": smooth(), "allocation": "uniform"}),
        ],
    )
    def test_nothing_to_choose_by(self, code: str, options: dict[str, Any]) -> None:
        with pytest.raises(OnnxPruneError, match=code):
            op.plan(classifier(), resolution="auto", **options)
        assert op.plan(classifier(), round_to=1, **options).resolution == {}

    def test_nothing_is_measured_if_the_target_holds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("onnxprune.workflow.planning.sensitivities", None)
        plan = op.plan(classifier(), target=op.Target("macs", 1.0), data=smooth())
        assert not plan.removed and not plan.resolution

    def test_small_images_only_if_asked_for(self) -> None:
        model, data = classifier(size=16), smooth(size=16)
        assert op.plan(model, target=HALF, data=data).resolution == {}
        asked = op.plan(model, target=HALF, data=data, resolution="auto")
        assert len(asked.settings["tried"]) > 1

    def test_what_pins_the_size(self) -> None:
        net = Net()
        net.output(net.op("Relu", net.conv(net.op("Relu", net.conv(net.input((4, 3, 32, 32), "image"), 8)), 8)))
        assert op.plan(net.model(), target=HALF, data=smooth(), round_to=1).resolution == {}
        with pytest.raises(PlanError, match=r"OP319.*\n.*output"):
            op.plan(net.model(), target=HALF, data=smooth(), resolution="auto")


class TestResolutionAlone:
    def test_the_largest_that_fits(self) -> None:
        plan = op.plan(classifier(), target=HALF, axes=("resolution",))
        assert plan.resolution == {"image": (20, 20)} and not plan.removed
        assert plan.after["macs"] <= 0.5 * plan.before["macs"]
        larger = op.plan(classifier(), resolution=22)
        assert larger.after["macs"] > 0.5 * larger.before["macs"]

    def test_nothing_to_do(self) -> None:
        assert op.plan(classifier(), target=op.Target("macs", 1.0), axes=("resolution",)).resolution == {}

    @pytest.mark.parametrize(
        ("code", "options"),
        [
            ("OP301", {"target": op.Target("macs", 0.001)}),
            ("OP301", {"target": HALF, "resolution": 28}),
            ("OP302", {"ratio": 0.5}),
            ("OP302", {"target": op.Target("params", 0.5)}),
            ("OP302", {"target": op.Target("latency", 0.5)}),
            ("OP602", {}),
        ],
    )
    def test_refused(self, code: str, options: dict[str, Any]) -> None:
        with pytest.raises(OnnxPruneError, match=code):
            op.plan(classifier(), axes=("resolution",), **options)


def test_a_named_size_leaves_the_rest_to_channels() -> None:
    model = classifier()
    plan = op.plan(model, target=HALF, resolution="28x24", round_to=1)
    assert plan.resolution == {"image": (28, 24)} and plan.removed
    assert 0.4 < plan.after["macs"] / plan.before["macs"] <= 0.5
    alone = op.plan(model, resolution="28x24")
    assert not alone.removed and alone.after["macs"] > plan.after["macs"]
    assert op.plan(model, resolution=32).resolution == {}


@pytest.mark.parametrize("given", ["0", "0x3", "12x", "x", "1.5", "-3", "automatic", 0, -1])
def test_what_is_no_size(given: str | int) -> None:
    with pytest.raises(PlanError, match="OP303"):
        PlanSettings(resolution=given)


@pytest.mark.parametrize(
    "damaged", [{"image": [0, 3]}, {"image": []}, {"image": [1, 2, 3]}, {"image": "ab"}, [1], {"image": [2, -1]}]
)
def test_damaged_plans(damaged: Any) -> None:
    text = json.loads(op.plan(classifier(), resolution=16).to_json())
    assert PrunePlan.from_json(json.dumps(text)).resolution == {"image": (16, 16)}
    with pytest.raises(PlanError, match="OP305"):
        PrunePlan.from_json(json.dumps({**text, "resolution": damaged}))


def test_a_plan_for_another_input_is_refused() -> None:
    model = classifier()
    text = json.loads(op.plan(model, resolution=16).to_json())
    other = PrunePlan.from_json(json.dumps({**text, "resolution": {"picture": [16, 16]}}))
    with pytest.raises(PlanError, match="OP319"):
        op.prune(model, other)
