"""Packed files: the same bytes again, and nothing of a damaged or hostile file is believed."""

from __future__ import annotations

import hashlib
import json
import lzma
import random
import struct
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import onnxprune as op
from benchmarks import damage
from benchmarks.damage import damage_packed
from onnxprune.errors import ModelError, OnnxPruneError
from onnxprune.packing import container
from onnxprune.packing.coding import Piece, coded, decoded, sizes
from onnxprune.packing.spans import Span, spans_of_data, spans_of_model

MODELS = Path(__file__).parents[2] / "models"
DIGITS = MODELS / "digits_resnet.onnx"
RNG = np.random.default_rng(0)


def model(*tensors: TensorProto) -> ModelProto:
    """A model that adds up its initializers and its input."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    node = helper.make_node("Identity", ["x"], ["y"])
    graph = helper.make_graph([node], "g", [value], [out], list(tensors))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def sparse(share: float, size: int = 4000) -> np.ndarray:
    array = RNG.normal(size=size).astype(np.float32)
    array[RNG.random(size) < share] = 0
    return array


ARRAYS: dict[str, np.ndarray] = {
    "dense": sparse(0),
    "sparse": sparse(0.8),
    "all zero": np.zeros(999, np.float32),
    "minus zero and NaN": np.array([-0.0, 0.0, np.nan, np.inf, -np.inf] * 99, np.float32),
    "two values": RNG.choice([1.5, -2.5], 1001).astype(np.float32),
    "three values": RNG.choice([1.5, 0.25, -2.5], 1001).astype(np.float32),
    "16 values, sparse": np.where(RNG.random(3001) < 0.7, 0, RNG.integers(1, 17, 3001) / 7).astype(np.float32),
    "256 values": RNG.integers(0, 256, 9999).astype(np.float64),
    "257 values": (np.arange(9999) % 257).astype(np.float64),
    "int8": RNG.integers(-128, 128, 5000).astype(np.int8),
    "int8, sparse": np.where(RNG.random(5001) < 0.8, 0, RNG.integers(-9, 9, 5001)).astype(np.int8),
    "float16": RNG.normal(size=777).astype(np.float16),
    "int64": RNG.integers(-5, 5, 500),
    "complex128": RNG.normal(size=64) + 1j,
}


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS.keys())
def test_pieces_come_back_bit_for_bit(array: np.ndarray) -> None:
    data = np.frombuffer(array.tobytes(), np.uint8)
    piece, parts = coded(data, array.itemsize)
    assert piece.fits() and piece.size == len(data)
    assert {name: len(part) for name, part in parts.items()} == piece.streams() | {}
    at = dict.fromkeys(parts, 0)

    def take(name: str, size: int) -> Any:
        at[name] += size
        return parts[name][at[name] - size : at[name]]

    assert decoded(piece, take).tobytes() == array.tobytes()
    assert at == sizes([piece])


def test_each_kind_of_coding_is_used() -> None:
    kinds = {name: coded(np.frombuffer(a.tobytes(), np.uint8), a.itemsize)[0] for name, a in ARRAYS.items()}
    assert not kinds["dense"].masked and not kinds["dense"].values
    assert kinds["sparse"].masked and not kinds["sparse"].values
    assert kinds["two values"].bits == 1 and kinds["three values"].bits == 2
    assert kinds["16 values, sparse"].masked and kinds["16 values, sparse"].bits == 4
    assert kinds["256 values"].bits == 8 and not kinds["257 values"].values
    assert kinds["int8, sparse"].masked and not kinds["int8"].masked
    assert kinds["minus zero and NaN"].filled == 4 * 99  # minus zero isn't zero


def test_numbers_are_found_where_they_are() -> None:
    """In raw data, in typed fields, in attributes and in bodies; what is small or no number is left."""
    raw = numpy_helper.from_array(sparse(0), "raw")
    typed = helper.make_tensor("typed", TensorProto.FLOAT, [500], RNG.normal(size=500))
    constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.arange(300), "v"))
    small = numpy_helper.from_array(np.zeros(3, np.float32), "small")
    proto = model(raw, typed, small)
    branch = helper.make_graph([constant], "b", [], [helper.make_tensor_value_info("c", TensorProto.INT64, None)])
    proto.graph.node.add().CopyFrom(helper.make_node("If", ["x"], ["z"], then_branch=branch, else_branch=branch))
    content = proto.SerializeToString()
    spans = spans_of_model(content)
    found = [content[s.start : s.stop] for s in spans]
    whole = np.arange(300).tobytes()
    assert sorted(found, key=len) == sorted(
        [raw.raw_data, np.float32(typed.float_data).tobytes(), whole, whole], key=len
    )
    assert sorted(s.width for s in spans) == [4, 4, 8, 8]
    assert spans == sorted(spans) and spans_of_model(b"\xff" + content) == []


@pytest.mark.parametrize("source", sorted(MODELS.glob("*.onnx")), ids=lambda path: path.stem)
def test_models_come_back_byte_for_byte(source: Path, tmp_path: Path) -> None:
    found = op.pack(source, tmp_path / "m.onnxpack")
    assert found.size == (source.stat().st_size, (tmp_path / "m.onnxpack").stat().st_size)
    assert found.size[1] < len(lzma.compress(source.read_bytes()))  # the control: what a general packer does
    op.unpack(tmp_path / "m.onnxpack", tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == source.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnxpack"]


def test_parts_are_cut_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "PART", 1000)
    op.pack(DIGITS, tmp_path / "m.onnxpack")
    op.unpack(tmp_path / "m.onnxpack", tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == DIGITS.read_bytes()


def external(folder: Path, location: str = "data/weights.bin") -> Path:
    """A model with external data in a folder of its own; two tensors share their bytes."""
    tensors = [numpy_helper.from_array(sparse(0.5), name) for name in "abc"]
    (folder / location).parent.mkdir(parents=True, exist_ok=True)
    data = b"head" + tensors[0].raw_data + tensors[1].raw_data + b"tail"
    (folder / location).write_bytes(data)
    for tensor, offset in zip(tensors, (4, 4 + 16000, 4), strict=True):
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, "offset": offset, "length": 16000}.items():
            tensor.external_data.add(key=key, value=str(value))
    (folder / "m.onnx").write_bytes(model(*tensors).SerializeToString())
    return folder / "m.onnx"


def test_external_data_come_back_beside_the_model(tmp_path: Path) -> None:
    source = external(tmp_path / "from")
    assert spans_of_data(source.read_bytes()) == {"data/weights.bin": [Span(4, 16004, 4), Span(16004, 32004, 4)]}
    found = op.pack(source, tmp_path / "m.onnxpack")
    assert found.size[0] == sum(p.stat().st_size for p in (tmp_path / "from").rglob("*") if p.is_file())
    (tmp_path / "to").mkdir()
    back = op.unpack(tmp_path / "m.onnxpack", tmp_path / "to" / "other.onnx")
    assert back.files == (tmp_path / "to" / "other.onnx", tmp_path / "to" / "data" / "weights.bin")
    assert back.files[0].read_bytes() == source.read_bytes()
    assert back.files[1].read_bytes() == (tmp_path / "from" / "data" / "weights.bin").read_bytes()
    assert op.load(back.files[0]).sha256 == op.load(source).sha256
    with pytest.raises(ModelError, match="OP116"):
        op.unpack(tmp_path / "m.onnxpack", tmp_path / "to" / "third.onnx")  # the data are there
    assert not (tmp_path / "to" / "third.onnx").exists()
    op.unpack(tmp_path / "m.onnxpack", tmp_path / "to" / "third.onnx", force=True)


def directory(path: Path) -> tuple[bytes, dict[str, Any]]:
    """Return a packed file's parts and its directory, read by the description of the format alone."""
    data = path.read_bytes()
    magic, version, _, _, at, packed, raw, digest = struct.unpack("<8sHHIQII32s", data[:64])
    assert (magic, version, at + packed) == (b"\x89ONNXPK\n", 1, len(data))
    text = data[at:]
    assert hashlib.sha256(text).digest() == digest
    if packed < raw:
        coder = {"id": lzma.FILTER_LZMA2, "dict_size": 2**23, "lc": 4, "lp": 0, "pb": 0}
        text = lzma.decompress(text, lzma.FORMAT_RAW, filters=[coder])
    assert len(text) == raw
    return data[64:at], json.loads(text)


