from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from onnxprune.data import Recipe, open_data, split
from onnxprune.errors import OnnxPruneError
from tests.data.support import model, refused

# The mean of the numbers that the mask keeps, and the sum of all, padding included.
MASKED = model(
    "int64[N,T] input_ids; int64[N,T] attention_mask; int64[N,T] token_type_ids",
    outputs="float[N] mean, float[N] sum",
    body="""
        kept = Mul(input_ids, attention_mask)
        typed = Add(kept, token_type_ids)
        one = Constant<value_ints = [1]>()
        total = ReduceSum<keepdims = 0>(typed, one)
        count = ReduceSum<keepdims = 0>(attention_mask, one)
        total_f = Cast<to = 1>(total)
        count_f = Cast<to = 1>(count)
        mean = Div(total_f, count_f)
        all = ReduceSum<keepdims = 0>(input_ids, one)
        sum = Cast<to = 1>(all)
    """,
)
PLAIN = model("int64[N,T] input_ids")
ROWS = [[7, 2, 9], [4], [5, 5, 5, 1], [8, 6]]


def run(proto: Any, batch: Any) -> list[Any]:
    opened = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(opened.run(None, dict(batch.inputs)))


def lines(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def flat(path: Path, name: str = "input_ids", **more: Any) -> Path:
    np.savez(path, **{name: np.concatenate(ROWS)}, lengths=[len(r) for r in ROWS], **more)
    return path


@pytest.mark.parametrize("form", ["jsonl", "flat", "filled", "lists"])
def test_a_mask_hides_the_padding(form: str, tmp_path: Path) -> None:
    spec: Any
    if form == "jsonl":
        spec = lines(tmp_path / "x.jsonl", [{"input_ids": row, "label": i} for i, row in enumerate(ROWS)])
    elif form == "flat":
        spec = flat(tmp_path / "x.npz", labels=np.arange(4))
    elif form == "filled":
        filled = np.full((4, 6), 99)
        for to, row in zip(filled, ROWS, strict=True):
            to[: len(row)] = row
        spec = tmp_path / "x.npz"
        np.savez(spec, input_ids=filled, input_ids_lengths=[len(r) for r in ROWS], labels=np.arange(4))
    else:
        spec = {"input_ids": ROWS, "labels": np.arange(4)}
    data = open_data(spec, MASKED)
    batches = list(data.batches(3))
    assert [batch.count for batch in batches] == [3, 1]
    assert batches[0].inputs["input_ids"].tolist() == [[7, 2, 9, 0], [4, 0, 0, 0], [5, 5, 5, 1]]
    assert batches[0].inputs["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]]
    means = np.concatenate([run(MASKED, batch)[0] for batch in batches])
    np.testing.assert_allclose(means, [np.mean(row) for row in ROWS])
    np.testing.assert_array_equal(np.concatenate([b.labels for b in batches if b.labels is not None]), np.arange(4))


@pytest.mark.parametrize("form", ["jsonl", "flat"])
def test_without_a_mask_only_equal_lengths_share_a_batch(form: str, tmp_path: Path) -> None:
    records = [{"input_ids": row, "label": i} for i, row in enumerate(ROWS)]
    source = (
        lines(tmp_path / "x.jsonl", [*records, *records])
        if form == "jsonl"
        else {"input_ids": ROWS + ROWS, "labels": [0, 1, 2, 3] * 2}
    )
    data = open_data(source, PLAIN)
    batches = list(data.batches(8))
    assert [batch.inputs["input_ids"].shape for batch in batches] == [(2, 1), (2, 2), (2, 3), (2, 4)]
    for batch in batches:
        assert batch.labels is not None
        for ids, label in zip(batch.inputs["input_ids"], batch.labels, strict=True):
            assert ids.tolist() == ROWS[label]
    rest, held = split(data, 3)
    assert sum(b.count for b in rest.batches(8)) == 5 and sum(b.count for b in held.batches(8)) == 3
    assert "line 2" in data.name(0) or form == "flat"


def test_lengths_that_the_model_fixes_are_cut_and_filled(tmp_path: Path) -> None:
    (batch,) = open_data(flat(tmp_path / "x.npz"), model("int64[N,3] input_ids; int64[N,3] attention_mask")).batches(9)
    assert batch.inputs["input_ids"].tolist() == [[7, 2, 9], [4, 0, 0], [5, 5, 5], [8, 6, 0]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 1], [1, 1, 0]]


def test_sound_of_different_length_tells_its_length(tmp_path: Path) -> None:
    proto = model("float[N,T,2] features; int64[N] feature_lens")
    sound = [np.ones((n, 2), np.float32) * n for n in (3, 1, 2)]
    (batch,) = open_data({"features": [row.tolist() for row in sound]}, proto).batches(9)
    assert batch.inputs["features"].shape == (3, 3, 2)
    assert batch.inputs["feature_lens"].tolist() == [3, 1, 2]
    np.testing.assert_array_equal(batch.inputs["features"][1], [[1, 1], [0, 0], [0, 0]])


def test_caches_are_empty_and_positions_count() -> None:
    proto = model("int64[N,T] input_ids; int64[N,M] attention_mask; int64[N,T] position_ids; float[N,2,P,4] past_0_key")
    (batch,) = open_data({"input_ids": ROWS}, proto).batches(9)
    assert batch.inputs["past_0_key"].shape == (4, 2, 0, 4)
    assert batch.inputs["position_ids"].tolist() == [[0, 1, 2, 2], [0, 0, 0, 0], [0, 1, 2, 3], [0, 1, 1, 1]]


def test_labels_of_positions_are_filled_up_and_ignored(tmp_path: Path) -> None:
    path = lines(tmp_path / "x.jsonl", [{"input_ids": row, "tags": [1] * len(row)} for row in ROWS])
    (batch,) = open_data(path, MASKED, recipe=Recipe(labels="tags")).batches(9)
    assert batch.labels is not None
    assert batch.labels.tolist() == [[1, 1, 1, -1], [1, -1, -1, -1], [1, 1, 1, 1], [1, 1, -1, -1]]


@pytest.mark.parametrize(
    ("records", "code", "match"),
    [
        ([{"input_ids": [1, 2]}, {"input_ids": "text"}], "OP706", "isn't an array"),
        ([{"input_ids": [1, 2]}, {"input_ids": [[1], [2, 3]]}], "OP706", "line 2.*differ in length"),
        ([{"input_ids": [1, 2]}, {"other": 1}], "OP706", "line 2"),
        ([{"input_ids": [1.5]}], "OP706", "as they are"),
        ([{"input_ids": [1], "label": 1}, {"input_ids": [1]}], "OP708", "line 2"),
        ([{"x": [1]}, [1]], "OP701", "line 2"),
    ],
)
def test_bad_lists_are_refused_by_line(records: list[Any], code: str, match: str, tmp_path: Path) -> None:
    with refused(code, match):
        list(open_data(lines(tmp_path / "x.jsonl", records), MASKED).batches(9))


def test_lengths_that_dont_add_up_are_refused() -> None:
    with refused("OP706", "adds up to 4 in 2 samples"):
        open_data({"input_ids": np.arange(5), "lengths": np.array([1, 3])}, MASKED)


def test_an_input_of_lengths_is_no_table_of_them() -> None:
    proto = model("float[N,T] x; int64[N] lengths")
    (batch,) = open_data({"x": np.ones((2, 3), np.float32), "lengths": np.array([3, 1])}, proto).batches(9)
    assert batch.inputs["x"].shape == (2, 3) and batch.inputs["lengths"].tolist() == [3, 1]


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_damaged_files_are_refused_or_read(suffix: str, tmp_path: Path) -> None:
    """Whatever is wrong with a file, the answer is an error of ours, or samples."""
    rng, path = np.random.default_rng(0), tmp_path / f"x.{suffix}"
    proto = MASKED if suffix == "jsonl" else model("int64[N,T] tokens")
    good = [json.dumps({"input_ids": row, "label": 1}) for row in ROWS] if suffix == "jsonl" else ["a,label", "1,2"]
    outcomes = set()
    for _ in range(150):
        content = bytearray("\n".join(good).encode())
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(len(content)))
            content[at : at + int(rng.integers(0, 3))] = rng.bytes(int(rng.integers(0, 4)))
        path.write_bytes(content)
        try:
            outcomes.add(sum(batch.count for batch in open_data(path, proto).batches(2)))
        except OnnxPruneError as error:
            outcomes.add(error.code)
    assert len(outcomes) > 1
