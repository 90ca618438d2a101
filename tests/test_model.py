from __future__ import annotations

import hashlib
import os
import random
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from google.protobuf.message import EncodeError
from hypothesis import HealthCheck, given, settings, strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

from onnxprune.errors import CATALOG, ModelError, OnnxPruneError, UsageError
from onnxprune.model.checks import messages
from onnxprune.model.file import Model, captured_names, load, save, set_tensor, skeleton, weights
from onnxprune.model.session import run, session
from onnxprune.runtime.library import import_onnxruntime, max_ir_version

SHARED = Path(__file__).parents[1] / "../shared/models"
REAL = sorted(SHARED.glob("*.onnx"))
needs_shared = pytest.mark.skipif(not REAL, reason="the shared real models are not here")


def small(*, rows: int = 40, columns: int = 40) -> ModelProto:
    """y = relu(x @ w) + b, with w large enough for external data."""
    text = f"""<ir_version: 8, opset_import: ["" : 17], producer_name: "maker">
        agraph (float[N,{rows}] x) => (float[N,{columns}] y) {{
            a = MatMul(x, w)
            r = Relu(a)
            y = Add(r, b)
        }}"""
    model: ModelProto = parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in {"w": (rows, columns), "b": (columns,)}.items():
        array = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    helper.set_model_props(model, {"author": "somebody"})
    return model


def saved_externally(folder: Path) -> Path:
    save(small(), folder / "m.onnx", external=True, force=True)
    return folder / "m.onnx"


def refuses(source: Any, code: str) -> ModelError:
    with pytest.raises(ModelError) as caught:
        load(source)
    assert caught.value.code == code, caught.value
    return caught.value


# Loading


def test_all_kinds_of_source_give_the_same_model(tmp_path: Path) -> None:
    proto = small()
    save(proto, tmp_path / "m.onnx")
    content = (tmp_path / "m.onnx").read_bytes()
    by_path = load(tmp_path / "m.onnx")
    for source in (str(tmp_path / "m.onnx"), content, proto):
        model = load(source)
        assert model.proto == proto
        assert model.sha256 == by_path.sha256 == hashlib.sha256(content).hexdigest()
    assert by_path.path == tmp_path / "m.onnx" and not by_path.external
    assert load(by_path) is by_path


def test_a_graphsurgeon_graph_loads_with_a_readable_ir_version() -> None:
    model = load(gs.import_onnx(small()))
    assert model.proto.ir_version <= max_ir_version()
    x = np.ones((2, 40), np.float32)
    assert np.array_equal(*(run(session(m), {"x": x})["y"] for m in (model.proto, small())))


def test_the_given_model_is_neither_changed_nor_aliased() -> None:
    proto = small()
    proto.graph.node.sort(key=lambda node: node.output[0] != "y")  # out of order
    before = proto.SerializeToString(deterministic=True)
    model = load(proto)
    assert proto.SerializeToString(deterministic=True) == before
    proto.graph.initializer[0].name = "changed"
    assert model.proto.graph.initializer[0].name == "w"


def test_unsorted_nodes_are_sorted_stably() -> None:
    proto = small()
    nodes = list(proto.graph.node)
    extra = helper.make_node("Neg", ["x"], ["unused"])
    shuffled = [nodes[2], extra, nodes[1], nodes[0]]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in shuffled]
    del proto.graph.node[:]
    proto.graph.node.extend(copies)
    order = [node.op_type for node in load(proto).proto.graph.node]
    assert order == ["Neg", "MatMul", "Relu", "Add"]


