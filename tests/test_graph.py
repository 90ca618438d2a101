"""The view of a graph: who makes and reads tensors, what an output needs, and copies with other nodes."""

import numpy as np
import pytest
from onnx import AttributeProto, ModelProto, NodeProto, helper, numpy_helper
from onnx.helper import make_node

from onnxprune.model.graph import (
    GraphIndex,
    attribute,
    attributes,
    behind,
    extract,
    fixed_names,
    with_inputs,
    with_nodes,
)


def _model() -> ModelProto:
    """Build x -> a -> (b, c), y = b + b, where a Loop's body captures c and nothing needs ``dead``."""
    captures = helper.make_graph(
        [make_node("Add", ["c", "w"], ["inner"])], "body", [], [helper.make_tensor_value_info("inner", 1, [2])]
    )
    nodes = [
        make_node("Relu", ["x"], ["a"], name="relu"),
        make_node("Split", ["a"], ["b", "c"], name="split"),
        make_node("Add", ["b", "b"], ["y"], name="twice"),
        make_node("Loop", ["n", ""], ["z"], name="loop", body=captures),
        make_node("Neg", ["a"], ["dead"], name="neg"),
    ]
    x, y, z = (helper.make_tensor_value_info(n, 1, [2]) for n in "xyz")
    weights = [numpy_helper.from_array(np.ones(2, np.float32), n) for n in ("w", "unread")]
    graph = helper.make_graph(nodes, "g", [x], [y, z], weights, value_info=[helper.make_tensor_value_info("a", 1, [4])])
    return helper.make_model(graph, producer_name="test")


def test_makers_and_readers() -> None:
    index = GraphIndex(_model().graph)
    assert {name: node.name for name, node in index.makers.items()} == {
        "a": "relu",
        "b": "split",
        "c": "split",
        "y": "twice",
        "z": "loop",
        "dead": "neg",
    }
    assert [n.name for n in index.readers["a"]] == ["split", "neg"]
    assert [n.name for n in index.readers["b"]] == ["twice", "twice"]
    assert [n.name for n in index.readers["c"]] == ["loop"], "captured by a body"
    assert index.uses == {"x": 1, "a": 2, "b": 2, "n": 1, "c": 1, "w": 1, "y": 1, "z": 1}
    assert index.outputs == ["y", "z"] and index.positions["neg"] == 4
    assert list(index.initializers) == ["w", "unread"]


def test_the_only_reader() -> None:
    model = _model()
    index = GraphIndex(model.graph)
    assert {t for t in index.uses if index.only_reader(t)} == {"x", "n", "c", "w"}
    model.graph.output.append(helper.make_tensor_value_info("c", 1, [1]))
    assert GraphIndex(model.graph).only_reader("c") is None, "the caller reads it too"


def test_the_source_behind_some_operators() -> None:
    index = GraphIndex(_model().graph)
    assert index.source("c", {"Split"}) == "a"
    assert index.source("c", {"Split", "Relu"}) == "x"
    assert index.source("c", {"Relu"}) == "c"


@pytest.mark.parametrize(
    ("wanted", "given", "found"),
    [
        (["y"], [], ["relu", "split", "twice"]),
        (["z"], [], ["relu", "split", "loop"]),
        (["y", "z"], ["b", "c"], ["twice", "loop"]),
        (["y"], ["b"], ["twice"]),
        (["y"], ["y"], []),
    ],
)
def test_nodes_behind_tensors(wanted: list[str], given: list[str], found: list[str]) -> None:
    assert [n.name for n in behind(wanted, _model().graph.node, given)] == found


def test_fixed_names_are_outputs_and_captures() -> None:
    graph = _model().graph
    assert fixed_names(graph.output, graph.node) == {"y", "z", "c", "w"}


def test_attributes_are_decoded() -> None:
    node = make_node("Op", [], [], text="SAME", texts=["a", "b"], number=2, share=0.5, sizes=[1, 2])
    assert attributes(node) == {"text": "SAME", "texts": ["a", "b"], "number": 2, "share": 0.5, "sizes": [1, 2]}
    assert attribute(node, "text") == "SAME" and attribute(node, "absent", 7) == 7
    node.attribute.append(AttributeProto(name="blob", type=AttributeProto.STRING, s=b"\xff"))
    node.attribute.append(AttributeProto(name="outer", type=AttributeProto.INT, ref_attr_name="of_function"))
    assert attribute(node, "blob") == "\N{REPLACEMENT CHARACTER}"
    assert "outer" not in attributes(node) and attribute(node, "outer", 3) == 3


def test_copies_share_nothing_with_the_original() -> None:
    model = _model()
    before = model.SerializeToString(deterministic=True)
    nodes = [with_inputs(n, ["x"]) if n.name == "neg" else n for n in model.graph.node if n.name != "relu"]
    copy = with_nodes(model, nodes)
    assert [n.name for n in copy.graph.node] == ["split", "twice", "loop", "neg"]
    assert list(copy.graph.node[-1].input) == ["x"] and copy.producer_name == "test"
    assert not copy.graph.value_info, "no node makes the tensor whose type was declared"
    assert [t.name for t in copy.graph.initializer] == ["w", "unread"]
    copy.graph.node[0].name = copy.graph.initializer[0].name = "changed"
    assert model.SerializeToString(deterministic=True) == before
    assert [v.name for v in with_nodes(model, model.graph.node, []).graph.value_info] == ["a"]
    assert not with_nodes(model, model.graph.node, []).graph.initializer


def test_extraction_takes_weights_and_inputs_along() -> None:
    part = extract(_model(), ["z"])
    assert [n.name for n in part.graph.node] == ["relu", "split", "loop"]
    assert [t.name for t in part.graph.initializer] == ["w"] and [i.name for i in part.graph.input] == ["x"]
    given = {"a": np.zeros((2, 3), np.int64), "unneeded": np.zeros(1)}
    part = extract(_model(), ["y", "a"], given)
    assert [n.name for n in part.graph.node] == ["split", "twice"]
    (value,) = part.graph.input
    assert value.name == "a" and value.type.tensor_type.elem_type == 7 and len(value.type.tensor_type.shape.dim) == 2
    assert [o.name for o in part.graph.output] == ["y", "a"]


def test_an_empty_node_has_no_attributes() -> None:
    assert attributes(NodeProto()) == {} and attribute(NodeProto(), "axis") is None
