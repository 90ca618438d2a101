"""Loading models: sources, order of nodes, and what is refused with which code."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

from onnxprune.errors import CATALOG, ModelError
from onnxprune.model.file import captured_names, load, save, set_tensor, weights
from onnxprune.model.session import run, session
from onnxprune.runtime.library import max_ir_version
from tests.model.support import refuses, small


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


def test_a_name_that_an_output_and_another_tensor_share_is_told_apart() -> None:
    """The user may have given the output the name of an operator, as torch's exporter names tensors."""
    twice = edited(lambda m: m.graph.node.append(node_of("x", outputs=(m.graph.output[0].name,))))
    with pytest.raises(ModelError, match="OP107") as caught:
        load(twice)
    assert caught.value.hint is not None and "another name for the output" in caught.value.hint


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