def test_nodes_are_sorted_by_what_subgraphs_capture() -> None:
    proto = parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        agraph (float[2] x, bool c) => (float[2] y) {
            y = If (c) <
                then_branch = t () => (float[2] p) { p = Neg(a) },
                else_branch = e () => (float[2] q) { q = Identity(x) }
            >
            a = Abs(x)
        }""")
    node = load(proto).proto.graph.node
    assert [n.op_type for n in node] == ["Abs", "If"]
    assert captured_names(node[1]) == {"a", "x"}


@pytest.mark.parametrize(
    ("content", "code", "hint"),
    [
        (b"", "OP102", None),
        (b"\xff" * 50, "OP103", None),
        (b"version https://git-lfs.github.com/spec/v1\n", "OP103", "git lfs"),
        (b"PK\x03\x04\x00\x00", "OP103", "zip"),
        (b"<html>not found</html>", "OP103", "markup"),
        (b"\x08\x08", "OP104", "ONNX"),
    ],
)
def test_files_that_are_no_models(tmp_path: Path, content: bytes, code: str, hint: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    for source in (path, content):
        error = refuses(source, code)
        assert hint is None or hint in (error.hint or "")


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    refuses(tmp_path / "absent.onnx", "OP101")
    refuses(tmp_path, "OP101")
    refuses("nul\0byte", "OP101")
    refuses(3, "OP101")
    os.mkfifo(tmp_path / "pipe")
    refuses(tmp_path / "pipe", "OP101")  # without waiting for a writer


def test_a_truncated_file(tmp_path: Path) -> None:
    content = small().SerializeToString()
    refuses(content[: len(content) // 2], "OP103")


def edited(edit: Callable[[ModelProto], object]) -> ModelProto:
    proto = small()
    edit(proto)
    return proto


def node_of(*inputs: str, outputs: tuple[str, ...] = ("z",), op: str = "Sum") -> onnx.NodeProto:
    return helper.make_node(op, inputs, outputs)


def with_value_type(elem_type: int, size: int) -> Callable[[ModelProto], None]:
    def edit(proto: ModelProto) -> None:
        proto.graph.input[0].type.tensor_type.elem_type = elem_type
        proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = size

    return edit


BAD_MODELS: dict[str, tuple[str, Callable[[ModelProto], object]]] = {
    "no graph": ("OP104", lambda m: m.ClearField("graph")),
    "no nodes": ("OP104", lambda m: m.graph.ClearField("node")),
    "no outputs": ("OP104", lambda m: m.graph.ClearField("output")),
    "cycle": ("OP105", lambda m: m.graph.node[0].input.append("y")),
    "self loop": ("OP105", lambda m: m.graph.node.append(node_of("z"))),
    "dangling input": ("OP106", lambda m: m.graph.node[1].input.append("nobody")),
    "dangling output": ("OP106", lambda m: m.graph.output.add(name="nobody")),
    "node twice": ("OP107", lambda m: m.graph.node.append(node_of("x", outputs=("r",)))),
    "over an input": ("OP107", lambda m: m.graph.node.append(node_of("x", outputs=("x",)))),
    "initializer twice": ("OP107", lambda m: m.graph.initializer.append(m.graph.initializer[0])),
    "input twice": ("OP107", lambda m: m.graph.input.append(m.graph.input[0])),
    "old opset": ("OP108", lambda m: setattr(m.opset_import[0], "version", 6)),
    "new opset": ("OP108", lambda m: setattr(m.opset_import[0], "version", 999)),
    "no opset": ("OP108", lambda m: m.ClearField("opset_import")),
    "two opsets": ("OP108", lambda m: m.opset_import.add(domain="ai.onnx", version=18)),
    "new IR": ("OP109", lambda m: setattr(m, "ir_version", 9999)),
    "no IR": ("OP109", lambda m: m.ClearField("ir_version")),
    "short data": ("OP110", lambda m: setattr(m.graph.initializer[0], "raw_data", b"12345678")),
    "no data": ("OP110", lambda m: m.graph.initializer[0].ClearField("raw_data")),
    "huge claim": ("OP110", lambda m: m.graph.initializer[0].dims.append(2**40)),
    "two places": ("OP110", lambda m: m.graph.initializer[0].float_data.append(1)),
    "negative dim": ("OP111", lambda m: m.graph.initializer[0].dims.append(-1)),
    "overflow": ("OP111", lambda m: m.graph.initializer[0].dims.extend([2**62, 2**62])),
    "zero overflow": ("OP111", lambda m: m.graph.initializer[0].dims.extend([0, 2**62])),
    "rank 99": ("OP111", lambda m: m.graph.initializer[0].dims.extend([1] * 99)),
    "input's size": ("OP111", with_value_type(1, 2**40)),
    "tensor type": ("OP112", lambda m: setattr(m.graph.initializer[0], "data_type", 77)),
    "undefined": ("OP112", lambda m: setattr(m.graph.initializer[0], "data_type", 0)),
    "input's type": ("OP112", with_value_type(77, 1)),
    "input without a type": ("OP112", lambda m: m.graph.input[0].ClearField("type")),
    "input of nothing": ("OP112", with_value_type(0, 1)),
    "no operator": ("OP123", lambda m: m.graph.node[0].ClearField("op_type")),
    "attribute name": ("OP123", lambda m: m.graph.node[0].attribute.add(type=1)),
    "attribute type": ("OP123", lambda m: m.graph.node[0].attribute.add(name="a")),
    "attribute value": ("OP123", lambda m: m.graph.node[0].attribute.add(name="a", type=4)),
    "no group": (
        "OP123",
        lambda m: m.graph.node[0].attribute.add(name="group", type=2),
    ),  # ONNX Runtime would divide by 0
    "nameless": ("OP123", lambda m: m.graph.initializer[0].ClearField("name")),
}


@pytest.mark.parametrize("case", BAD_MODELS)
def test_invalid_models_are_refused_with_their_code(case: str) -> None:
    load(small())  # the control: without the edit it is valid
    code, edit = BAD_MODELS[case]
    assert code in CATALOG
    refuses(edited(edit), code)


@pytest.mark.parametrize("number", [2, 1])
def test_a_split_into_another_number_than_its_outputs_is_refused(number: int) -> None:
    text = f"""<ir_version: 8, opset_import: ["": 18]> g (float[4, 6] x) => (float[4, n] a, float[4, n] b) {{
        a, b = Split <axis = 1, num_outputs = {number}> (x)
    }}"""
    if number == 2:
        load(parser.parse_model(text))
    else:
        refuses(parser.parse_model(text), "OP123")


@pytest.mark.parametrize("domain", ["", "ai.onnx"])
def test_an_operator_set_imported_twice_alike(domain: str) -> None:
    model = small()
    model.opset_import.add(domain=domain, version=17)
    assert [(o.domain, o.version) for o in load(model).proto.opset_import] == [("", 17)]


def test_places_are_told() -> None:
    error = refuses(edited(BAD_MODELS["dangling input"][1]), "OP106")
    assert error.where == 'Relu "r"' and "nobody" in error.cause
    error = refuses(edited(BAD_MODELS["cycle"][1]), "OP105")
    assert error.where == 'MatMul "a" -> Relu "r" -> Add "y"'
    assert refuses(edited(BAD_MODELS["no data"][1]), "OP110").where == "tensor 'w'"


def test_text_that_is_not_utf8() -> None:
    content = small().SerializeToString().replace(b"maker", b"ma\xff\xfer")
    refuses(content, "OP103")


def test_names_are_looked_up_through_subgraphs() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
        agraph (float[2] x, bool c) => (float[2] y) {
            y = If (c) <
                then_branch = t () => (float[2] p) { p = Neg(NAME) },
                else_branch = e () => (float[2] q) { q = Identity(x) }
            >
        }"""
    load(parser.parse_model(text.replace("NAME", "x")))
    refuses(parser.parse_model(text.replace("NAME", "q")), "OP106")  # of the other branch
    refuses(parser.parse_model(text.replace("p = Neg(NAME)", "p = Neg(p)")), "OP105")
    refuses(parser.parse_model(text.replace("NAME", "x").replace("(float[2] q)", "(float[2] q, float[2] x)")), "OP123")


