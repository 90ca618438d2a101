"""The settings of the stages of `shrink`: what the effort, the hardware and the user's own settings make of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import onnxprune as op
from onnxprune.errors import PlanError, UsageError, VerificationError
from onnxprune.model.file import load
from onnxprune.settings import CleanSettings, PruneSettings, QuantizeSettings, ShrinkSettings, build
from onnxprune.workflow import pipeline
from onnxprune.workflow.hardware import block, place
from onnxprune.workflow.inputs import open_samples
from onnxprune.workflow.pipeline import Pipeline, planned
from onnxprune.workflow.stages import STAGES, Expected, Stage, Task
from tests.workflow.support import DIGITS, MODELS, QUICK, TEST, UNTIMED


def test_settings_of_stages_are_checked_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "analyze", None)
    with pytest.raises(UsageError, match="did you mean criterion"):
        op.shrink(DIGITS, options={"prune": {"criterium": "l1"}})
    with pytest.raises(UsageError, match="there is no stage 'prun'"):
        op.shrink(DIGITS, options={"prun": {}})
    with pytest.raises(PlanError, match="OP303"):
        op.shrink(DIGITS, options={"clean": {"optimizers": ["gcc"]}})
    with pytest.raises(PlanError, match="`max_drop` needs inputs"):
        op.shrink(DIGITS, max_drop=0.01)


def test_hardware_sets_channels_and_kinds_and_untimed_means_untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = build(ShrinkSettings, {**QUICK, "hardware": "tensorrt"})
    with planned(load(DIGITS), settings) as found:
        assert not found.own.timed and "TensorrtExecutionProvider isn't here" in found.notes[1]
        prune, quantize = found.own.of(STAGES[1], 0.01), found.own.of(STAGES[2])
        assert found.judge.speed(found.original.proto, found.original.proto)[0] is None
    assert prune.planning.constraints.round_to == 8 and quantize.kind == ("float16",) and not quantize.timed
    monkeypatch.setattr("onnxprune.workflow.hardware._flags", lambda: ["sse"])
    assert place(pipeline.HARDWARE["avx2"])[1] is False and "no avx2" in place(pipeline.HARDWARE["avx2"])[2][1]
    monkeypatch.setattr("onnxprune.workflow.hardware._flags", lambda: ["sse", "avx2"])
    settings = build(ShrinkSettings, {"data": TEST, "hardware": "avx2"})
    with planned(load(DIGITS), settings) as found:
        quantize = found.own.of(STAGES[2])
        assert found.own.timed and quantize.timed and quantize.weight_bits == 7 and "static" in quantize.kind


@pytest.mark.parametrize(("flags", "multiple"), [(["avx2", "avx512f"], 16), (["avx2"], None)])
def test_timed_pruning_keeps_whole_blocks_of_channels(
    flags: list[str], multiple: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxprune.workflow.hardware._flags", lambda: flags)

    def multiple_of(left: float | None = 0.01, targets: tuple[op.Target, ...] = (), **options: Any) -> int | None:
        with planned(load(DIGITS), build(ShrinkSettings, {**QUICK, **options})) as found:
            (prune,) = (stage for stage in found.stages if stage.name == "prune")
            return found.own.of(prune, left, targets).planning.constraints.round_to

    assert multiple_of() == multiple
    assert multiple_of(options={"prune": {"round_to": 4}}) == 4
    assert block([8, 31]) is None and block([8, 32]) == multiple  # of narrow layers, the usual multiples leave more
    untouched: Any
    for untouched in ({"timed": False}, {"objective": "size"}, {"targets": (op.Target("size", 0.5),)}):
        assert multiple_of(**untouched) is None


def test_the_stages_are_in_order_and_their_settings_are_classes() -> None:
    assert [s.name for s in STAGES] == ["clean", "prune", "quantize"]
    assert [s.settings for s in STAGES] == [CleanSettings, PruneSettings, QuantizeSettings]
    assert [s.lossy for s in STAGES] == [False, True, True]


def test_a_budget_of_pruning_s_own_replaces_that_of_the_whole() -> None:
    options = {"prune": {"ratio": "25%"}}
    with planned(load(DIGITS), build(ShrinkSettings, {**UNTIMED, "options": options})) as found:
        settings = found.own.of(STAGES[1], 0.01)
    assert settings.planning.ratio == 0.25 and settings.max_drop is None
    with planned(load(DIGITS), build(ShrinkSettings, {"options": {"prune": {"criterion": "l1"}}})) as found:
        assert found.expected[1].skipped  # a criterion alone is no budget


def test_expectations_say_what_is_left_out() -> None:
    with planned(load(DIGITS), ShrinkSettings()) as found:
        assert isinstance(found, Pipeline) and all(isinstance(e, Expected) for e in found.expected)
        assert [bool(e.skipped) for e in found.expected] == [False, True, True]


def test_a_stage_that_nothing_pays_in_says_so() -> None:
    with pytest.raises(VerificationError, match="nothing need be removed"):
        STAGES[1].run(Task(load(DIGITS), build(PruneSettings, {"target": "macs=100%"})))


@pytest.mark.parametrize(("effort", "most"), [("quick", 128), ("normal", 512), ("thorough", 2048)])
def test_efforts_limit_the_samples_that_pruning_works_with(effort: str, most: int) -> None:
    settings = {"data": MODELS / "digits_train.npz", "threads": 1, "effort": effort}
    with planned(load(DIGITS), build(ShrinkSettings, settings)) as found:
        given = found.own.of(STAGES[1], None, (op.Target("macs", 0.5),)).calibration
        whole = len(given.data)
        used, again = (open_samples(given, found.analysis.graph, seed=0, limit=64) for _ in range(2))
    assert 512 < whole < 2048 and len(used) == min(most, whole)
    batch, other = (next(iter(samples.batches(16))).inputs["image"] for samples in (used, again))
    np.testing.assert_array_equal(batch, other)


def test_stage_names_are_unique() -> None:
    assert isinstance(STAGES[0], Stage) and len({s.name for s in STAGES}) == len(STAGES)
