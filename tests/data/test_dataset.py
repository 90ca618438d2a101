from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from onnxprune.data import IGNORED, Data, Recipe, open_data, split
from tests.data.support import model, refused

VECTORS = model("float[N,1] x")


def numbered(count: int, **options: Any) -> Data:
    """Data whose samples hold their own index."""
    return open_data({"x": np.arange(count, dtype=np.float32)[:, None]}, VECTORS, **options)


def indices(data: Any) -> list[int]:
    return [int(v) for batch in data.batches(7) for v in batch.inputs["x"][:, 0]]


def test_a_seed_chooses_the_subset() -> None:
    chosen = indices(numbered(1000, limit=50, seed=3))
    assert chosen == indices(numbered(1000, limit=50, seed=3)) == sorted(set(chosen)) and len(chosen) == 50
    assert chosen != indices(numbered(1000, limit=50, seed=4))
    assert max(chosen) > 900  # not the first ones
    assert indices(numbered(10, limit=10)) == indices(numbered(10, limit=99)) == list(range(10))
    with refused("OP712"):
        numbered(10, limit=0)


@given(st.integers(2, 60), st.data())
def test_parts_of_a_split_never_overlap_and_miss_nothing(count: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, count - 1))
    rest, held = split(numbered(count), size, seed=data.draw(st.integers(0, 9)))
    assert len(held) == size
    assert sorted(indices(rest) + indices(held)) == list(range(count))


def test_splits_of_shares_subsets_and_streams() -> None:
    rest, held = split(numbered(1000, limit=40, seed=1), 0.25, seed=2)
    assert (len(rest), len(held)) == (30, 10)
    assert sorted(indices(rest) + indices(held)) == indices(numbered(1000, limit=40, seed=1))

    def stream() -> Iterator[Any]:
        for i in range(10):
            yield np.array([[0.0], [100.0], [200.0]]) + i

    rest, held = split(open_data(stream, VECTORS), 7)
    assert len(indices(held)) == 7 and not set(indices(rest)) & set(indices(held))
    for wrong in (0, 30, 1.0, 0.001):
        with refused("OP712", "a part would be empty"):
            split(open_data(stream, VECTORS), wrong)


def test_subsets_keep_the_order_asked_for() -> None:
    data = numbered(20)
    assert indices(data.subset([5, 2, 9])) == [5, 2, 9]
    assert indices(data.subset([5, 2, 9]).subset([2, 0])) == [9, 5]
    assert indices(data.subset(np.arange(3, 12))) == list(range(3, 12))
    for wrong in ([], [20], [-1]):
        with refused("OP712"):
            data.subset(wrong)


def labeled(labels: Any, recipe: str = "") -> Any:
    data = open_data(
        {"x": np.zeros((len(labels), 1), np.float32), "labels": labels}, VECTORS, recipe=Recipe.parse(recipe)
    )
    return next(data.batches(99)).labels


def test_labels_are_shifted_named_and_ignored() -> None:
    np.testing.assert_array_equal(labeled(np.array([0, 7], np.uint8), "label_offset=1"), [1, 8])
    np.testing.assert_array_equal(labeled(np.array([1, 10]), "label_offset=-1"), [0, 9])
    np.testing.assert_array_equal(labeled(np.array([[3, 255], [0, 1]]), "ignore=255"), [[3, IGNORED], [0, 1]])
    np.testing.assert_array_equal(labeled(np.array([-1, 4]), "ignore=-1 label_offset=1"), [IGNORED, 5])
    np.testing.assert_array_equal(labeled(np.array(["dog", "cat"]), "classes=cat,dog"), [1, 0])
    np.testing.assert_array_equal(labeled(np.array([True, False])), [1, 0])
    np.testing.assert_array_equal(labeled(np.array([0.5, 2])), [0.5, 2])


def test_labels_may_be_left_aside() -> None:
    assert labeled(np.array(["cat", "dog"]), "labels=none") is None
    given = {"x": np.zeros((2, 1)), "labels": np.array([0, 1])}
    assert open_data(given, VECTORS).labeled and not open_data(given, VECTORS, recipe=Recipe(labels="none")).labeled


@pytest.mark.parametrize(
    ("labels", "recipe", "code", "reason"),
    [
        (np.array([0, -3]), "", "OP708", "label -3.*sample 1.*ignore=-3"),
        (np.array([0, 2]), "label_offset=-1", "OP708", "label 0 with label_offset=-1 is no class.*sample 0"),
        (np.array([0.5, np.nan]), "", "OP707", "label isn't finite.*sample 1"),
        (np.array(["cat"]), "", "OP708", "labels are names.*classes="),
        (np.array(["cat", "doh"]), "classes=cat,dog", "OP708", "'doh' is not one.*sample 1.*did you mean dog"),
    ],
)
def test_labels_that_are_no_classes(labels: Any, recipe: str, code: str, reason: str) -> None:
    with refused(code, reason):
        labeled(labels, recipe)


def test_digits_and_their_parts() -> None:
    pytest.importorskip("sklearn", reason="needs the dev extra: scikit-learn")
    proto = model("float[N,1,8,8] image")
    sizes = {part: len(open_data(part, proto)) for part in ("digits", "digits:train", "digits:test")}
    assert sizes == {"digits": 1797, "digits:train": 1347, "digits:test": 450}
    (batch,) = open_data("digits", proto, limit=64).batches(64)
    assert batch.inputs["image"].min() == -1 and batch.inputs["image"].max() == 1
    with refused("OP701", "no part 'digits:val'"):
        open_data("digits:val", proto)


def test_inputs_that_are_no_tensors_of_numbers() -> None:
    proto = model("float[N,1] x")
    proto.graph.input[0].type.tensor_type.elem_type = 8  # a string
    with refused("OP706", "'x' isn't a tensor of numbers"):
        open_data({"x": np.zeros((1, 1))}, proto)