def test_endless_nesting() -> None:
    proto = small()
    graph = proto.graph
    for _ in range(200):
        node = graph.node.add(op_type="If")
        graph = node.attribute.add(name="then_branch", type=5).g
    refuses(proto, "OP119")


def test_zero_sized_and_non_finite_weights_load() -> None:
    proto = small()
    set_tensor(proto.graph.initializer[1], np.full((40,), np.nan, np.float32))
    empty = numpy_helper.from_array(np.zeros((0, 3), np.float32), "empty")
    proto.graph.initializer.append(empty)
    got = weights(load(proto).proto)
    assert got["empty"].shape == (0, 3) and np.isnan(got["b"]).all()


def sparse(dims: list[int], indices: np.ndarray, name: str = "w") -> onnx.SparseTensorProto:
    values = numpy_helper.from_array(np.arange(1, 4, dtype=np.float32), name)
    return helper.make_sparse_tensor(values, numpy_helper.from_array(indices, "i"), dims)


@pytest.mark.parametrize("indices", [[1, 41, 1599], [[0, 1], [1, 1], [39, 39]]])
def test_sparse_initializers_become_dense(indices: list[object]) -> None:
    proto = small()
    del proto.graph.initializer[0]
    proto.graph.sparse_initializer.append(sparse([40, 40], np.array(indices)))
    loaded = load(proto).proto
    expected = np.zeros((40, 40), np.float32)
    expected[[0, 1, 39], [1, 1, 39]] = [1, 2, 3]
    assert not loaded.graph.sparse_initializer
    assert np.array_equal(weights(loaded)["w"], expected)


