"""What counts as an answer that is kept."""

from __future__ import annotations

import pytest

from onnxprune.evaluation import Estimate, Evaluation, Score
from onnxprune.evaluation.fidelity import fidelity


def estimate(value: float) -> Estimate:
    return Estimate(value, value, value)


def evaluation(*scores: tuple[str, float], not_finite: int = 0, task: str = "classification") -> Evaluation:
    made = tuple(Score(name, f"out{i}", name != "nmse", estimate(value)) for i, (name, value) in enumerate(scores))
    return Evaluation(10, made, not_finite, 0.95, 10, 0, (), task=task)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("metric", "value", "answers"),
    [
        ("agreement", 1.0, "kept"),
        ("agreement", 0.97, "kept"),
        ("agreement", 0.96, "partly kept"),
        ("agreement", 0.85, "partly kept"),
        ("agreement", 0.84, "not kept"),
        ("boxes_original", 0.98, "kept"),
        ("cer_original", 0.02, "kept"),
        ("cer_original", 0.2, "not kept"),
        ("neighbors", 0.9, "partly kept"),
        ("nmse", 0.0099, "kept"),  # an error of 10 % of the deviation
        ("nmse", 0.04, "partly kept"),
        ("nmse", 0.1, "not kept"),
    ],
)
def test_limits(metric: str, value: float, answers: str) -> None:
    found = fidelity(evaluation((metric, value)))
    assert found is not None and found.answers == answers
    assert found.value.value == pytest.approx(value**0.5 if metric == "nmse" else value)


def test_the_terms_of_the_task_come_first_and_the_worst_output_counts() -> None:
    found = fidelity(evaluation(("nmse", 0.5), ("agreement", 0.99), ("cosine", 0.9)))
    assert found is not None and found.metric == "agreement"
    found = fidelity(evaluation(("nmse", 0.01), ("nmse", 0.25), ("nmse", 0.0)))
    assert found is not None and (found.output, found.value.value) == ("out1", 0.5)
    found = fidelity(evaluation(("boxes_original", float("nan")), ("nmse", 0.0)))  # there are no boxes
    assert found is not None and found.metric == "nmse"


def test_outputs_that_are_not_finite_are_not_kept() -> None:
    found = fidelity(evaluation(("agreement", 1.0), not_finite=1))
    assert found is not None and found.answers == "not kept"


def test_nothing_measured_against_the_original() -> None:
    assert fidelity(evaluation(("top1", 1.0))) is None


def test_accuracy_by_labels_goes_along() -> None:
    labels = Score("top1", None, True, estimate(0.9), estimate(0.95), estimate(-0.05))
    made = evaluation(("agreement", 0.99))
    found = fidelity(Evaluation(10, (labels, *made.scores), 0, 0.95, 10, 0, ()))
    assert found is not None and found.accuracy == labels
