"""Plans with a resolution: named, chosen by measurement, written, applied and verified."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import onnxprune as op
from onnxprune.errors import OnnxPruneError, PlanError
from onnxprune.planning.plan import PrunePlan
from onnxprune.sensitivity import OutputError, PredictionError, judge_of
from onnxprune.settings import PlanSettings
from onnxprune.workflow import analysis, axes
from onnxprune.workflow.analysis import moved
from tests.cli.support import DIGITS, document, invoke, refused
from tests.toolbox import Net, run_once
from tests.workflow.test_resume import Stop

Batches = Callable[[], Iterator[dict[str, NDArray[Any]]]]

HALF = op.Target("macs", 0.5)


def classifier(*, doubled: bool = False, size: int = 32) -> onnx.ModelProto:
    """Return a network of averaging kernels, which see the same in a smaller image.

    Args:
        doubled: whether every channel is there twice, so that half of them can leave for nothing; kernels are then
            arbitrary, and see something else in a smaller image.
        size: height and width of the image.
    """
    net = Net()

    def conv(x: str, out: int, name: str) -> str:
        fan_in = net.shape(x)[1]
        mix = net.rng.standard_normal((out, fan_in, 1, 1)) / np.sqrt(fan_in)
        shape = net.rng.standard_normal((3, 3)) if doubled else np.full((3, 3), 1 / 9)
        kernel = (mix * shape).astype(np.float32)
        bias = net.rng.uniform(-0.2, 0.2, out).astype(np.float32)
        if doubled:
            kernel[1::2], bias[1::2] = kernel[::2], bias[::2]
        attributes = {"pads": [1] * 4, "strides": [2, 2], "name": name}
        return net.op("Relu", net.op("Conv", x, net.const(kernel, f"{name}_w"), net.const(bias), **attributes))

    x = conv(conv(net.input((4, 3, size, size), "image"), 16, "first"), 16, "second")
    net.output(net.linear(net.op("Flatten", net.op("GlobalAveragePool", x)), 6, name="head"))
    return net.model()


def smooth(count: int = 8, size: int = 32) -> Batches:
    """Return batches of 4 images each, in which brightness changes slowly."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:size, :size] / size
    waves = rng.uniform(-3, 3, (count, 4, 3, 3)) * [1, 1, np.pi]
    levels = rng.standard_normal((count, 4, 3, 1, 1))
    images = np.cos(waves[..., :1, None] * y + waves[..., 1:2, None] * x + waves[..., 2:, None]) + levels
    return lambda: ({"image": batch.astype(np.float32)} for batch in images)


def rough(count: int = 8, spread: float = 0.0) -> Batches:
    """Return batches of 4 images each, in which every pixel has a brightness of its own, and every image a spread."""
    rng = np.random.default_rng(1)
    images = rng.standard_normal((count, 4, 3, 32, 32)) * np.exp(spread * rng.standard_normal((count, 4, 3, 1, 1)))
    images = images.astype(np.float32)
    return lambda: ({"image": batch} for batch in images)


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


@pytest.mark.parametrize("damaged", [{"image": [0, 3]}, {"image": [3]}, {"image": "ab"}, [1], {"image": [2, -1]}])
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