@pytest.mark.parametrize(
    ("dims", "indices"),
    [
        ([40, 40], [1, 2, 1600]),
        ([40, 40], [-1, 2, 3]),
        ([40, 40], [1, 2]),
        ([40, 40], [[0, 40], [0, 1], [0, 2]]),
        ([40000, 40000], [1, 2, 3]),
    ],
)
def test_bad_sparse_initializers(dims: list[int], indices: list[object]) -> None:
    proto = small()
    del proto.graph.initializer[0]
    proto.graph.sparse_initializer.append(sparse(dims, np.array(indices)))
    refuses(proto, "OP113")


# External data


def test_external_data_round_trip(tmp_path: Path) -> None:
    path = saved_externally(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    model = load(path)
    assert model.external and model.data_files == (tmp_path.resolve() / "m.onnx.data",)
    assert model.proto == small()
    both = path.read_bytes() + (tmp_path / "m.onnx.data").read_bytes()
    assert model.sha256 == hashlib.sha256(both).hexdigest()
    onnx.checker.check_model(str(path), full_check=True)
    x = np.ones((2, 40), np.float32)
    assert np.array_equal(*(run(session(m), {"x": x})["y"] for m in (path, small())))


def test_a_model_keeps_its_kind_of_storage(tmp_path: Path) -> None:
    model = load(saved_externally(tmp_path))
    save(model, tmp_path / "again.onnx")
    assert load(tmp_path / "again.onnx").external
    save(model, tmp_path / "inline.onnx", external=False)
    assert not load(tmp_path / "inline.onnx").external
    assert load(tmp_path / "inline.onnx").proto == model.proto


def relocated(folder: Path, **entries: str) -> Path:
    path = saved_externally(folder)
    proto = onnx.load(path, load_external_data=False)
    tensor = next(t for t in proto.graph.initializer if t.external_data)
    for key, value in entries.items():
        next(entry for entry in tensor.external_data if entry.key == key).value = value
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize(
    "location",
    [
        "/etc/passwd",
        "../secret",
        "sub/../../secret",
        "..\\secret",
        "C:\\secret",
        "C:secret",
        "\\\\host\\secret",
        "",
        "a\0b",
    ],
)
def test_external_data_stays_in_the_folder(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(10**5))
    refuses(relocated(folder, location=location), "OP114")


def test_links_out_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(10**5))
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "dir").symlink_to(tmp_path)
    (folder / "circle").symlink_to(folder / "circle")
    refuses(relocated(folder, location="link"), "OP114")
    refuses(relocated(folder, location="dir/secret"), "OP114")
    refuses(relocated(folder, location="circle"), "OP115")


