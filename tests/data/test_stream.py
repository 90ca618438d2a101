from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxprune.data import open_data
from tests.data.support import model, refused

VECTORS = model("float[N,2] x")
X = np.arange(40, dtype=np.float32).reshape(20, 2)
Y = np.arange(20) % 4


def pairs(*sizes: int) -> Callable[[], Iterator[Any]]:
    def batches() -> Iterator[Any]:
        start = 0
        for size in sizes:
            yield X[start : start + size], Y[start : start + size]
            start += size

    return batches


def test_batches_are_recut_in_order() -> None:
    data = open_data(pairs(3, 9, 1, 7), VECTORS)
    for size in (1, 4, 7, 20, 99):
        batches = list(data.batches(size))
        assert [b.count for b in batches] == [size] * (20 // size) + ([20 % size] if 20 % size else [])
        np.testing.assert_array_equal(np.concatenate([b.inputs["x"] for b in batches]), X)
        np.testing.assert_array_equal(np.concatenate([b.labels for b in batches if b.labels is not None]), Y)


def test_length_is_known_after_a_pass() -> None:
    data = open_data(pairs(12, 8), VECTORS)
    assert data.known_length is None
    assert len(data) == 20 and data.known_length == 20 and data.labeled


@pytest.mark.parametrize("form", ["dictionary", "pair", "list"])
def test_forms_of_a_batch(form: str) -> None:
    forms: dict[str, Any] = {"dictionary": {"x": X, "labels": Y}, "pair": (X, Y), "list": X.tolist()}
    data = open_data(lambda: iter([forms[form]]), VECTORS)
    (batch,) = data.batches(32)
    np.testing.assert_array_equal(batch.inputs["x"], X)
    assert (batch.labels is None) == (form == "list")


def test_several_inputs_by_name_with_labels_beside() -> None:
    proto = model("float[N,2] a; int64[N] b")
    data = open_data(lambda: iter([({"a": X, "b": Y}, Y)]), proto)
    (batch,) = data.batches(32)
    assert set(batch.inputs) == {"a", "b"} and batch.labels is not None


def test_inputs_without_a_common_axis_are_one_sample() -> None:
    proto = model("float[1,2] x; float[2,1] state")
    state = np.zeros((2, 1), np.float32)
    data = open_data(lambda: iter([{"x": X[:1], "state": state, "labels": [3]}] * 3), proto)
    batches = list(data.batches(8))
    assert len(data) == 3 and [b.count for b in batches] == [1, 1, 1] and batches[0].whole


def test_a_limit_stops_an_endless_function() -> None:
    seen: list[int] = []

    def endless() -> Iterator[Any]:
        for i in count():
            seen.append(i)
            yield X[:3] + i

    data = open_data(endless, VECTORS, limit=7)
    assert len(data) == 7 and [b.count for b in data.batches(5)] == [5, 2]
    assert max(seen) == 2


def test_subsets_come_in_the_order_of_the_stream() -> None:
    part = open_data(pairs(3, 9, 1, 7), VECTORS).subset([19, 2, 3, 11])
    assert len(part) == 4
    np.testing.assert_array_equal(np.concatenate([b.inputs["x"] for b in part.batches(3)]), X[[2, 3, 11, 19]])
    np.testing.assert_array_equal(next(part.subset([3, 0]).batches(9)).inputs["x"], X[[2, 19]])


def test_a_subset_reads_no_further_than_it_must() -> None:
    def fails_late() -> Iterator[Any]:
        yield X[:10]
        yield X[10:]
        raise AssertionError("read too far")

    part = open_data(fails_late, VECTORS, limit=20).subset([1, 12])
    np.testing.assert_array_equal(next(part.batches(2)).inputs["x"], X[[1, 12]])


def test_modules_are_imported_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loader_under_test.py").write_text(
        "import numpy as np\n"
        "def batches():\n    yield np.ones((2, 2), np.float32), [0, 1]\n"
        "ready = [np.zeros((3, 2), np.float32)]\n"
        "once = iter(ready)\n"
        "class Loaders:\n    test = staticmethod(batches)\n"
        "number = 3\n"
        "def broken():\n    yield np.ones((1, 2), np.float32)\n    raise KeyError('lost')\n"
    )
    (tmp_path / "faulty_under_test.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name, size in (("batches", 2), ("ready", 3), ("Loaders.test", 2)):
        assert len(open_data(f"loader_under_test:{name}", VECTORS)) == size
    for name, reason in (
        ("loader_under_test:missing", "AttributeError"),
        ("loader_under_test:number", "neither a function nor a collection but a int"),
        ("loader_under_test:once", "neither a function nor a collection"),
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("faulty_under_test:f", "ZeroDivisionError"),
    ):
        with refused("OP710", reason):
            open_data(name, VECTORS)
    with refused("OP710", r"KeyError: 'lost'.*loader_under_test:broken"):
        list(open_data("loader_under_test:broken", VECTORS).batches(2))


@pytest.mark.parametrize(
    ("given", "code", "reason"),
    [
        ([], "OP702", "no batches"),
        ([X[:0]], "OP702", "empty batch"),
        (["words"], "OP706", r"doesn't take an array \[\]"),
        ([X.astype(str)], "OP706", "doesn't take <U"),
        ([object()], "OP710", "isn't an array of numbers"),
        ([{"a": X, "b": X}], "OP706", "no array for input"),
        ([(X, Y[:3])], "OP708", r"a batch of 20 has labels of shape \[3\]"),
        ([(X, 3)], "OP708", r"labels of shape \[\]"),
        ([[[1, 2], [3]]], "OP710", "ValueError"),
        ([X, X.astype(np.float64)], "OP706", "batches differ|comes after"),
        ([X[:3], (X[:3], Y[:3])], "OP706", "only some have labels"),
        ([X[:3], X[:3, :1]], "OP706", "batches differ in shape"),
    ],
)
def test_what_is_no_batch_is_refused(given: list[Any], code: str, reason: str) -> None:
    with refused(code, reason):
        list(open_data(lambda: given, VECTORS).batches(64))


def test_a_function_that_cannot_be_called_again_is_noticed() -> None:
    once = iter([X])
    data = open_data(lambda: once, VECTORS)
    with refused("OP702", "yields no batches"):
        list(data.batches(4))
