"""A drop of the accuracy, and stages that follow, with smaller images."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxprune as op
from onnxprune.workflow import analysis, axes
from onnxprune.workflow.analysis import moved
from tests.cli.support import document, invoke
from tests.resolution.support import Batches, classifier, rough, smooth
from tests.toolbox import run_once
from tests.workflow.test_resume import Stop

HALF = op.Target("macs", 0.5)


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

    @pytest.mark.parametrize("axes", [pytest.param(("channels", "rank"), marks=pytest.mark.slow), ("rank",)])
    def test_ranks_within_a_drop(self, axes: tuple[str, ...]) -> None:
        small = self.shrunk(classifier(doubled=True), axes=axes)
        assert small.plan.after["macs"] < small.plan.before["macs"]
        kept = [trial.share for trial in small.trials if trial.accepted]
        assert len(small.trials) > 1 and small.plan.after["macs"] <= (min(kept) + 0.01) * small.plan.before["macs"]
        if "channels" not in axes:
            assert small.plan.ranks and not small.plan.removed
        assert small.evaluation is not None
        assert small.evaluation["agreement"].model.value >= 0.92

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