def test_a_cache_of_links_to_both_files_loads(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    saved_externally(tmp_path / "blobs")
    for name in ("m.onnx", "m.onnx.data"):
        (tmp_path / "snapshot" / name).symlink_to(tmp_path / "blobs" / name)
    assert load(tmp_path / "snapshot/m.onnx").proto == small()


@pytest.mark.parametrize(
    ("entries", "code"),
    [
        ({"location": "absent"}, "OP115"),
        ({"location": "."}, "OP115"),
        ({"offset": "1000000"}, "OP115"),
        ({"offset": "-1"}, "OP115"),
        ({"offset": "many"}, "OP115"),
        ({"length": "17"}, "OP110"),
    ],
)
def test_wrong_external_data(tmp_path: Path, entries: dict[str, str], code: str) -> None:
    load(relocated(tmp_path))  # the control
    (tmp_path / "again").mkdir()
    refuses(relocated(tmp_path / "again", **entries), code)


def test_external_data_without_a_path(tmp_path: Path) -> None:
    path = saved_externally(tmp_path)
    refuses(path.read_bytes(), "OP115")
    refuses(onnx.load(path, load_external_data=False), "OP115")


# Saving


def test_existing_files_need_force(tmp_path: Path) -> None:
    target = tmp_path / "m.onnx"
    target.write_bytes(b"precious")
    with pytest.raises(ModelError) as caught:
        save(small(), target)
    assert caught.value.code == "OP116" and target.read_bytes() == b"precious"
    save(small(), target, force=True)
    assert load(target).proto == small()
    with pytest.raises(ModelError, match="OP116"):
        save(small(), tmp_path, force=True)  # a folder

    (tmp_path / "other.onnx.data").write_bytes(b"precious")
    with pytest.raises(ModelError, match="OP116"):
        save(small(), tmp_path / "other.onnx", external=True)
    assert not (tmp_path / "other.onnx").exists()


def test_its_own_external_data_is_never_overwritten(tmp_path: Path) -> None:
    path = saved_externally(tmp_path)
    model = load(path)
    before = (tmp_path / "m.onnx.data").read_bytes()
    with pytest.raises(ModelError, match="OP116"):
        save(model, path, force=True)
    assert (tmp_path / "m.onnx.data").read_bytes() == before


@pytest.mark.parametrize("external", [False, True])
def test_nothing_is_left_of_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, external: bool) -> None:
    with pytest.raises(ModelError, match="OP117"):
        save(small(), tmp_path / "absent/m.onnx", external=external)

    replace = os.replace

    def fail(source: Path, target: Path) -> None:
        if target.name == "m.onnx":
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(ModelError, match="No space left"):
        save(small(), tmp_path / "m.onnx", external=external)
    assert list(tmp_path.iterdir()) == []

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr("onnxprune.model.file._write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save(small(), tmp_path / "m.onnx", external=external)
    assert list(tmp_path.iterdir()) == []


def test_files_have_ordinary_permissions(tmp_path: Path) -> None:
    save(small(), tmp_path / "m.onnx")
    (tmp_path / "plain").write_bytes(b"")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_above_protobufs_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.model.file.PROTOBUF_LIMIT", 5000)
    with pytest.raises(ModelError, match="OP118"):
        save(small(), tmp_path / "m.onnx", external=False)
    save(load(small()), tmp_path / "m.onnx")  # of itself with external data
    assert load(tmp_path / "m.onnx").proto == small()
    save(small(), tmp_path / "plain.onnx")
    assert load(tmp_path / "plain.onnx").external
    monkeypatch.setattr("onnxprune.model.file.PROTOBUF_LIMIT", 50)
    with pytest.raises(ModelError, match="OP118"):
        save(small(), tmp_path / "tiny.onnx")
    refuses(tmp_path / "m.onnx", "OP118")
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.slow
def test_a_model_above_two_gib(tmp_path: Path) -> None:
    proto = small(rows=16384, columns=16400)
    proto.graph.initializer.append(proto.graph.initializer[0])
    proto.graph.initializer[2].name = "w2"
    proto.graph.initializer.append(proto.graph.initializer[0])
    proto.graph.initializer[3].name = "w3"
    with pytest.raises(EncodeError):
        proto.SerializeToString()
    save(proto, tmp_path / "m.onnx")
    model = load(tmp_path / "m.onnx")
    assert model.external and (tmp_path / "m.onnx").stat().st_size < 10**5
    assert np.array_equal(weights(model.proto)["w3"], weights(proto)["w"])
    assert skeleton(model.proto).ByteSize() < 10**5
    x = np.ones((1, 16384), np.float32)
    got = run(session(model.proto, optimize=False), {"x": x})["y"]
    assert got.shape == (1, 16400) and np.isfinite(got).all()


@needs_shared
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_real_models_come_back_as_they_were(tmp_path: Path, path: Path) -> None:
    original = onnx.load(path)
    model = load(path)
    assert model.proto == original  # sorted already, and nothing else to change
    save(model, tmp_path / "m.onnx")
    assert onnx.load(tmp_path / "m.onnx") == original


# Tensors


@pytest.mark.parametrize(
    "dtype",
    [
        *(np.float32, np.float64, np.float16, np.int8, np.uint8, np.int64, np.bool_, np.complex64),
        *(ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2),
        *(ml_dtypes.int4, ml_dtypes.uint4, ml_dtypes.float4_e2m1fn),
    ],
)
def test_tensors_of_every_type_round_trip(dtype: type, tmp_path: Path) -> None:
    array: np.ndarray = np.arange(15).reshape(3, 5).__mod__(7).astype(dtype)
    proto = small()
    tensor = proto.graph.initializer.add(name="t", doc_string="note", data_type=1, dims=[1])
    tensor.float_data.append(1)
    set_tensor(tensor, array)
    assert tensor.name == "t" and tensor.doc_string == "note" and not tensor.float_data
    got = weights(load(proto).proto)
    assert got["t"].dtype == got.dtype("t") == array.dtype and got.shape("t") == (3, 5)
    assert np.array_equal(got["t"], array)
    assert not got["w"].flags.writeable
    assert list(got) == ["w", "b", "t"] and got.tensor("t").name == "t"

    # The same values in the typed fields instead of raw data.
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor.CopyFrom(helper.make_tensor("t", kind, array.shape, array.flatten().tolist()))
    assert not tensor.HasField("raw_data")
    assert np.array_equal(weights(load(proto).proto)["t"], array)
    save(proto, tmp_path / "m.onnx", external=True)
    assert np.array_equal(weights(load(tmp_path / "m.onnx").proto)["t"], array)
    del getattr(tensor, helper.tensor_dtype_to_field(kind))[-1]
    refuses(proto, "OP110")


def test_strings_must_be_text() -> None:
    proto = small()
    tensor = proto.graph.initializer.add(name="s", data_type=TensorProto.STRING, dims=[2])
    tensor.string_data.extend([b"one", b"zwei"])
    assert weights(load(proto).proto)["s"].tolist() == ["one", "zwei"]
    tensor.string_data[1] = b"\xff"
    refuses(proto, "OP110")


def test_a_skeleton_has_types_instead_of_weights() -> None:
    proto = small()
    bare = skeleton(proto)
    assert [t.name for t in bare.graph.initializer] == ["b"]
    assert [v.name for v in bare.graph.input] == ["x", "w"]
    onnx.checker.check_model(bare, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(bare, strict_mode=True)
    shapes = {v.name: v.type.tensor_type.shape for v in inferred.graph.value_info}
    assert [d.dim_value or d.dim_param for d in shapes["a"].dim] == ["N", 40]

    proto.graph.input.append(helper.make_tensor_value_info("w", 1, [40, 40]))  # as before IR 4
    assert [v.name for v in skeleton(proto).graph.input] == ["x", "w"]
    assert proto.metadata_props == bare.metadata_props


# ONNX Runtime


def test_without_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match="OP601"):
        import_onnxruntime()
    monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))  # hollow
    with pytest.raises(UsageError, match="incomplete"):
        session(small())


