"""Targets of `shrink` are shared by its stages, and what changes answers too much is tried again, milder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, numpy_helper

import onnxprune as op
from onnxprune.benchmarking.speed import Speed
from onnxprune.cost.cost import Cost, LayerCost
from onnxprune.errors import ModelError
from onnxprune.evaluation.intervals import Estimate
from onnxprune.model.file import load
from onnxprune.recover.repair import repair_runs
from onnxprune.settings import ShrinkSettings, build
from onnxprune.settings.planning import Target
from onnxprune.workflow.goals import Costs, Goals
from onnxprune.workflow.pipeline import ShrinkResult, planned
from onnxprune.workflow.stages import STAGES, Made, Task
from tests.workflow.test_pipeline import DIGITS, UNTIMED, answers, digits, filled, with_stages

_BYTES = {TensorProto.FLOAT: 4, TensorProto.INT8: 1, TensorProto.UINT8: 1}  # integers of more bits don't count


def weight_bytes(model: ModelProto) -> int:
    """Count the bytes of the weights, without the package."""
    return sum(prod(t.dims) * _BYTES.get(t.data_type, 0) for t in model.graph.initializer)


def values(model: ModelProto) -> int:
    """Return the number of values in kernels and matrices."""
    return sum(prod(t.dims) for t in model.graph.initializer if len(t.dims) > 1)


def why(found: ShrinkResult) -> dict[str, str]:
    return {v.stage: v.why for v in found.verdicts}


def shrunk(target: Any, model: Any = DIGITS, **options: Any) -> ShrinkResult:
    return op.shrink(model, **{**UNTIMED, "target": target, **options})


def test_a_size_that_quantization_brings_removes_no_channel() -> None:
    found = shrunk("size=45%")
    assert found.kept == ("clean", "quantize") and not found.missed
    assert why(found)["prune"] == "size=45% holds with quantization, without removing channels"
    original = onnx.load(DIGITS)
    assert weight_bytes(found.model.proto) <= 0.45 * weight_bytes(original)
    assert values(found.model.proto) == values(original)


def test_a_size_that_cleaning_brings_removes_no_channel() -> None:
    original = onnx.load(DIGITS)
    ballast = np.zeros(values(original), np.float32)
    original.graph.initializer.append(numpy_helper.from_array(ballast, "ballast"))
    found = shrunk("size=60%", original)
    assert found.kept[0] == "clean" and why(found)["prune"] == "size=60% holds without removing channels"
    assert values(found.model.proto) == values(onnx.load(DIGITS))
    alone = shrunk("size=60%", original, stages=("clean", "prune"))
    assert alone.kept == ("clean",) and not alone.missed
    assert why(alone)["prune"] == "size=60% holds without removing channels"


@pytest.mark.slow
def test_pruning_removes_only_what_quantization_can_t_bring() -> None:
    together, alone = shrunk("size=15%"), shrunk("size=15%", stages=("clean", "prune"))
    assert together.kept == ("clean", "prune", "quantize") and alone.kept == ("clean", "prune")
    limit = 0.15 * weight_bytes(onnx.load(DIGITS))
    for found in (together, alone):
        assert not found.missed and weight_bytes(found.model.proto) <= limit
    assert values(together.model.proto) > 1.5 * values(alone.model.proto)
    images, labels = digits()
    assert (answers(together.model.proto, images) == labels).mean() > 0.9


def refused_after(number: int, run: Callable[[Task], Made]) -> Callable[[Task], Made]:
    """Return a stage that refuses after some runs."""
    runs: list[Task] = []

    def running(task: Task) -> Made:
        runs.append(task)
        if len(runs) > number:
            raise ModelError("OP128", "the quantizer can't make it")
        return run(task)

    return running


@pytest.mark.slow
def test_if_quantization_fails_after_pruning_the_model_is_pruned_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with_stages(monkeypatch, quantize=refused_after(1, STAGES[2].run))
    found = shrunk("size=15%")
    assert found.kept == ("clean", "prune") and not found.missed
    assert weight_bytes(found.model.proto) <= 0.15 * weight_bytes(onnx.load(DIGITS))
    assert values(found.model.proto) == values(shrunk("size=15%", stages=("clean", "prune")).model.proto)


def test_if_quantization_is_harmful_pruning_meets_the_whole_target(monkeypatch: pytest.MonkeyPatch) -> None:
    with_stages(monkeypatch, quantize=filled(0.0))
    found = shrunk("size=40%", max_drop=0.05)
    assert found.kept == ("clean", "prune") and not found.missed
    assert weight_bytes(found.model.proto) <= 0.4 * weight_bytes(onnx.load(DIGITS))


def test_operations_are_left_to_pruning_alone() -> None:
    found = shrunk("macs=60%")
    assert found.kept == ("clean", "prune", "quantize")
    assert 0.5 * 790_848 < op.analyze(found.model.proto).cost.macs <= 0.6 * 790_848 or not found.missed
    assert "tries" not in "".join(why(found).values())


def ruined_until(mildness: int) -> tuple[Callable[[Task], Made], list[Any]]:
    """Return a stage that ruins the model until its settings are milder; and the settings that it got."""
    got: list[Any] = []

    def run(task: Task) -> Made:
        got.append(task.settings.max_error)
        milder = {"max_error": 0.5 ** len(got)}
        if len(got) <= mildness:
            return replace(filled(0.0)(task), milder=milder)
        return STAGES[2].run(replace(task, settings=replace(task.settings, max_error=None)))

    return run, got


@pytest.mark.parametrize(("mildness", "kept"), [(1, True), (2, True), (3, False)])
def test_what_changes_answers_too_much_is_tried_again_milder(
    mildness: int, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, got = ruined_until(mildness)
    with_stages(monkeypatch, quantize=run)
    found = op.shrink(DIGITS, **UNTIMED, stages=("quantize",), max_drop=0.05)
    tries = min(mildness + 1, 3)
    assert got == [None, 0.5, 0.25][:tries] and found.verdicts[0].tries == tries
    assert found.verdicts[0].why.endswith(f"{tries} tries, each milder than the one before")
    assert (found.kept == ("quantize",)) == kept
    assert found.verdicts[0].kept == kept and ("the drop would be" in found.verdicts[0].why) != kept


def test_a_limit_that_costs_too_much_is_met_half_way(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Target] = []

    def harmful_below(task: Task) -> Made:
        (target,) = task.settings.planning.targets
        asked.append(target)
        made = STAGES[1].run(task)
        return made if target.value > 300_000 else replace(filled(0.0)(task), milder=made.milder)

    with_stages(monkeypatch, prune=harmful_below)
    whole = op.analyze(DIGITS).cost.macs
    found = op.shrink(DIGITS, **UNTIMED, stages=("prune",), target="macs=20%", max_drop=0.1)
    assert [t.absolute for t in asked] == [True, True]
    assert asked[1].value == pytest.approx((asked[0].value + whole) / 2, rel=1e-4)
    assert found.kept == ("prune",) and found.verdicts[0].tries == 2
    assert len(found.missed) == 1 and found.missed[0].startswith("macs is ")


def test_what_is_left_to_pruning_reckons_with_what_quantization_brings() -> None:
    def speed(_: ModelProto) -> tuple[Speed | None, str]:
        return Speed(Estimate(1.0, 0.9, 1.1), 0.010, 0.009, "cpu"), ""

    targets = Target.parse("latency=50%"), Target.parse("macs=50%"), Target.parse("size=90%")
    goals = Goals(targets, op.analyze(DIGITS), op.settings.DataSettings(), speed)
    costs = Costs({"latency": 0.010, "macs": 1000, "size": 4000}, {"latency": 0.009, "macs": 1000, "size": 3600})
    latency, macs = goals.left(costs, {"latency": 0.8, "size": 0.3})
    assert latency.absolute and latency.value == pytest.approx(0.005 / 0.8, rel=1e-3)
    assert (macs.quantity, macs.value) == ("macs", pytest.approx(500, rel=1e-4)) and macs.value <= 500
    assert goals.left(costs, {"latency": 0.5, "size": 1.0}) == (macs,)
    assert goals.excess(costs) == pytest.approx(2.0) and len(goals.missed(costs)) == 2
    assert goals.costs(load(DIGITS).proto).own["latency"] == 0.009
    unknown = Costs(costs.file, {"macs": 400, "size": 100}, "nobody is here")
    assert goals.left(unknown, {}) == (targets[0],)
    assert goals.missed(unknown) == ["latency wasn't measured (nobody is here)"]


def test_the_time_of_a_repair_reckons_with_the_sums_of_wide_layers() -> None:
    def runs(*layers: LayerCost) -> float:
        return repair_runs(Cost(params=0, macs=sum(layer.macs for layer in layers), size=0, memory=0, layers=layers))

    # 8 to 16 channels, 3x3, on 8x8 pixels: 72 features at 64 positions, 72 * 72 products each, of 72 * 16 of a run
    conv = LayerCost("conv", "Conv", (16, 8, 3, 3), (1, 16, 8, 8), 16 * 72, 16 * 72 * 64)
    assert runs(conv) == pytest.approx(5 + 2 * 72 / 16)
    # on 80x80 pixels, 72 positions are sampled of each sample: 2304 of 32
    large = LayerCost("conv", "Conv", (16, 8, 3, 3), (1, 16, 80, 80), 16 * 72, 16 * 72 * 6400)
    assert runs(large) == pytest.approx(5 + 2 * 72 / 16 * 72 / 6400)
    unknown = LayerCost("call", "Loop", (1,), None, 1, 0)
    assert runs(conv, unknown) == runs(conv) and runs() == 5


def test_the_time_expected_is_longer_where_quantization_runs_twice() -> None:
    def expected(**options: Any) -> dict[str, float]:
        with planned(load(DIGITS), build(ShrinkSettings, {**UNTIMED, **options})) as found:
            return {e.stage: e.seconds for e in found.expected}

    shared, alone = expected(target="size=20%"), expected(target="macs=20%")
    assert shared["quantize"] > 1.5 * alone["quantize"]
    assert expected(max_drop=0.05)["prune"] > alone["prune"]  # a search, not one plan


@pytest.mark.slow
def test_an_interruption_between_rounds_keeps_the_best_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = shrunk("size=15%").model.proto.SerializeToString(deterministic=True)
    runs: list[str] = []

    def interrupted_once(task: Task) -> Made:
        runs.append("quantize")
        if len(runs) == 2:
            raise KeyboardInterrupt
        return STAGES[2].run(task)

    with_stages(monkeypatch, quantize=interrupted_once)
    path = tmp_path / "c.npz"
    first = shrunk("size=15%", checkpoint=path)
    assert first.stopped and first.kept == ("clean", "quantize")  # quantized alone is the best so far
    assert why(first)["prune"] == "interrupted"
    again = shrunk("size=15%", checkpoint=path, resume=True)
    assert len(runs) == 4 and not again.stopped and not again.missed  # twice: biases weigh more once it is pruned
    assert again.model.proto.SerializeToString(deterministic=True) == whole


def test_a_limit_out_of_reach_is_met_half_way() -> None:
    found = op.shrink(DIGITS, **UNTIMED, stages=("prune",), target="macs=0.1%", max_drop=0.1)
    assert found.kept == ("prune",)
    assert "macs can't be brought to" in found.verdicts[0].why and found.verdicts[0].tries > 1
    assert op.analyze(found.model.proto).cost.macs <= 0.76 * op.analyze(DIGITS).cost.macs
    assert len(found.missed) == 1 and found.missed[0].startswith("macs is ")
