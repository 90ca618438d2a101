"""What a model is for, by its outputs and labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune.data import open_data
from onnxprune.evaluation import evaluate, recognize
from onnxprune.settings import TaskSettings
from tests.data.support import model, refused
from tests.toolbox import run_once

RNG = np.random.default_rng(0)
N = 24


def task(shape: tuple[int, ...], labels: Any, body: str = "y = Identity(x)", **reading: Any) -> Any:
    x = RNG.standard_normal((N, *shape)).astype(np.float32)
    sizes = ",".join(["N", *map(str, shape)])
    proto = model(f"float[{sizes}] x", outputs=f"float[{sizes}] y", body=body)
    given = {"x": x} if labels is None else {"x": x, "labels": labels}
    return recognize(proto, open_data(given, proto, reading=TaskSettings(**reading)))


BITS = RNG.integers(0, 2, N)


@pytest.mark.parametrize(
    ("shape", "labels", "body", "expected"),
    [
        ((5,), RNG.integers(0, 5, N), "", "classification"),
        ((2,), BITS, "", "classification"),
        ((5, 4, 4), RNG.integers(0, 5, (N, 4, 4)), "", "segmentation"),
        ((1, 4, 4), RNG.integers(0, 2, (N, 4, 4)), "", "segmentation"),
        ((7, 5), RNG.integers(0, 5, (N, 7)), "", "classification"),
        ((1,), BITS, "", "binary"),
        ((1,), BITS.astype(np.float32), "", "binary"),
        ((1,), BITS[:, None], "Sigmoid", "binary"),
        ((1,), RNG.integers(0, 90, N), "", "regression"),
        ((5,), RNG.integers(0, 2, (N, 5)), "", "multilabel"),
        ((1,), RNG.standard_normal(N), "", "regression"),
        ((3,), RNG.standard_normal((N, 3)), "", "regression"),
        ((1,), None, "Sigmoid", "binary"),
        ((5,), None, "Sigmoid", "multilabel"),
        ((1,), None, "", "regression"),
        ((5,), None, "", "classification"),
        ((3,), None, "Tanh", "regression"),
        ((3,), RNG.integers(0, 3, N), "Tanh", "classification"),
        ((5, 4, 4), None, "", None),
    ],
)
def test_outputs_and_labels_tell_the_task(shape: tuple[int, ...], labels: Any, body: str, expected: str | None) -> None:
    found = task(shape, labels, f"y = {body or 'Identity'}(x)")
    assert found.name == expected and (found.labeled == (labels is not None))


def heads(body: str) -> Any:
    """A model with outputs a of 7 numbers and b of 3, and inputs for it."""
    weights = ", ".join(map(str, np.random.default_rng(1).standard_normal(21).round(3)))
    constant = f"w = Constant<value = float[7,3] {{{weights}}}>()\n {body}"
    proto = model("float[N,7] x", outputs="float[N,7] a, float[N,3] b", body=constant)
    return proto, np.random.default_rng(2).standard_normal((N, 7)).astype(np.float32)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("h = Add(x, x)\n y = Mul(h, c)", "regression"),  # angles in degrees
        ("h = MatMul(x, w)\n y = Div(h, c)", "classification"),  # a temperature
        ("h = MatMul(x, w)\n y = Add(h, c)", "classification"),
    ],
)
def test_a_few_scaled_numbers_are_no_scores(body: str, expected: str) -> None:
    eye = "1,0,0, 0,1,0, 0,0,1"
    known = f"c = Constant<value = float {{99}}>()\n w = Constant<value = float[3,3] {{{eye}}}>()\n {body}"
    assert task((3,), None, known).name == expected


FEATURES, BESIDE = "a = Identity(x)\n b = MatMul(a, w)", "b = MatMul(x, w)\n a = Identity(x)"


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("body", [FEATURES, BESIDE])
def test_of_several_outputs_the_one_that_labels_are_of_is_found(body: str, name: str) -> None:
    proto, x = heads(body)
    data = open_data({"x": x, "labels": run_once(proto, {"x": x})[name].argmax(axis=1)}, proto)
    assert recognize(proto, data).output == name
    assert evaluate(proto, data)["top1"].model.value == 1


def test_labels_beyond_all_outputs_are_refused() -> None:
    proto, x = heads(FEATURES)
    with refused("OP708", "beyond the model's 3 classes"):
        evaluate(proto, open_data({"x": x, "labels": np.arange(N)}, proto))


@pytest.mark.parametrize(("body", "output"), [(FEATURES, "b"), (BESIDE, None)])
def test_features_are_not_scores(body: str, output: str | None) -> None:
    """Without labels, or with labels that neither output goes with."""
    proto, x = heads(body)
    assert recognize(proto, open_data({"x": x}, proto)).output == output
    unlike = (run_once(proto, {"x": x})["b"].argmax(axis=1) + 1) % 3
    unlike = np.where(unlike == x.argmax(axis=1), (unlike + 1) % 3, unlike)
    assert recognize(proto, open_data({"x": x, "labels": unlike}, proto)).output == output


def test_vectors_of_length_one_are_embeddings() -> None:
    body = "y = LpNormalization(x)"
    for labels in (None, RNG.integers(0, 6, N)):
        assert task((6,), labels, body).name == "embedding"
    assert task((6,), RNG.integers(0, 6, N), body, task="classification").name == "classification"


@pytest.mark.parametrize(
    ("shape", "labels", "reading", "reason"),
    [
        ((5,), BITS, {"task": "binary"}, "binary needs one score.*has 5"),
        ((3,), RNG.standard_normal((N, 2)), {"task": "regression"}, "needs 3 labels for each sample, and there are 2"),
        ((1,), BITS, {"task": "classification"}, "no output has a score for each class"),
        ((5,), BITS, {"task": "ctc"}, "ctc needs scores"),
        ((5,), BITS, {"task": "detection"}, "how the outputs hold boxes isn't known"),
        ((5,), BITS, {"postprocess": lambda outputs: outputs["y"]}, "needs to know the task"),
    ],
)
def test_a_task_that_does_not_fit_is_refused(
    shape: tuple[int, ...], labels: Any, reading: dict[str, Any], reason: str
) -> None:
    with refused("OP711", reason):
        task(shape, labels, **reading)


def test_a_later_label_that_contradicts_the_task_is_refused() -> None:
    labels = np.r_[np.zeros(40, int), 7]
    x = RNG.standard_normal((41, 1)).astype(np.float32)
    proto = model("float[N,1] x", outputs="float[N,1] y", body="y = Identity(x)")
    with refused("OP708", "label 7 is neither 0 nor 1.*sample 40.*regression"):
        evaluate(proto, open_data({"x": x, "labels": labels}, proto))
    numbers = open_data({"x": x, "labels": labels}, proto, reading=TaskSettings(task="regression"))
    assert evaluate(proto, numbers)["mae"].model.value == pytest.approx(np.abs(x[:, 0] - labels).mean())


def test_a_function_can_make_the_output() -> None:
    labels = BITS
    x = RNG.standard_normal((N, 2, 3)).astype(np.float32)
    proto = model("float[N,2,3] x", outputs="float[N,2,3] y", body="y = Identity(x)")
    reading = TaskSettings(task="binary", postprocess=lambda outputs: outputs["y"].mean(axis=(1, 2)))
    found = evaluate(proto, open_data({"x": x, "labels": labels}, proto, reading=reading))
    assert found["accuracy"].model.value == pytest.approx(np.mean((x.mean(axis=(1, 2)) > 0) == labels))
    broken = TaskSettings(task="binary", postprocess=lambda outputs: outputs["z"])
    with refused("OP710", "KeyError"):
        evaluate(proto, open_data({"x": x, "labels": labels}, proto, reading=broken))


@pytest.mark.parametrize("name", ["pooled", "embedding"])
@pytest.mark.parametrize("labeled", [True, False])
def test_the_classes_behind_an_embedding_are_found(name: str, labeled: bool) -> None:
    """An encoder gives its hidden states, an embedding, and scores of classes that are computed from it."""
    rng = np.random.default_rng(0)
    table, w = rng.standard_normal((20, 32)).astype(np.float32), rng.standard_normal((32, 5)).astype(np.float32)
    proto = model(
        "int64[N,T] ids",
        outputs=f"float[N,T,32] hidden, float[N,32] {name}, float[N,5] logits",
        body=f"""
            hidden = Gather(table, ids)
            {name} = ReduceMean<axes = [1], keepdims = 0>(hidden)
            logits = MatMul({name}, w)
        """,
    )
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for a, n in ((table, "table"), (w, "w")))
    ids = rng.integers(0, 20, (50, 7))
    right = (table[ids].mean(axis=1) @ w).argmax(axis=1)
    data = open_data({"ids": ids, **({"labels": right} if labeled else {})}, proto)
    found = evaluate(proto, data, against=proto)
    assert found.task == "classification" and "'logits'" in found.recognized
    assert found["top1" if labeled else "agreement"].model.value == 1.0


def test_two_heads_are_a_question_for_the_user() -> None:
    """Neither of two heads comes before the other: the names to choose from are told."""
    proto = model(
        "float[N,8] x",
        outputs="float[N,5] age, float[N,3] mood",
        body="i = Constant<value_ints = [0]>()\nj = Constant<value_ints = [5]>()\nk = Constant<value_ints = [8]>()\n"
        "one = Constant<value_ints = [1]>()\nage = Slice(x, i, j, one)\nmood = Slice(x, j, k, one)",
    )
    x = np.random.default_rng(0).standard_normal((20, 8)).astype(np.float32)
    data = open_data({"x": x, "labels": np.arange(20) % 3}, proto)
    assert "age, mood" in evaluate(proto, data, against=proto).recognized
    named = open_data({"x": x, "labels": x[:, 5:].argmax(axis=1)}, proto, reading=TaskSettings(output_name="mood"))
    assert evaluate(proto, named)["top1"].model.value == 1.0
