"""The lines that a run ends in: words for every case, never by color alone."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from onnxprune.benchmarking.speed import Speed
from onnxprune.evaluation import Estimate, Score
from onnxprune.evaluation.fidelity import Fidelity
from onnxprune.report.evaluation import _cells
from onnxprune.report.layout import change, percent
from onnxprune.report.outcome import outcome_tables
from onnxprune.workflow.outcome import Outcome

CLOSE = Fidelity("agreement", None, Estimate(0.98, 0.95, 0.99), 200, "kept", "classification")
FAST = Speed(Estimate(1.5, 1.4, 1.6), 0.003, 0.002, "cpu")
FOUND = Outcome(FAST, "", CLOSE, "", "held out", False, True, False)


def lines(found: Outcome, files: tuple[int, int] = (2000, 1000), *, color: bool = False) -> str:
    console = Console(width=300, force_terminal=color, color_system="standard" if color else None)
    with console.capture() as captured:
        for part in outcome_tables(found, files):
            console.print(part)
    text = captured.get()
    return text if color else " ".join(text.split())


def test_all_is_well() -> None:
    assert lines(FOUND) == (
        "1.50x as fast (1.40 to 1.60), 3.00 ms → 2.00 ms on cpu; file 50.0 % smaller: 2.00 kB → 1.00 kB "
        "answers kept: same top class as the original on 98.0 % (95.0 to 99.0) of 200 held-out samples"
    )


def test_answers_that_only_calibration_kept_are_told() -> None:
    """Beyond chance only: intervals that overlap say nothing."""
    other = replace(CLOSE, value=Estimate(0.75, 0.7, 0.8), answers="not kept")
    fitted = lines(replace(FOUND, fidelity=other, calibrated=replace(CLOSE, samples=100)))
    assert fitted.endswith(
        "the repair doesn't generalize: same top class as the original on 98.0 % (95.0 to 99.0) of 100 samples that "
        "calibrated it. Give more samples, or remove less"
    )
    near = replace(CLOSE, value=Estimate(0.99, 0.97, 1.0))
    assert "generalize" not in lines(replace(FOUND, calibrated=near))
    errors = replace(CLOSE, metric="nmse", value=Estimate(0.3, 0.25, 0.35))
    better, worse = (replace(errors, value=Estimate(v, v - 0.05, v + 0.05)) for v in (0.1, 0.5))
    assert "generalize" in lines(replace(FOUND, fidelity=errors, calibrated=better))
    assert "generalize" not in lines(replace(FOUND, fidelity=errors, calibrated=worse))


@pytest.mark.parametrize(
    ("speedup", "said"),
    [
        (Estimate(0.9, 0.85, 0.95), "slower: 0.90x as fast (0.85 to 0.95)"),
        (Estimate(1.02, 0.98, 1.06), "not faster: 1.02x as fast (0.98 to 1.06)"),
        (Estimate(1.15, 0.86, 1.28), "speed unclear: 1.15x as fast (0.86 to 1.28)"),
        (Estimate(1.2, 0.7, 1.9), "speed unclear: 1.20x as fast (0.70 to 1.90, disturbed by other processes)"),
        (Estimate(2.0, 1.2, 3.0), "2.00x as fast (1.20 to 3.00, disturbed by other processes)"),
    ],
)
def test_speed(speedup: Estimate, said: str) -> None:
    assert lines(replace(FOUND, speed=replace(FAST, speedup=speedup))).startswith(said)


def test_medians_that_contradict_the_rounds_decide_nothing() -> None:
    """Few rounds on a busy machine: each pair was faster, and the medians say slower."""
    found = replace(FOUND, speed=replace(FAST, speedup=Estimate(1.05, 1.05, 1.05), before=0.356, after=0.378))
    assert lines(found).startswith("speed unclear: 1.05x as fast (1.05 to 1.05), 356 ms → 378 ms on cpu")


def test_what_was_not_measured_is_said() -> None:
    text = lines(replace(FOUND, speed=None, untimed="no device", fidelity=None, uncompared="no output"))
    assert text.startswith("speed not measured (no device); file 50.0 % smaller")
    assert text.endswith("answers not compared (no output)")
    assert "file as large as before" in lines(FOUND, (10, 10)) and "file 10.0 % larger" in lines(FOUND, (10, 11))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"answers": "partly kept"}, "answers partly kept: same top class .* Remove less, or train it: `finetune`"),
        ({"answers": "not kept"}, "answers not kept: same top class .* Remove less, or train it: `finetune`"),
        ({"task": "segmentation"}, r"same class as the original at 98.0 % \(95.0 to 99.0\) of the positions of 200 "),
        (
            {"metric": "nmse", "output": "boxes"},
            "output boxes differs from the original's by 98.0 % .* of its standard deviation",
        ),
        (
            {"metric": "boxes_original", "task": "detection"},
            "98.0 % .* of the boxes match the original's, on 200 held-out",
        ),
    ],
)
def test_answers(changes: dict[str, Any], said: str) -> None:
    assert re.search(said, lines(replace(FOUND, fidelity=replace(CLOSE, **changes))))


def test_trained_models_are_not_told_to_train() -> None:
    lost = replace(CLOSE, answers="not kept")
    assert lines(replace(FOUND, fidelity=lost, trained=True)).endswith("held-out samples. Remove less")


def test_without_data_it_is_said_loudly_however_close_the_outputs_are() -> None:
    text = lines(replace(FOUND, judged="generated"))
    assert "accuracy not kept: same top class" in text and "of 200 generated inputs" in text
    assert text.endswith("To keep it, give inputs with `data`; labels are optional.")


def test_labels_and_unchanged_models() -> None:
    labels = Score("top1", None, True, Estimate(0.9, 0, 1), Estimate(0.95, 0, 1))
    assert lines(replace(FOUND, fidelity=replace(CLOSE, accuracy=labels))).endswith("; top-1 95.0 % → 90.0 %")
    assert lines(replace(FOUND, unchanged=True)).endswith(
        "answers kept: nothing was removed, so the model computes the same"
    )


def test_colors_are_for_terminals_only() -> None:
    for answers, code in (("kept", "32"), ("partly kept", "33"), ("not kept", "31")):
        found = replace(FOUND, fidelity=replace(CLOSE, answers=answers))
        text = lines(found, color=True)
        assert re.search(rf"\x1b\[(1;)?{code}manswers {answers}", text)
        assert Text.from_ansi(text).plain.split() == lines(found).split()


def test_zero_has_no_sign() -> None:
    score = Score("top1", None, True, Estimate(1, 1, 1))
    assert _cells(Estimate(-0.0, -1e-9, 0.0), score, "+") == ("+0.0 pt", "+0.0 to +0.0")
    assert _cells(Estimate(-0.0, -0.0, 0.5), replace(score, share=False), "+") == ("+0", "+0 to +0.5")
    assert _cells(Estimate(-0.02, -0.1, -0.01), score, "+") == ("-2.0 pt", "-10.0 to -1.0")
    assert percent(-0.0) == "0.0 %" and change(5, 5) == "0.0 %" and change(10, 9) == "-10.0 %"