def forged(path: Path, parts: bytes, listed: Any, **head: Any) -> Path:
    """Write a packed file with any directory, as somebody who knows the format may."""
    text = listed if isinstance(listed, bytes) else json.dumps(listed).encode()
    at, raw = 64 + len(parts), head.get("raw", len(text))
    sums = hashlib.sha256(text).digest()
    fields = (b"\x89ONNXPK\n", head.get("version", 1), 0, 0, head.get("at", at), len(text), raw, sums)
    path.write_bytes(struct.pack("<8sHHIQII32s", *fields) + parts + text)
    return path


def refused(path: Path, code: str) -> str:
    """Return the message of the one error that unpacking gives; nothing is left behind."""
    before = sorted(path.parent.rglob("*"))
    with pytest.raises(ModelError, match=code) as found:
        op.unpack(path, path.parent / "out.onnx")
    assert sorted(path.parent.rglob("*")) == before
    return str(found.value)


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    op.pack(DIGITS, tmp_path / "m.onnxpack")
    return tmp_path / "m.onnxpack"


def test_bombs_are_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    """A petabyte of zeros in a few bytes, by many parts or by one."""
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 2**23, "lc": 4, "lp": 0, "pb": 0}]
    part = lzma.compress(bytes(2**26), lzma.FORMAT_RAW, filters=filters)
    size = 2**26
    entry = [0, [[0, size, size, 0]], [len(part)], hashlib.sha256(part).hexdigest()]
    path = forged(tmp_path / "a", part * 10, {"files": [["", 10 * size, "0"]], "parts": [entry] * 10})
    began = time.monotonic()
    assert f"would become {10 * size:,}" in refused(path, "OP134")
    assert "would become 671,088,640" in refused(path, "OP134")
    whole = {"files": [["", 2**50, "0"]], "parts": [[0, [[0, 2**50, 2**50, 0]], [len(part)], "0"]]}
    assert "part that can't be" in refused(forged(tmp_path / "b", part, whole), "OP133")
    # a stream that gives more than it may: decoding stops after the bytes that are due
    short = {"files": [["", 100, "0"]], "parts": [[0, [[0, 100, 100, 0]], [50], hashlib.sha256(part[:50]).hexdigest()]]}
    assert "another length" in refused(forged(tmp_path / "c", part[:50], short), "OP133")
    assert time.monotonic() - began < 20
    with pytest.raises(ModelError, match="OP134"):
        op.unpack(path, tmp_path / "out.onnx", max_size=10 * size - 1)
    with pytest.raises(ModelError, match="another checksum"):  # the control: the size is allowed, the sum is wrong
        op.unpack(path, tmp_path / "out.onnx", max_size=10 * size)
    assert not (tmp_path / "out.onnx").exists()


