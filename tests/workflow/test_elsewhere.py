"""`shrink --also`: the result on another execution provider, by outputs and time; what isn't there is noted."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import onnxruntime
import pytest
from rich.console import Console

import onnxprune as op
from onnxprune.benchmarking import speed
from onnxprune.errors import ModelError, UsageError
from onnxprune.model.file import load
from onnxprune.report.pipeline import result_tables
from onnxprune.runtime.provider import parse_provider
from onnxprune.workflow import elsewhere as module
from onnxprune.workflow.elsewhere import Elsewhere, elsewhere
from tests.workflow.test_pipeline import DIGITS, LIGHT, UNTIMED

PROVIDERS = onnxruntime.get_available_providers()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "SECONDS", 0.01)
    monkeypatch.setattr(speed, "_REPEATS", 1)


def on(name: str, *, batch: int = 8) -> Elsewhere:
    proto, feeds = load(DIGITS).proto, {"image": np.random.default_rng(0).random((batch, 1, 8, 8), np.float32)}
    return elsewhere(parse_provider(name), proto, proto, [feeds, feeds], feeds, threads=1)


def test_the_cpu_agrees_with_itself() -> None:
    found = on("cpu")
    assert (found.difference, found.agreement, found.samples, found.failure) == (0.0, 1.0, 16, "")
    assert found.speed is not None and found.speed.provider == "cpu" and min(found.speed.before, found.speed.after) > 0


def test_other_answers_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []

    def run(opened: Any, feeds: Any) -> dict[str, Any]:
        """Answer there, then here: the first of four samples gets another class, by a fifth of the largest value."""
        runs.append(1)
        scores = np.array([[5.0, 4.5], [1, 0], [0, 1], [2, 1]])
        return {"scores": scores - np.array([[1.0, 0], [0, 0], [0, 0], [0, 0]]) * (len(runs) % 2)}

    monkeypatch.setattr(module, "run", run)
    found = on("cpu", batch=4)
    assert found.difference == pytest.approx(0.2) and found.agreement == 0.75
    broken = {"scores": np.array([[np.nan, 1.0]])}
    monkeypatch.setattr(
        module, "run", lambda *_: broken if runs.append(1) or len(runs) % 2 else {"scores": np.ones((1, 2))}
    )
    assert on("cpu").difference == float("inf")


def test_a_model_that_it_refuses_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(*_: Any) -> Any:
        raise ModelError("OP122", "it has no such operator")

    monkeypatch.setattr(module, "run", refusing)
    assert on("cpu") == Elsewhere("cpu", "it has no such operator")


@pytest.mark.skipif("OpenVINOExecutionProvider" in PROVIDERS, reason="OpenVINO is installed")
def test_what_isn_t_installed_is_noted() -> None:
    found = op.shrink(DIGITS, timed=False, stages=("clean",), options=LIGHT, also=("openvino", "cpu"))
    assert [e.provider for e in found.also] == ["openvino", "cpu"] and found.also[1].samples == 1
    screen = Console(width=300, file=io.StringIO())
    for part in result_tables(found):
        screen.print(part)
    text = " ".join(screen.file.getvalue().split())  # type: ignore[attr-defined]
    assert "on openvino: not run: OpenVINOExecutionProvider isn't here" in text
    assert "same top class as on the CPU on 100.0%, outputs differ from the CPU's by at most 0 of" in text


@pytest.mark.skipif("OpenVINOExecutionProvider" not in PROVIDERS, reason="needs onnxruntime-openvino")
def test_openvino_answers_alike() -> None:
    found = op.shrink(DIGITS, **UNTIMED, stages=("clean", "quantize"), max_drop=0.05, also=("openvino",))
    (there,) = found.also
    assert not there.failure and there.speed is not None and there.samples == 64
    assert there.agreement is not None and there.agreement > 0.9 and (there.difference or 0) < 0.1


def test_a_misspelt_provider_is_refused_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.workflow.pipeline.analyze", None)
    with pytest.raises(UsageError, match=r"OP608[\s\S]*did you mean openvino"):
        op.shrink(DIGITS, also=("opnvino",))