class TestCommands:
    def test_a_plan_gives_the_same_bytes_and_is_verified(self, tmp_path: Path) -> None:
        model, plan = tmp_path / "m.onnx", tmp_path / "p.json"
        onnx.save(classifier(), model)
        options = ("--resolution", "28x24", "--target", "macs=0.5", "--round-to", 1)
        found = document("plan", model, "-o", plan, *options)
        assert found["resolution"] == json.loads(plan.read_text())["resolution"] == {"image": [28, 24]}
        direct, planned, other = (tmp_path / name for name in ("a.onnx", "b.onnx", "c.onnx"))
        shown = invoke("prune", model, "-o", direct, *options)
        assert 'resized inside the model: "image" 32x32 → 28x24' in shown.stdout
        assert "resizing proved: error" in shown.stdout
        invoke("prune", model, "-o", planned, "--plan", plan)
        assert direct.read_bytes() == planned.read_bytes()
        assert document("verify", model, planned, "--plan", plan)["proved"]
        invoke("prune", model, "-o", other, "--resolution", 16, "--target", "macs=0.2", "--round-to", 1)
        refused("OP505", "verify", model, other, "--plan", plan, status=1)

    def test_a_model_that_resizes_otherwise_is_not_verified(self, tmp_path: Path) -> None:
        model, plan, small = tmp_path / "m.onnx", tmp_path / "p.json", tmp_path / "s.onnx"
        onnx.save(classifier(), model)
        invoke("plan", model, "-o", plan, "--resolution", 16)
        invoke("prune", model, "-o", small, "--plan", plan)
        proto = onnx.load(small)
        scales = next(t for t in proto.graph.initializer if t.name.endswith("_scales"))
        values = onnx.numpy_helper.to_array(scales) * np.array([1, 1, 0.75, 0.75], np.float32)
        scales.CopyFrom(onnx.numpy_helper.from_array(values, scales.name))
        onnx.save(proto, small)
        assert "error[OP501]" in invoke("verify", model, small, "--plan", plan, status=1).stderr

    @pytest.mark.parametrize(
        ("code", "options"),
        [
            ("OP302", ("--axes", "channels", "--resolution", "16")),
            ("OP303", ("--resolution", "16x")),
            ("OP312", ("--resolution", "auto", "--target", "macs=0.5")),
            ("OP312", ("--resolution", "auto", "--max-drop", "1%", "--data", "random", "-q")),
            ("OP302", ("--axes", "resolution", "--max-drop", "1%", "--data", "random", "--minimize", "size", "-q")),
        ],
    )
    def test_refused(self, code: str, options: tuple[str, ...], tmp_path: Path) -> None:
        model = tmp_path / "m.onnx"
        onnx.save(classifier(), model)
        refused(code, "prune", model, "-o", tmp_path / "o.onnx", *options)
        assert not (tmp_path / "o.onnx").exists()

    def test_unknown_axes(self, tmp_path: Path) -> None:
        result = invoke("prune", DIGITS, "-o", tmp_path / "o.onnx", "--axes", "channels,depth", status=2)
        assert "'depth' is not one of channels, resolution" in result.stderr


@pytest.mark.parametrize("options", [{"max_drop": 0.5}, {"target": HALF, "finetune": 1, "steps": 2}])
def test_the_original_with_whole_images_is_teacher_and_judge(options: dict[str, Any]) -> None:
    images = np.concatenate([batch["image"] for batch in smooth(32)()])
    small = op.prune_model(classifier(), resolution=28, data={"image": images}, limit=64, round_to=1, **options)
    assert small.plan.resolution == {"image": (28, 28)}
    assert [n.op_type for n in small.model.proto.graph.node].count("Resize") == 1
    assert small.plan.after["macs"] < 0.6 * small.plan.before["macs"]
    if small.evaluation is not None:
        data = op.open_data({"image": images}, classifier())
        ours = op.evaluate(small.model.proto, data, against=classifier(), metrics=("agreement",))
        assert ours["agreement"].model.value > 0.4
    assert small.tuned is None or small.tuned.failure is None


