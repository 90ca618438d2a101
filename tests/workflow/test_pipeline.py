"""`shrink`: stages that pay are kept; a stage that is made harmful is left out and said, whatever the harm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, numpy_helper

import onnxprune as op
from onnxprune.benchmarking import speed
from onnxprune.benchmarking.speed import Speed
from onnxprune.errors import ModelError
from onnxprune.evaluation.intervals import Estimate
from onnxprune.model.file import load
from onnxprune.model.resumable import Records
from onnxprune.progress import silent
from onnxprune.settings import ShrinkSettings, build
from onnxprune.workflow import judging, pipeline, stages
from onnxprune.workflow.judging import Judge
from onnxprune.workflow.pipeline import planned
from onnxprune.workflow.stages import STAGES, Made, Task
from tests.workflow.support import DIGITS, LIGHT, QUICK, TEST, UNTIMED


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "SECONDS", 0.01)
    monkeypatch.setattr(speed, "_REPEATS", 1)


def answers(model: ModelProto | Path, images: np.ndarray) -> np.ndarray:
    """Return the classes that a model gives, by ONNX Runtime itself."""
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    opened = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    return np.asarray(opened.run(None, {"image": images})[0]).argmax(1)


def digits() -> tuple[np.ndarray, np.ndarray]:
    with np.load(TEST, allow_pickle=False) as found:
        return np.asarray(found["images"]), np.asarray(found["labels"])


def copied(model: op.Model) -> ModelProto:
    changed = ModelProto()
    changed.CopyFrom(model.proto)
    return changed


def filled(value: float) -> Callable[[Task], Made]:
    """Return a stage that fills every matrix of weights with a value, and makes the file smaller."""

    def run(task: Task) -> Made:
        changed = copied(task.model)
        for tensor in changed.graph.initializer:
            if len(tensor.dims) > 1:
                tensor.CopyFrom(numpy_helper.from_array(np.full(tensor.dims, value, np.float32), tensor.name))
        return Made(load(changed), "ruined")

    return run


def larger(task: Task) -> Made:
    changed = copied(task.model)
    changed.graph.initializer.append(numpy_helper.from_array(np.zeros((256, 256), np.float32), "ballast"))
    return Made(load(changed), "bloated")


def same(task: Task) -> Made:
    return Made(load(copied(task.model)), "nothing")


def refusing(task: Task) -> Made:
    raise ModelError("OP128", "the quantizer can't make it")


def with_stages(monkeypatch: pytest.MonkeyPatch, **runs: Callable[[Task], Made]) -> None:
    """Replace what stages do."""
    changed = tuple(replace(s, run=runs[s.name]) if s.name in runs else s for s in STAGES)
    monkeypatch.setattr(pipeline, "STAGES", changed)


def test_what_is_kept_is_smaller_and_answers_alike_by_onnx_runtime() -> None:
    found = op.shrink(DIGITS, **UNTIMED, stages=("clean", "quantize"), max_drop=0.05)
    assert found.kept == ("clean", "quantize")
    assert found.size[1] < 0.45 * found.size[0]
    images, labels = digits()
    dense, small = (answers(m, images) for m in (DIGITS, found.model.proto))
    assert (dense == labels).mean() - (small == labels).mean() <= 0.05
    assert found.drop is not None and found.evaluation is not None
    assert found.evaluation.samples == (found.samples or (0, 0, 0))[2] == 90


def test_pruning_meets_a_limit_of_the_file_after_cleaning() -> None:
    found = op.shrink(DIGITS, **UNTIMED, stages=("clean", "prune"), target="macs=50%")
    assert found.kept == ("clean", "prune") and not found.missed
    assert op.analyze(found.model.proto).cost.macs <= 0.5 * op.analyze(DIGITS).cost.macs
    images, labels = digits()
    assert (answers(found.model.proto, images) == labels).mean() > 0.9


@pytest.mark.parametrize("stage", ["prune", "quantize"])
@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (filled(0.0), "the drop would be"),
        (filled(float("nan")), "aren't finite"),
        (larger, "makes the model larger"),
        (refusing, "the quantizer can't make it"),
    ],
    ids=["zeros", "nan", "larger", "refused"],
)
def test_a_stage_made_harmful_is_left_out_and_said(
    stage: str, harm: Callable[[Task], Made], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_stages(monkeypatch, **{stage: harm})
    found = op.shrink(DIGITS, **UNTIMED, stages=(stage,), max_drop=0.05)
    assert found.kept == () and why in found.verdicts[0].why
    assert found.model.proto == load(DIGITS).proto and found.size[0] == found.size[1]


@pytest.mark.parametrize("stage", ["clean", "prune", "quantize"])
def test_a_stage_that_makes_the_model_slower_is_left_out(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_stages(monkeypatch, **{stage: same})
    options: dict[str, Any] = {**QUICK, "stages": (stage,), "max_drop": 0.05}
    slow = Speed(Estimate(0.5, 0.4, 0.6), 1e-3, 2e-3, "cpu")
    monkeypatch.setattr(judging, "speed_of", lambda *_: slow)
    found = op.shrink(DIGITS, **options)
    assert found.kept == () and "slower: 0.50x" in found.verdicts[0].why
    fast = Speed(Estimate(2.0, 1.9, 2.1), 2e-3, 1e-3, "cpu")
    monkeypatch.setattr(judging, "speed_of", lambda *_: fast)
    assert op.shrink(DIGITS, **options).kept == (stage,)


@pytest.mark.parametrize(
    ("speeds", "kept"),
    [((0.97, 0.94), ("clean",)), ((0.94, 0.9), ()), ((0.97, 0.98), ("clean", "quantize"))],
    ids=["last", "all", "none"],
)
def test_stages_that_make_the_model_slower_together_are_left_out(
    speeds: tuple[float, float], kept: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def noted(task: Task) -> Made:
        made = same(task)
        made.model.proto.metadata_props.add(key=f"stage {len(made.model.proto.metadata_props)}")
        return made

    def against_the_file(self: Judge, before: ModelProto, after: ModelProto, *_: Any) -> tuple[Speed | None, str]:
        found = speeds[sum(entry.key.startswith("stage ") for entry in after.metadata_props) - 1]
        return Speed(Estimate(found, found - 0.03, found + 0.03), 1e-3, 1e-3, "cpu"), ""

    with_stages(monkeypatch, clean=noted, quantize=noted)
    monkeypatch.setattr(Judge, "pays", lambda self, verdict, *_, **__: verdict)  # of one stage, nothing is sure
    monkeypatch.setattr(Judge, "speed", against_the_file)
    found = op.shrink(DIGITS, **QUICK, stages=("clean", "quantize"), max_drop=0.05)
    assert found.kept == kept
    for verdict in found.verdicts[len(kept) :]:
        assert "with the stages before it, it makes the model slower than the file: 0.9" in verdict.why
    met = op.shrink(DIGITS, **QUICK, stages=("clean", "quantize"), target="size=100%")
    assert met.kept == ("clean", "quantize")  # what was asked for isn't taken back


def test_a_stage_that_changes_nothing_doesn_t_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    with_stages(monkeypatch, quantize=same)
    unclear = Speed(Estimate(1.0, 0.9, 1.1), 1e-3, 1e-3, "cpu")
    monkeypatch.setattr(judging, "speed_of", lambda *_: unclear)
    found = op.shrink(DIGITS, **QUICK, stages=("quantize",), max_drop=0.05)
    assert found.verdicts[0].why == "it makes the model neither faster nor smaller"


def drops(monkeypatch: pytest.MonkeyPatch, lost: Mapping[str, float]) -> list[tuple[str, Any]]:
    """Replace stages by ones that lose something, by the stages a model went through; return what ran by which drop."""
    ran: list[tuple[str, Any]] = []

    def losing(name: str) -> Callable[[Task], Made]:
        def run(task: Task) -> Made:
            ran.append((name, getattr(task.settings, "max_drop", None)))
            made = copied(task.model)
            made.graph.doc_string += name
            return Made(load(made), name)

        return run

    def answers(self: Judge, model: ModelProto, progress: Any) -> tuple[Estimate, str]:
        loss = lost[model.graph.doc_string]
        return Estimate(loss, loss, loss), "too much" if loss > 0.04 else ""

    def pays(self: Judge, verdict: Any, before: ModelProto, after: ModelProto, told: Any, *, lossy: bool) -> Any:
        better = len(after.graph.doc_string) > len(before.graph.doc_string)
        return verdict if better else replace(verdict, kept=False, why="it makes the model neither faster nor smaller")

    monkeypatch.setattr(Judge, "answers", answers)
    monkeypatch.setattr(Judge, "pays", pays)
    with_stages(monkeypatch, prune=losing("p"), quantize=losing("q"))
    return ran


@pytest.mark.parametrize(
    ("lost", "expected", "kept"),
    [
        ({"q": 0.01, "p": 0.02, "pq": 0.03}, [0.8 * 0.03], ("prune", "quantize")),  # what quantization leaves, nearly
        ({"q": 0.035, "p": 0.02, "pq": 0.04}, [0.02], ("prune", "quantize")),  # but at least half
        ({"q": 0.05, "p": 0.02}, [0.04], ("prune",)),  # quantization is left out: everything is left
        ({"q": 0.01, "p": 0.02, "pq": 0.05}, [0.8 * 0.03, 0.02], ("quantize",)),  # together they lose too much, twice
    ],
)
def test_pruning_gets_what_quantization_leaves_of_the_drop(
    lost: Mapping[str, float], expected: list[float], kept: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = drops(monkeypatch, lost)
    found = op.shrink(DIGITS, **UNTIMED, stages=("prune", "quantize"), max_drop=0.04)
    assert [drop for name, drop in ran if name == "p"] == pytest.approx(expected)
    assert ran[0][0] == "q" and found.kept == kept


def test_pruning_alone_gets_the_whole_drop() -> None:
    settings = build(ShrinkSettings, {**UNTIMED, "stages": ("clean", "prune"), "max_drop": 0.04})
    with planned(load(DIGITS), settings) as found:
        assert found._part() == 0.04


def test_what_goes_unnoticed_is_what_shifted_inputs_do(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = digits()
    noisy = images + np.random.default_rng(0).normal(0, images.std(), images.shape).astype(np.float32)
    data = {"image": noisy, "labels": labels}
    settings = build(ShrinkSettings, {**UNTIMED, "stages": ("quantize",), "data": data})
    with monkeypatch.context() as patch:
        patch.setattr(judging, "largest_kept", lambda _: 1.0)
        with planned(load(DIGITS), settings) as found:
            assert found.parts is not None and not found.parts.choosing.labeled and found.parts.judging.labeled
            found.judge.prepare(found.progress)
            seen = np.concatenate([b.inputs["image"] for b in found.parts.choosing.batches(32)])
    shifted = np.concatenate([seen[..., 1:], seen[..., -1:]], axis=-1)
    disagree = float((answers(DIGITS, seen) != answers(DIGITS, shifted)).mean())
    assert found.judge.allowed == pytest.approx(disagree) and 0.03 < disagree < 0.9
    with planned(load(DIGITS), settings) as found:
        assert found.parts is not None
        found.judge.prepare(found.progress)
    assert found.judge.allowed == 0.03  # never more than answers that count as kept


def test_without_data_only_cleaning_and_limits_apply() -> None:
    found = op.shrink(DIGITS, timed=False, options=LIGHT)
    assert found.kept == ("clean",) and found.evaluation is None
    assert {v.stage: v.why for v in found.verdicts if not v.kept} == {
        "prune": "it needs a `target`, or inputs to limit the loss by (`data`)",
        "quantize": "it needs inputs to find ranges and errors with (`data`)",
    }


def test_a_limit_that_is_missed_is_said_and_the_best_is_kept() -> None:
    found = op.shrink(DIGITS, **UNTIMED, stages=("clean", "quantize"), target="size=1kB")
    assert found.kept and len(found.missed) == 1 and found.missed[0].startswith("size is ")
    assert found.missed[0].endswith("and 1kB was asked for")


def interrupting(after: int) -> tuple[Callable[[Task], Made], list[str]]:
    """Return a stage that cleans, but is interrupted at some runs; and the list of its runs."""
    runs: list[str] = []

    def run(task: Task) -> Made:
        runs.append("run")
        if len(runs) <= after:
            raise KeyboardInterrupt
        return STAGES[2].run(task)

    return run, runs


def test_an_interrupted_run_keeps_the_best_and_goes_on_after_the_last_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {**UNTIMED, "stages": ("clean", "quantize"), "max_drop": 0.05}
    whole = op.shrink(DIGITS, **options).model.proto.SerializeToString(deterministic=True)
    run, runs = interrupting(1)
    cleaned: list[str] = []

    def counted(task: Task) -> Made:
        cleaned.append("run")
        return STAGES[0].run(task)

    with_stages(monkeypatch, quantize=run, clean=counted)
    path = tmp_path / "c.npz"
    first = op.shrink(DIGITS, **options, checkpoint=path)
    assert first.stopped and first.kept == ("clean",) and path.is_file()
    again = op.shrink(DIGITS, **options, checkpoint=path, resume=True)
    assert not again.stopped and (len(cleaned), len(runs)) == (1, 2)
    assert again.model.proto.SerializeToString(deterministic=True) == whole
    assert replace(again.verdicts[0], again={}) == replace(first.verdicts[0], again={})
    with pytest.raises(op.TrainingError, match=r"OP905.*other work"):
        op.shrink(DIGITS, **{**options, "max_drop": 0.06}, checkpoint=path, resume=True)


def test_a_speed_that_records_have_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, other = load(DIGITS).proto, copied(load(DIGITS))
    other.producer_name = "another"
    times = []

    def measured(self: Judge, before: ModelProto, after: ModelProto, progress: Any = None) -> tuple[Speed | None, str]:
        times.append((before.producer_name, after.producer_name))
        return (None, "it fails") if after is small else (Speed(Estimate(2.0, 1.9, 2.1), 0.2, 0.1, "cpu"), "")

    monkeypatch.setattr(Judge, "speed", measured)
    for resumed in (False, True):
        with planned(load(DIGITS), build(ShrinkSettings, UNTIMED)) as found:
            judge = found.judge
        with Records(tmp_path / "c.npz", "this", resume=resumed) as judge.records:
            assert judge.known_speed(small, other) == (Speed(Estimate(2.0, 1.9, 2.1), 0.2, 0.1, "cpu"), "")
            assert judge.known_speed(other, small) == (None, "it fails")
            assert len(times) == 2
    judge.known_speed(small, small)  # the control
    assert len(times) == 3


def test_a_stage_does_not_warn_again_of_a_part_of_the_samples(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = build(ShrinkSettings, {**UNTIMED, "max_drop": 0.01})
    with planned(load(DIGITS), settings) as found:
        found.judge.prepare(silent)
        assert len(caplog.records) == 2 and "can't decide a drop of 1%" in caplog.text
        measure = found.judge.measure
    assert measure is not None
    monkeypatch.setattr(stages, "prune_model", lambda *_, progress: measure.check(progress))
    with pytest.raises(AttributeError):  # nothing was pruned
        STAGES[1].run(Task(load(DIGITS), settings, silent))
    assert len(caplog.records) == 2
    measure.check(silent)  # the control
    assert len(caplog.records) == 4