NAMES = (
    "../evil",
    "a/../../evil",
    "/tmp/evil",
    "C:\\evil",
    "..\\evil",
    "\\\\host\\evil",
    "a\0b",
    ".",
    "out.onnx",
    "OUT.onnx",
)


@pytest.mark.parametrize("name", NAMES)
def test_no_file_goes_outside_the_folder_or_over_another(name: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "from").mkdir()
    source = external(tmp_path / "from")
    op.pack(source, tmp_path / "in" / "m.onnxpack")
    parts, listed = directory(tmp_path / "in" / "m.onnxpack")
    listed["files"][1][0] = name
    before = sorted(tmp_path.rglob("*"))
    refused(forged(tmp_path / "in" / "m.onnxpack", parts, listed), "OP114")
    assert sorted(tmp_path.rglob("*")) == before
    listed["files"][1][0] = "fine/weights.bin"
    op.unpack(forged(tmp_path / "in" / "m.onnxpack", parts, listed), tmp_path / "in" / "out.onnx")  # the control


def test_links_in_the_folder_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "in" / "data").symlink_to(tmp_path / "other")
    op.pack(external(tmp_path / "from"), tmp_path / "in" / "m.onnxpack")
    refused(tmp_path / "in" / "m.onnxpack", "OP114")
    assert not list((tmp_path / "other").iterdir())