def test_the_newest_ir_version_is_the_newest_that_loads() -> None:
    proto = small()
    proto.ir_version = max_ir_version()
    session(proto)
    proto.ir_version += 1
    with pytest.raises(ModelError, match="OP122"):
        session(proto)


def test_failures_of_onnxruntime_are_ours_and_silent(capfd: pytest.CaptureFixture[str]) -> None:
    proto = small()
    proto.graph.node[1].op_type = "NoSuchOperator"
    with pytest.raises(ModelError, match="OP122") as caught:
        session(proto)
    assert "NoSuchOperator" in caught.value.cause and "onnxruntime_src" not in caught.value.cause
    with pytest.raises(ModelError, match="OP122"):
        run(session(small()), {"x": np.ones((2, 3), np.float32)})
    with pytest.raises(UsageError, match="OP608"):
        session(small(), providers=("NoSuchProvider",))
    assert capfd.readouterr() == ("", "")


# Fuzzing


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Damage bytes anywhere, or set a random field of a random message to something extreme."""
    if rng.random() < 0.5:
        damaged = bytearray(content)
        for _ in range(rng.choice([1, 3, 10])):
            position = rng.randrange(len(damaged))
            damaged[position : position + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
        return bytes(damaged[: rng.choice([len(damaged), rng.randrange(len(damaged))])])
    proto = ModelProto.FromString(content)
    message = rng.choice(list(messages(proto)))
    field: Any = rng.choice(message.DESCRIPTOR.fields)
    extremes: Any = {
        field.TYPE_STRING: ["", "x", "Constant", "ConstantOfShape", "Identity", "value", "If"],
        field.TYPE_BYTES: [b"", b"\xff"],
        field.TYPE_INT64: [0, -1, 2**31, 2**62, -(2**63)],
        field.TYPE_INT32: [0, -1, 2**31 - 1, 16, 22],
    }.get(field.type)
    if extremes is None or rng.random() < 0.3:
        message.ClearField(field.name)
    elif field.has_presence:
        setattr(message, field.name, rng.choice(extremes))
    else:
        getattr(message, field.name).append(rng.choice(extremes))
    return proto.SerializeToString()


@needs_shared
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), stem=st.sampled_from(["mnist_cntk", "silero_vad", "fsanet_1x1"]))
def test_damaged_models_give_nothing_but_our_errors(seed: int, stem: str) -> None:
    content = mutated((SHARED / f"{stem}.onnx").read_bytes(), random.Random(seed))
    try:
        model = load(content)
    except OnnxPruneError as error:
        assert error.code.startswith("OP1")
    else:
        assert isinstance(model, Model)
        assert all(isinstance(array, np.ndarray) for array in weights(model.proto).values())
        skeleton(model.proto)


@pytest.mark.parametrize("sizes", [[4, 3, 5], None])
def test_an_unnamed_output_of_split_gets_a_name(sizes: list[int] | None) -> None:
    """It is the second of three pieces; the third one keeps its place."""
    w = np.random.default_rng(0).standard_normal((6, 12)).astype(np.float32)
    constants = [numpy_helper.from_array(w, "w")]
    if sizes:
        constants.append(numpy_helper.from_array(np.array(sizes), "sizes"))
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Split", ["h", *(["sizes"] if sizes else [])], ["a", "", "b"], axis=1),
        helper.make_node("Concat", ["a", "b"], ["y"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    loaded = load(model).proto
    assert model.graph.node[1].output[1] == "" and loaded.graph.node[1].output[1]
    x = np.ones((2, 6), np.float32)
    (y,) = run(session(loaded), {"x": x}).values()
    first, last = (4, 5) if sizes else (4, 4)
    np.testing.assert_allclose(y, np.hstack([(x @ w)[:, :first], (x @ w)[:, -last:]]), rtol=1e-5)
