from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxprune.data import Batch, Data, Recipe, open_data
from onnxprune.data.archive import Archive
from onnxprune.data.npy import map_npy
from onnxprune.evaluation.runner import Runner
from tests.data.support import model, npy, picture, refused, zipped

VECTORS = model("float[N,4] x")
X = np.random.default_rng(0).standard_normal((11, 4)).astype(np.float32)
Y = np.arange(11) % 3


def all_of(data: Data, size: int = 4) -> tuple[dict[str, NDArray[Any]], NDArray[Any] | None]:
    batches: list[Batch] = list(data.batches(size))
    inputs = {n: np.concatenate([b.inputs[n] for b in batches]) for n in batches[0].inputs}
    labels = [b.labels for b in batches if b.labels is not None]
    return inputs, np.concatenate(labels) if labels else None


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_is_mapped_whether_packed_or_not(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "d.npz", x=X, labels=Y)
    data = open_data(tmp_path / "d.npz", VECTORS)
    inputs, labels = all_of(data)
    np.testing.assert_array_equal(inputs["x"], X)
    np.testing.assert_array_equal(labels, Y)
    assert len(data) == data.known_length == 11 and data.labeled
    assert isinstance(Archive(tmp_path / "d.npz").array("x.npy"), np.memmap)


@pytest.mark.parametrize("array", [np.asfortranarray(X), X.astype(">f4"), X.astype(np.float64), X[:, ::-1]])
def test_order_of_axes_and_bytes_and_precision_do_not_matter(tmp_path: Path, array: NDArray[Any]) -> None:
    np.savez(tmp_path / "d.npz", x=array)
    inputs, labels = all_of(open_data(tmp_path / "d.npz", VECTORS))
    np.testing.assert_array_equal(inputs["x"], array.astype(np.float32))
    assert labels is None and inputs["x"].dtype.isnative