def test_forged_directories_are_refused(packed: Path, tmp_path: Path) -> None:
    parts, listed = directory(packed)
    assert op.unpack(forged(packed, parts, listed), tmp_path / "fine.onnx").files  # the control

    def changed(**entries: Any) -> Any:
        return {**json.loads(json.dumps(listed)), **entries}

    part = listed["parts"][0]
    name, size, check = listed["files"][0]
    wrong: list[Any] = [
        *(b"", b"[]", b"{}", b"null", b"[" * 100_000, b'{"files": [], "parts": []}', b"\xff\xfe"),
        *(changed(files=files) for files in ([], [[name, size + 1, check]], [["x", size, check]], [[name, size]])),
        changed(files=[[name, size, check]] * 2),
        changed(files=[[name, True, check]], parts=[]),
        changed(files=[[name, size, "0" * 64]]),
        changed(parts=[[1, *part[1:]]]),
        changed(parts=[[-1, *part[1:]]]),
        changed(parts=[[*part[:3], "0"]]),
        changed(parts=[[part[0], part[1], part[2][1:], part[3]]]),
        changed(parts=[[part[0], part[1], [10**9, *part[2][1:]], part[3]]]),
        *(changed(parts=[[0, [fields, *part[1][1:]], *part[2:]]]) for fields in ([9, 1, 1, 0], [4, 1, 2, 0], [0] * 5)),
        *(
            changed(parts=[[0, [fields, *part[1][1:]], *part[2:]]])
            for fields in ([4, 1, 1, 999], [4, 1.0, 1, 0], "four")
        ),
    ]
    for entry in wrong:
        refused(forged(packed, parts, entry), "OP133")
    for head in ({"version": 2}, {"at": 0}, {"at": 2**60}, {"raw": 2**31}, {"raw": 0}):
        refused(forged(packed, parts, listed, **head), "OP133")


def test_streams_that_contradict_their_pieces_are_refused(tmp_path: Path) -> None:
    for piece, streams in (
        (Piece(4, 8, 3, 0), {"mask": b"\xff", **{f"number/4/{i}": bytes(3) for i in range(4)}}),
        (Piece(4, 8, 8, 3), {"index/2": b"\xff\xff", "table/4": bytes(12)}),
    ):
        assert {name: len(data) for name, data in streams.items()} == sizes([piece])
        parts = b"".join(streams.values())
        entry = [0, [list(piece)], [len(data) for data in streams.values()], hashlib.sha256(parts).hexdigest()]
        refused(forged(tmp_path / "m", parts, {"files": [["", 32, "0"]], "parts": [entry]}), "OP133")


def test_damaged_files_end_with_one_error(packed: Path) -> None:
    """Some hundred files, damaged at random: an error with a code, or the right bytes; never anything else."""
    whole, ends = packed.read_bytes(), set()
    for case in range(300):
        rng = random.Random(case)
        packed.write_bytes(damage_packed(whole, rng))
        before = sorted(packed.parent.iterdir())
        try:
            op.unpack(packed, packed.with_name("out.onnx"))
            assert packed.with_name("out.onnx").read_bytes() == DIGITS.read_bytes()
            packed.with_name("out.onnx").unlink()
        except OnnxPruneError as error:
            ends.add(error.code)
        assert sorted(packed.parent.iterdir()) == before
    assert "OP133" in ends and ends <= {"OP133", "OP134", "OP114"}


def test_checksums_of_a_damaged_directory_are_right(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise nothing behind the first check would be reached: a directory without damage gives the model."""
    whole, right = packed.read_bytes(), 0
    monkeypatch.setattr(damage, "_damage_value", lambda directory, rng: None)
    for case in range(30):
        packed.write_bytes(damage_packed(whole, random.Random(case)))
        with suppress(OnnxPruneError):
            op.unpack(packed, packed.with_name("out.onnx"), force=True)
            right += packed.with_name("out.onnx").read_bytes() == DIGITS.read_bytes()
    assert right > 3


def test_what_is_no_packed_model(tmp_path: Path) -> None:
    refused(DIGITS.parent / "absent.onnxpack", "OP101")
    for content in (b"", b"PK", DIGITS.read_bytes()[:5000]):
        (tmp_path / "m").write_bytes(content)
        refused(tmp_path / "m", "OP133")
    op.pack(DIGITS, tmp_path / "n.onnxpack")
    with pytest.raises(ModelError, match="unpack it with the command `unpack`"):
        op.load(tmp_path / "n.onnxpack")
    with pytest.raises(ModelError, match="OP116"):
        op.pack(DIGITS, tmp_path / "n.onnxpack")


def test_models_in_memory_are_packed_as_they_are_saved(tmp_path: Path) -> None:
    proto = onnx.load(DIGITS)
    op.pack(proto, tmp_path / "m.onnxpack")
    op.unpack(tmp_path / "m.onnxpack", tmp_path / "m.onnx")
    assert onnx.load(tmp_path / "m.onnx") == proto