class TestWithinADrop:
    """A drop is spent on smaller images, on channels, or on both: where the outputs change least."""

    @staticmethod
    def shrunk(model: onnx.ModelProto, drop: float = 0.08, batches: Batches | None = None, **options: Any) -> op.Shrunk:
        images = np.concatenate([batch["image"] for batch in (batches or smooth(120))()])
        return op.prune_model(model, max_drop=drop, data={"image": images}, limit=128, round_to=1, **options)

    def test_smaller_images_where_they_lose_less(self) -> None:
        small = self.shrunk(classifier())
        (size,) = small.plan.resolution.values()
        assert small.plan.after["macs"] < 0.5 * small.plan.before["macs"]
        kept = [trial for trial in small.trials if trial.accepted]
        assert {"image": size} in [trial.sizes for trial in kept]
        assert min(kept, key=lambda trial: trial.share).sizes == small.plan.resolution
        alone = self.shrunk(classifier(), axes=("channels",))
        assert not alone.plan.resolution and not any(trial.sizes for trial in alone.trials)
        assert small.plan.after["macs"] < alone.plan.after["macs"]
        apart = []  # under ONNX Runtime, by hand, on all samples
        for batch in smooth(120)():
            its, mine = (run_once(proto, dict(batch)) for proto in (classifier(), small.model.proto))
            apart.append(next(iter(its.values())).argmax(axis=1) != next(iter(mine.values())).argmax(axis=1))
        assert np.mean(apart) < 0.12

    def test_only_fitted_models_are_compared_on_fewer_samples(self) -> None:
        """A model that was repaired isn't compared on what repaired it; smaller images alone fit nothing."""
        total = sum(len(batch["image"]) for batch in smooth(120)())
        judging = (total - 128) // 2
        small = self.shrunk(classifier(), drop=0.5)
        counts = {trial.samples for trial in small.trials if trial.accepted and trial.macs == trial.share}
        assert counts == {total - judging}
        found = self.shrunk(classifier(), drop=0.5, axes=("channels",))
        assert {trial.samples for trial in found.trials if trial.accepted} == {total - 128 - judging}

    def test_channels_where_they_lose_less(self) -> None:
        small = self.shrunk(classifier(doubled=True), 0.02, rough(120, 1.0))
        assert not small.plan.resolution and small.plan.after["macs"] < 0.7 * small.plan.before["macs"]
        tried = [trial for trial in small.trials if trial.sizes]
        assert tried and not any(trial.accepted for trial in tried)

    def test_images_alone(self) -> None:
        small = self.shrunk(classifier(), axes=("resolution",))
        assert small.plan.resolution and not small.plan.removed and not small.repairs
        assert all(trial.sizes and trial.macs == trial.share for trial in small.trials)

    def test_limits_may_be_met_by_smaller_images(self) -> None:
        small = self.shrunk(classifier(), target=HALF)
        assert small.plan.resolution and len(small.trials) == 1

    @pytest.mark.parametrize("options", [{"minimize": "params"}, {"allocation": "uniform"}])
    def test_where_images_do_not_count(self, options: dict[str, Any]) -> None:
        small = self.shrunk(classifier(), drop=0.3, **options)
        assert not any(trial.sizes for trial in small.trials)

    def test_what_was_seen_is_told(self, tmp_path: Path) -> None:
        model, data = tmp_path / "m.onnx", tmp_path / "d.npz"
        onnx.save(classifier(), model)
        np.savez(data, image=np.concatenate([batch["image"] for batch in smooth(120)()]))
        options = ("--max-drop", "8%", "--data", data, "--limit", "128", "--round-to", 1, "--preprocess", "scale=1")
        found = document("prune", model, "-o", tmp_path / "s.onnx", *options)
        best = min((t for t in found["trials"] if t["kept"]), key=lambda t: t["share"])
        assert best["resolution"] == found["resolution"] and best["drop"]["low"] <= best["drop"]["value"] <= 0.08
        assert best["macs"] == pytest.approx(found["cost"]["after"]["macs"] / found["cost"]["before"]["macs"])
        shown = invoke("prune", model, "-o", tmp_path / "t.onnx", *options)
        assert "models tried" in shown.stdout and " taken" in shown.stdout
        assert re.search(r"^\d+x\d+: agreement drops by .*% \(.* to .*\)", shown.stderr, re.M), shown.stderr


@pytest.mark.parametrize(
    ("what", "stops"),
    [
        ({"target": HALF}, [("try axes", 2), ("try axes", 3)]),
        ({"max_drop": 0.08, "limit": 64}, [("trial 2", 1), ("repair", 2), ("judge", 1)]),
    ],
)
def test_a_stopped_run_goes_on(
    what: dict[str, Any], stops: list[tuple[str, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trials of resolutions are done once, and the bytes are those of a run that wasn't stopped."""
    model, data, kept = tmp_path / "m.onnx", tmp_path / "d.npz", tmp_path / "kept.npz"
    onnx.save(classifier(), model)
    np.savez(data, image=np.concatenate([batch["image"] for batch in smooth(60)()]))
    known: dict[str, Any] = {"data": str(data), "preprocess": "scale=1", "round_to": 1, "threads": 1, **what}
    tried: list[tuple[int, ...]] = []

    def counted(source: op.TracedModel, moves: Any) -> op.TracedModel:
        tried.append(moves)
        return moved(source, moves)

    for module in (axes, analysis):
        monkeypatch.setattr(module, "moved", counted)
    whole = op.prune_model(model, **known)
    assert whole.plan.resolution
    once = len(tried)
    for phase, times in stops:
        with pytest.raises(KeyboardInterrupt):
            op.prune_model(model, **known, checkpoint=kept, resume=True, progress=Stop(phase, times))
    if "target" in what:
        assert len(tried) <= 2 * once + len(stops)
    again = op.prune_model(model, **known, checkpoint=kept, resume=True)
    assert again.model.proto.SerializeToString(deterministic=True) == whole.model.proto.SerializeToString(
        deterministic=True
    )
    assert [(t.sizes, t.share, t.drop) for t in again.trials] == [(t.sizes, t.share, t.drop) for t in whole.trials]
    if "target" in what:
        assert len(tried) <= 2 * once + len(stops)