def test_a_folder_of_npy_files_and_a_single_one(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    inputs, labels = all_of(open_data(tmp_path, VECTORS))
    np.testing.assert_array_equal(inputs["x"], X)
    np.testing.assert_array_equal(labels, Y)
    inputs, labels = all_of(open_data(tmp_path / "x.npy", VECTORS))
    np.testing.assert_array_equal(inputs["x"], X)
    assert labels is None


@pytest.mark.parametrize("name", ["x", "X", "images", "data", "input", "whatever"])
def test_common_names_or_the_only_array_serve_a_single_input(name: str) -> None:
    np.testing.assert_array_equal(all_of(open_data({name: X, "labels": Y}, VECTORS))[0]["x"], X)


def test_names_with_signs_that_files_cannot_have() -> None:
    proto = model("float[N,4] first; float[N,2] second")
    proto.graph.input[0].name, proto.graph.input[1].name = "serving:0", "b/c"
    proto.graph.node[0].input[0], proto.graph.node[1].input[0] = "serving:0", "b/c"
    inputs, _ = all_of(open_data({"serving_0": X, "b_c": X[:, :2], "spare": X}, proto))
    np.testing.assert_array_equal(inputs["serving:0"], X)
    np.testing.assert_array_equal(inputs["b/c"], X[:, :2])


def test_an_input_named_like_labels_gets_its_array() -> None:
    inputs, labels = all_of(open_data({"x": X, "y": X, "label": Y}, model("float[N,4] x; float[N,4] y")))
    np.testing.assert_array_equal(inputs["y"], X)
    np.testing.assert_array_equal(labels, Y)


def test_unused_arrays_are_said() -> None:
    assert open_data({"x": X, "reference": Y}, VECTORS).notes == ("not used: reference",)


def test_a_missing_array_is_named_with_those_there_are() -> None:
    with refused("OP706", r"no array for input 'b' \[\?x2\] float32.*the arrays are: a, c"):
        open_data({"a": X, "c": X}, model("float[N,4] a; float[N,2] b"))
    with refused("OP706", "no array for input"):
        open_data({"p": X, "q": X}, VECTORS)


def test_lengths_must_agree() -> None:
    with refused("OP706", "different numbers of samples: 'a' 11, 'b' 10"):
        open_data({"a": X, "b": X[:10]}, model("float[N,4] a; float[N,4] b"))
    with refused("OP708", "10 labels for 11 samples"):
        open_data({"x": X, "y": Y[:10]}, VECTORS)


def test_a_fixed_batch_size_is_kept() -> None:
    data = open_data({"x": X}, model("float[3,4] x"))
    assert [b.count for b in data.batches(8)] == [3, 3, 3, 2]


def test_scalars_hold_for_all_samples() -> None:
    proto = model("float[N,4] x; int64 rate")
    (first, *_) = open_data({"x": X, "rate": np.array(16000)}, proto).batches(4)
    assert first.inputs["rate"].shape == () and first.count == 4


def test_samples_that_are_all_a_model_takes_come_singly() -> None:
    proto = model("float[1,4] frame; float[2,1,5] state; float[3] constant")
    state = np.random.default_rng(1).standard_normal((11, 2, 1, 5)).astype(np.float32)
    frames, constant = X[:, None], np.arange(3, dtype=np.float32)
    data = open_data({"frame": frames, "state": state, "constant": constant, "labels": Y}, proto)
    batches = list(data.batches(4))
    assert len(batches) == len(data) == 11 and all(b.whole and b.count == 1 for b in batches)
    np.testing.assert_array_equal(batches[7].inputs["state"], state[7])
    np.testing.assert_array_equal(batches[7].inputs["constant"], constant)
    np.testing.assert_array_equal(batches[7].labels, Y[7:8])


@pytest.mark.parametrize("shape", [(11, 8, 8), (11, 8, 8, 1), (11, 1, 8, 8)])
def test_gray_images_in_every_form(shape: tuple[int, ...]) -> None:
    images = np.stack([picture(i, 8, 8, 1) for i in range(11)])
    data = open_data({"images": images.reshape(shape)}, model("float[N,1,8,8] x"), recipe=Recipe(scale=0.5))
    np.testing.assert_allclose(all_of(data)[0]["x"], images.reshape(11, 1, 8, 8) / 2)


def test_bytes_are_images_and_other_numbers_are_prepared_already() -> None:
    images = np.stack([picture(i) for i in range(5)])
    for inputs, source in (("float[N,3,8,8] x", images), ("float[N,3,8,8] x", images.transpose(0, 3, 1, 2))):
        data = open_data({"images": source}, model(inputs))
        expected = (images / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
        np.testing.assert_allclose(all_of(data)[0]["x"], expected.transpose(0, 3, 1, 2), atol=1e-5)
        assert any("guess" in note for note in data.notes)
    prepared = images.astype(np.float32).transpose(0, 3, 1, 2)
    data = open_data({"images": prepared}, model("float[N,3,8,8] x"))
    np.testing.assert_array_equal(all_of(data)[0]["x"], prepared)
    assert data.notes == ()
    scaled = open_data({"images": prepared.transpose(0, 2, 3, 1)}, model("float[N,3,8,8] x"), recipe=Recipe(scale=2.0))
    np.testing.assert_array_equal(all_of(scaled)[0]["x"], prepared * 2)


def test_features_take_arithmetic_too() -> None:
    data = open_data({"x": X}, VECTORS, recipe=Recipe.parse("scale=2 mean=1,2,3,4"))
    np.testing.assert_allclose(all_of(data)[0]["x"], X * 2 - [1, 2, 3, 4], rtol=1e-6)
    with refused("OP709", "only those can be resized"):
        open_data({"x": X}, VECTORS, recipe=Recipe(resize=8))


@pytest.mark.parametrize(
    ("inputs", "array", "reason"),
    [
        ("float[N,4] x", X[:, :3], r"doesn't take an array \[4, 3\]"),
        ("float[N,4] x", np.array(["a"] * 44).reshape(11, 4), "doesn't take <U1 values"),
        ("int32[N,4] x", X, "doesn't take float32 values"),
        ("int8[N,4] x", np.full((11, 4), 300), "doesn't take int64 values"),
        ("uint8[N,4] x", np.full((11, 4), -1), "doesn't take int64 values"),
        ("float[N,4,4,4] x", np.zeros((11, 5, 5, 5), np.float32), "doesn't take an array"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(inputs: str, array: NDArray[Any], reason: str) -> None:
    with refused("OP706", reason):
        all_of(open_data({"x": array}, model(inputs)))


def test_integers_widen_and_narrow_without_loss() -> None:
    whole = np.arange(44).reshape(11, 4)
    for source in (whole.astype(np.int16), whole.astype(np.uint8), whole.astype(np.float32)):
        np.testing.assert_array_equal(all_of(open_data({"x": source}, model("int32[N,4] x")))[0]["x"], whole)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_values_that_are_not_finite_are_refused_by_sample(bad: float) -> None:
    broken = X.astype(np.float64)
    broken[9, 2] = bad
    with refused("OP707", "sample 9"):
        all_of(open_data({"x": broken}, VECTORS))
    all_of(open_data({"x": broken}, VECTORS).subset(range(9)))  # the control


def save_raw(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "code", "reason"),
    [
        (b"", "OP703", "not a .npy array"),
        (b"\x93NUMPY\x01\x00\xff\xff", "OP703", "not a .npy array"),
        (npy(X)[:-1], "OP703", r"ends after 175 of the array's 176 bytes"),
        (npy(np.array([{}, 1], object), allow_pickle=True), "OP703", "pickled"),
        (npy(np.zeros(3, "f4,i4")), "OP703", "isn't plain numbers"),
        (npy(np.zeros(3, complex)), "OP703", "isn't plain numbers"),
        (npy(np.zeros((0, 4))), "OP702", "empty"),
        (npy(X).replace(b"(11, 4)", b"(-1,-4)"), "OP703", "impossible shape"),
        (npy(X).replace(b"(11, 4)", b"(9**9,)"), "OP703", "not a .npy array"),
        (npy(X).replace(b"(11, 4), }     ", b"(9999999, 4), }"), "OP703", "ends after 176"),
    ],
)
def test_damaged_or_hostile_npy_files(tmp_path: Path, content: bytes, code: str, reason: str) -> None:
    path = save_raw(tmp_path / "x.npy", content)
    with refused(code, rf"{reason}.*x\.npy"):
        map_npy(path)
    archive = zipped(tmp_path / "d.npz", {"x.npy": content})
    with refused(code, r"d\.npz: x\.npy"):
        open_data(archive, VECTORS)


def test_object_arrays_in_memory_are_refused() -> None:
    with refused("OP710", "isn't an array of numbers"):
        open_data({"x": np.array([None, 1])}, VECTORS)


def test_files_that_are_not_there_or_of_no_known_kind(tmp_path: Path) -> None:
    with refused("OP701", "no such file.*npz"):
        open_data(tmp_path / "none.npz", VECTORS)
    with refused("OP701", "'.bin'"):
        open_data(save_raw(tmp_path / "d.bin", b"1,2"), VECTORS)
    with refused("OP702", "no images"):
        open_data(tmp_path, VECTORS)
    with refused("OP704", "damaged"):
        open_data(save_raw(tmp_path / "d.npz", b"PK\x03\x04"), VECTORS)
    with refused("OP702", "no images"):
        open_data(zipped(tmp_path / "e.npz", {}), VECTORS)


def test_a_model_without_inputs_needs_no_data() -> None:
    proto = model("float[1,4] x", body="x_out = Constant<value = float[1,4] {1,2,3,4}>()")
    del proto.graph.input[:]
    with refused("OP706", "no inputs"):
        open_data({"x": X}, proto)


def test_packed_members_are_checked_to_the_last_byte(tmp_path: Path) -> None:
    path = zipped(tmp_path / "d.npz", {"x.npy": npy(X)}, zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    content[90] ^= 0xFF
    path.write_bytes(content)
    with refused("OP70[34]", "x.npy"):
        open_data(path, VECTORS)


SCALED = model("float[N,4] x; float alpha", outputs="float[N,4] y", body="y = Mul(x, alpha)")


def _function_of_batches() -> Any:
    return lambda: iter([{"x": X[:8], "alpha": ALPHA[:8]}, {"x": X[8:], "alpha": ALPHA[8:]}])


ALPHA = np.random.default_rng(1).random(11).astype(np.float32)
ALPHA[3] = ALPHA[2]


@pytest.mark.parametrize("give", [lambda: {"x": X, "alpha": ALPHA, "labels": Y}, _function_of_batches])
@pytest.mark.parametrize("size", [1, 4, 32])
def test_an_input_without_axes_takes_one_number_per_sample(give: Any, size: int) -> None:
    data = open_data(give(), SCALED)
    runner = Runner(SCALED, ["CPUExecutionProvider"], 1)
    batches = list(data.batches(size))
    assert [b.count for b in batches] == [1] * 11  # of one size, so that training drops none
    found = np.concatenate([runner(batch)["y"] for batch in batches])
    np.testing.assert_array_equal(found, X * ALPHA[:, None])
    part = data.subset([7, 9])
    np.testing.assert_array_equal([b.inputs["alpha"] for b in part.batches(size)], ALPHA[[7, 9]])


def test_one_number_for_all_samples_keeps_batches() -> None:
    data = open_data({"x": X, "alpha": np.float32(2)}, SCALED)
    assert [b.count for b in data.batches(4)] == [4, 4, 3] and not data.notes
    stream = open_data(lambda: iter([{"x": X[i : i + 3], "alpha": np.float32(i // 6)} for i in range(0, 9, 3)]), SCALED)
    assert [(b.count, float(b.inputs["alpha"])) for b in stream.batches(9)] == [(6, 0.0), (3, 1.0)]


def test_as_many_numbers_as_samples() -> None:
    with refused("OP706", "different numbers of samples"):
        open_data({"x": X, "alpha": ALPHA[:5]}, SCALED)


DECODER = model(
    "int64[batch,seq] input_ids; int64[batch,seq] token_type_ids; float[batch,2,past,4] past_key; int64[batch,s] mask"
)


def test_caches_and_token_types_without_an_array_are_zeros() -> None:
    ids = np.arange(15).reshape(5, 3)
    data = open_data({"input_ids": ids, "mask": np.ones_like(ids)}, DECODER)
    first = next(iter(data.batches(2)))
    assert {name: array.shape for name, array in first.inputs.items()} == {
        "input_ids": (2, 3),
        "mask": (2, 3),
        "token_type_ids": (2, 3),
        "past_key": (2, 2, 0, 4),  # empty
    }
    assert not first.inputs["token_type_ids"].any() and first.inputs["token_type_ids"].dtype == np.int64
    assert data.notes == ("zeros, as there is no array for it: token_type_ids, past_key",)
    given = open_data(
        {"input_ids": ids, "mask": ids, "token_type_ids": ids, "past_key": np.ones((5, 2, 7, 4))}, DECODER
    )
    assert given.notes == () and next(iter(given.batches(2))).inputs["past_key"].shape == (2, 2, 7, 4)


def test_other_inputs_need_an_array() -> None:
    with refused("OP706", "no array for input 'mask'"):
        open_data({"input_ids": np.zeros((5, 3), np.int64)}, DECODER)
