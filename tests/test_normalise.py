from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

from onnxprune._bodies import close_bodies
from onnxprune._runtime import run, session
from onnxprune.errors import ModelError
from onnxprune.model import load, weights
from onnxprune.normalise import normalise

SHARED = Path(__file__).parents[1] / "../shared/models"
REAL = sorted(SHARED.glob("*.onnx"))
LIGHT = sorted((Path(onnx.__file__).parent / "backend/test/data/light").glob("*.onnx"))
HEADER = '<ir_version: 8, opset_import: ["" : 17]>'


def parsed(text: str, **arrays: Any) -> ModelProto:
    """Load a model from onnx's notation, with these initialisers."""
    proto: ModelProto = parser.parse_model(text if text.lstrip().startswith("<") else HEADER + text)
    for name, array in arrays.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return load(proto).proto


def outputs(proto: ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, Any]:
    return run(session(proto, optimise=False, threads=1), feeds)


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    """Tell whether two results are the same bit for bit."""
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype
        and left[name].shape == right[name].shape
        and left[name].tobytes() == right[name].tobytes()
        for name in left
    )


def copied(proto: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(proto)
    return copy


def by_name(proto: ModelProto) -> ModelProto:
    """Copy a model with its initialisers in order of name."""
    copy = copied(proto)
    tensors = sorted(proto.graph.initializer, key=lambda t: t.name)
    copy.graph.ClearField("initializer")
    copy.graph.initializer.extend(tensors)
    return copy


def normal(proto: ModelProto, **feeds: Any) -> ModelProto:
    """Normalise, checking what holds of every model: pure, idempotent, valid, same outputs."""
    before = proto.SerializeToString(deterministic=True)
    result = normalise(proto)
    assert proto.SerializeToString(deterministic=True) == before
    assert normalise(proto) == result, "deterministic"
    assert normalise(result) == result, "idempotent"
    assert normalise(used_up := copied(proto), consume=True) is used_up
    assert by_name(used_up) == by_name(result), "in place as well"
    closed = close_bodies(result)  # the result, unless there are bodies
    onnx.checker.check_model(closed, full_check=True)
    assert load(closed).proto == closed
    if feeds:
        arrays = {name: np.asarray(feed) for name, feed in feeds.items()}
        assert same(outputs(proto, arrays), outputs(result, arrays))
    return result


def ops(proto: ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


X = np.arange(8, dtype=np.float32).reshape(2, 4)


# Functions

FUNCTIONS = """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
    agraph (float[N,4] x) => (float[N,4] y) {
        a = own.twice(x)
        y = own.scaled <factor = 3.0> (a)
    }
    <domain: "own", opset_import: ["" : 17]> twice (v) => (w) { w = Add(v, v) }
    <domain: "own", opset_import: ["" : 17, "own" : 1]> scaled <factor> (v) => (w) {
        c = Constant <value_float : float = @factor> ()
        t = own.twice(v)
        w = Mul(t, c)
    }"""


def test_functions_are_inlined() -> None:
    proto = parsed(FUNCTIONS)
    helper.set_model_props(proto, {"author": "somebody"})
    result = normal(proto, x=X)
    assert not result.functions and ops(result) == ["Add", "Add", "Mul"]
    assert np.array_equal(outputs(result, {"x": X})["y"], 12 * X)
    assert result.metadata_props == proto.metadata_props
    assert [v.name for v in result.graph.input] == ["x"]


def test_functions_around_large_weights() -> None:
    big = np.eye(64, dtype=np.float32)
    text = """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
        agraph (float[N,64] x) => (float[N,64] y) { y = own.project(x, big) }
        <domain: "own", opset_import: ["" : 17]> project (v, m) => (w) { w = MatMul(v, m) }"""
    result = normal(parsed(text, big=big), x=np.ones((2, 64), np.float32))
    assert [v.name for v in result.graph.input] == ["x"]
    assert np.array_equal(weights(result)["big"], big)


def test_functions_of_an_older_opset() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
        agraph (float[2,4] x) => (float[2,1] y) { y = own.total(x) }
        <domain: "own", opset_import: ["" : 12]> total (v) => (w) { w = ReduceSum<axes = [1]>(v) }"""
    result = normal(parsed(text))
    assert np.array_equal(outputs(result, {"x": X})["y"], X.sum(1, keepdims=True))


@pytest.mark.parametrize(
    "bodies",
    [
        {"f": "w = own.f(v)"},
        {"f": "w = own.g(v)", "g": "w = own.f(v)"},
        {f"f{i}" if i else "f": f"t = own.f{i + 1}(v) w = own.f{i + 1}(t)" for i in range(30)} | {"f30": "w = Relu(v)"},
        {f"f{i}" if i else "f": f"w = own.f{i + 1}(v)" for i in range(900)} | {"f900": "w = Relu(v)"},
    ],
    ids=["recursive", "mutually", "exponential", "deep"],
)
def test_functions_without_end(bodies: dict[str, str]) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
        agraph (float[N,4] x) => (float[N,4] y) { y = own.f(x) }"""
    for name, body in bodies.items():
        text += f'<domain: "own", opset_import: ["" : 17, "own" : 1]> {name} (v) => (w) {{ {body} }}\n'
    with pytest.raises(ModelError, match="OP120"):
        normalise(parsed(text))


def test_a_function_defined_twice() -> None:
    proto = parsed(FUNCTIONS)
    proto.functions.append(proto.functions[0])
    with pytest.raises(ModelError, match="OP120"):
        normalise(proto)


# Inputs and versions


def test_initialisers_are_no_inputs_and_the_version_allows_that() -> None:
    proto = parsed("agraph (float[2,4] x, float[4] b) => (float[2,4] y) { y = Add(x, b) }", b=X[1])
    proto.ir_version = 3
    result = normal(proto, x=X)
    assert [v.name for v in result.graph.input] == ["x"] and result.ir_version == 8
    proto.ir_version = 10
    assert normal(proto).ir_version == 10


def test_sizes_of_minus_one_are_unknown() -> None:
    proto = parsed("agraph (float[N,4] x) => (float[N,4] y) { y = Relu(x) }")
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = -1
    result = normalise(proto)
    first, second = result.graph.input[0].type.tensor_type.shape.dim
    assert first.WhichOneof("value") is None and second.dim_value == 4
    assert same(outputs(proto, {"x": X}), outputs(result, {"x": X}))


def test_what_goes_in_comes_out() -> None:
    proto = parsed(
        """<ir_version: 9, opset_import: ["" : 17, "ai.onnx.ml" : 3], producer_name: "p",
            producer_version: "1", domain: "d", model_version: 5, doc_string: "doc">
        agraph (float[batch,4] x) => (float[batch,4] y) <float[batch,4] t> { t = Relu(x) y = Neg(t) }"""
    )
    helper.set_model_props(proto, {"k": "v"})
    proto.graph.doc_string = "graph"
    for node in proto.graph.node:
        node.name, node.doc_string = f"n_{node.output[0]}", "node"
    assert normal(proto, x=X) == proto


# Constants


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [
        ("value = float[2] {1.0, 2.0}", np.array([1, 2], np.float32)),
        ("value_float = 2.5", np.array(2.5, np.float32)),
        ("value_floats = [1.0, 2.0]", np.array([1, 2], np.float32)),
        ("value_int = 3", np.array(3, np.int64)),
        ("value_ints = [3, 4]", np.array([3, 4], np.int64)),
        ('value_string = "a"', np.array("a", object)),
        ('value_strings = ["a", "b"]', np.array(["a", "b"], object)),
    ],
)
def test_constants_become_initialisers(attribute: str, expected: np.ndarray) -> None:
    kind = helper.tensor_dtype_to_string(helper.np_dtype_to_tensor_dtype(expected.dtype))
    kind = kind.removeprefix("TensorProto.").lower()
    text = f"""agraph () => ({kind}[K] y) {{ c = Constant <{attribute}> () y = Concat <axis = 0> (s, s) }}"""
    shape = [1] if not expected.shape else [-1]
    text = text.replace("y = ", "s = Reshape (c, shape) y = ")
    result = normal(parsed(text, shape=np.array(shape)))
    got = weights(result)["c"]
    assert ops(result) == ["Reshape", "Concat"]
    assert got.dtype == expected.dtype and got.shape == expected.shape and (got == expected).all()
    assert same(outputs(parsed(text, shape=np.array(shape)), {}), outputs(result, {}))


def test_sparse_constants() -> None:
    values = numpy_helper.from_array(np.array([5, 6], np.float32), "v")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([0, 3]), "i"), [4])
    proto = parsed("agraph (float[2,4] x) => (float[2,4] y) { c = Constant <value_int = 1> () y = Add(x, c) }")
    proto.graph.node[0].attribute[0].CopyFrom(helper.make_attribute("sparse_value", sparse))
    assert weights(normal(proto))["c"].tolist() == [5, 0, 0, 6]


@pytest.mark.parametrize("count", [0, 2])
def test_malformed_constants(count: int) -> None:
    proto = parsed("agraph (float[N] x) => (float[N] y) { c = Constant <value_float = 1.0> () y = Add(x, c) }")
    del proto.graph.node[0].attribute[:]
    for index in range(count):
        proto.graph.node[0].attribute.append(helper.make_attribute(f"value_{index}", 1.0))
    with pytest.raises(ModelError, match="OP123"):
        normalise(proto)
    proto.graph.node[0].attribute.append(helper.make_attribute("value_float", 1))  # an INT
    del proto.graph.node[0].attribute[:count]
    with pytest.raises(ModelError, match="OP123"):
        normalise(proto)


def test_a_constant_that_is_an_output_keeps_its_name() -> None:
    proto = parsed(
        "agraph (float[N] x) => (float[N] y, float[2] c) { c = Constant <value_floats = [1.0, 2.0]> () y = Relu(x) }"
    )
    result = normal(proto, x=X[0])
    assert ops(result) == ["Relu"] and list(weights(result)) == ["c"]


def test_constant_of_shape_is_filled() -> None:
    proto = parsed(
        """agraph (float[2,3] x) => (float[2,3] y) {
            s = Constant <value_ints = [2, 3]> ()
            i = Identity (s)
            w = ConstantOfShape <value = float[1] {1.5}> (i)
            z = ConstantOfShape (i)
            d = Mul (x, w)
            y = Add (d, z)
        }"""
    )
    result = normal(proto, x=X[:, :3])
    assert ops(result) == ["Mul", "Add"]
    got = weights(result)
    assert set(got) == {"w", "z"} and (got["w"] == 1.5).all() and got["w"].shape == (2, 3)
    assert got["z"].dtype == np.float32 and not got["z"].any()


def test_constant_of_shape_of_every_width() -> None:
    for dtype in (np.float16, np.int8, ml_dtypes.bfloat16, np.bool_):
        proto = parsed("agraph () => (float[3] y) { w = ConstantOfShape (s) y = Cast <to = 1> (w) }", s=[3])
        value = numpy_helper.from_array(np.ones(1, dtype))
        proto.graph.node[0].attribute.append(helper.make_attribute("value", value))
        got = weights(normal(proto))["w"]
        assert got.dtype == dtype and (got == 1).all() and got.shape == (3,)


def test_a_computed_shape_stays_computed() -> None:
    text = "agraph (float[N] x) => (float[N] y) { s = Shape (x) z = ConstantOfShape (s) y = Add (x, z) }"
    assert ops(normal(parsed(text), x=X[0])) == ["Shape", "ConstantOfShape", "Add"]


@pytest.mark.parametrize(
    ("shape", "code"),
    [
        ([2**20, 2**20], "OP121"),
        ([2**15, 2**14], "OP121"),  # 2 GiB each, three of them
        ([2**62, 2**62], "OP111"),
        ([-1, 3], "OP111"),
        ([0.5], "OP123"),
        ([[1]], "OP123"),
    ],
)
def test_constants_beyond_bounds(shape: list[Any], code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if shape == [2**15, 2**14]:
        monkeypatch.setattr("onnxprune.normalise.constants._MAX_CONSTANT_BYTES", 2**10)
        shape = [2**5, 2**2]
    text = """agraph (float[N] x) => (float[N] y) {
        a = ConstantOfShape (s) b = ConstantOfShape (s) c = ConstantOfShape (s) y = Sum (x, a, b, c)
    }"""
    with pytest.raises(ModelError, match=code):
        normalise(parsed(text, s=shape))


# Identity


def test_identities_of_initialisers_are_bypassed() -> None:
    proto = parsed(
        """agraph (float[2,4] x) => (float[2,4] y, float[4] out) <float[4] i> {
            i = Identity (b)
            j = Identity (i)
            s = Add (x, j)
            out = Identity (b)
            k = Identity (s)
            y = Relu (k)
        }""",
        b=X[1],
    )
    result = normal(proto, x=X)
    assert ops(result) == ["Add", "Identity", "Identity", "Relu"]  # the output's, and not of a constant
    assert result.graph.node[1].output == ["out"]
    assert not result.graph.value_info  # "i" is gone


SUBGRAPH = """agraph (float[2,4] x, bool c) => (float[2,4] y) {
    i = Identity (b)
    k = Constant <value_float = 2.0> ()
    a = Add (x, i)
    d = Mul (x, b)
    e = If (c) <
        then_branch = t () => (float[2,4] p) { p1 = Mul (x, i) p2 = Add (p1, b) p = Mul (p2, k) },
        else_branch = f () => (float[2,4] q) { b2 = Identity (b) q = Add (x, b2) }
    >
    f = Add (a, d)
    y = Add (e, f)
}"""


STANDARDISED = """
    m (float[n, 4, 6, 6] x) => (float[n, 8, 4, 4] y) {
        mean = ReduceMean <axes = [1, 2, 3]> (w)
        centred = Sub (w, mean)
        deviation = ReduceL2 <axes = [1, 2, 3]> (centred)
        unit = Div (centred, deviation)
        y = Conv (x, unit)
    }
"""


def test_statistics_of_weights_are_numbers() -> None:
    rng = np.random.default_rng(0)
    proto = parsed(STANDARDISED, w=rng.standard_normal((8, 4, 3, 3)).astype(np.float32))
    result = normalise(proto)
    assert [n.op_type for n in result.graph.node] == ["Sub", "Div", "Conv"]
    assert {"mean", "deviation"} <= {t.name for t in result.graph.initializer}
    feeds = {"x": rng.standard_normal((2, 4, 6, 6)).astype(np.float32)}
    assert same(outputs(proto, feeds), outputs(result, feeds))
    assert len(normalise(result).graph.node) == 3


def test_statistics_that_are_larger_than_their_weights_stay() -> None:
    text = """
        m (float[8, 8] x) => (float[8, 8] y) {
            table = Add (row, column)
            shares = Softmax (table)
            y = Mul (x, shares)
        }
    """
    row, column = np.ones((1, 8), np.float32), np.ones((8, 1), np.float32)
    assert [n.op_type for n in normalise(parsed(text, row=row, column=column)).graph.node] == ["Add", "Softmax", "Mul"]
    # Negative control: of a weight of that size they are computed.
    whole = normalise(parsed(text, row=np.ones((8, 8), np.float32), column=column))
    assert [n.op_type for n in whole.graph.node] == ["Mul"]


def test_statistics_of_noise_or_of_what_cannot_be_computed_stay() -> None:
    noise = """
        m (float[3] x) => (float[3] y) {
            drawn = RandomNormalLike (w)
            mean = ReduceMean <axes = [0]> (drawn)
            y = Add (x, mean)
        }
    """
    w = np.ones(4, np.float32)
    assert [n.op_type for n in normalise(parsed(noise, w=w)).graph.node] == ["RandomNormalLike", "ReduceMean", "Add"]
    broken = "m (float[3] x) => (float[3] y) { mean = ReduceMean <axes = [7]> (w) y = Add (x, mean) }"
    assert [n.op_type for n in normalise(parsed(broken, w=w)).graph.node] == ["ReduceMean", "Add"]


def test_bodies_are_opened() -> None:
    """What stands in a body is normalised as anything else, and goes back for the run that `normal` compares."""
    proto = parsed(SUBGRAPH, b=X[1] + 1)
    for condition in (True, False):
        result = normal(proto, x=X, c=condition)
    assert sorted(ops(result)) == ["Add"] * 5 + ["If"] + ["Mul"] * 3
    vectors = [name for node in result.graph.node for name in node.input if name in weights(result) and name != "k"]
    assert len(vectors) == len(set(vectors)) == 5


LOOP = """agraph (int64 n, bool c, float[4] x) => (float[4] y) {
    i = Identity (b)
    d = Mul (x, b)
    e = Loop (n, c, d) <
        body = t (int64 step, bool go, float[4] v) => (bool on, float[4] w) {
            on = Identity (go) u = Add (v, i) w = Mul (u, b)
        }
    >
    y = Add (e, i)
}"""


def test_other_subgraphs_are_left_alone_and_keep_what_they_capture() -> None:
    proto = parsed(LOOP, b=X[1] + 1)
    result = normal(proto, n=2, c=True, x=X[0])
    loop, original = (next(n for n in m.graph.node if n.op_type == "Loop") for m in (result, proto))
    assert loop.attribute == original.attribute
    by_op = {node.output[0]: list(node.input) for node in result.graph.node}
    assert by_op["i"] != ["b"] and by_op["d"][1] != "b"  # `b` itself is the subgraph's
    assert len({"b", by_op["i"][0], by_op["d"][1]}) == 3


# Vectors


def test_vectors_serve_one_node_input_each() -> None:
    text = """agraph (float[2,4] x) => (float[2,4] y) {
        [first] a = Add (x, b)
        [second] c = Mul (a, b)
        d = BatchNormalization (c, b, b, b, b)
        e = MatMul (d, m)
        f = MatMul (e, m)
        g = Mul (f, s)
        y = Add (g, s)
    }"""
    m = np.eye(4, dtype=np.float32)
    result = normal(parsed(text, b=X[1], m=m, s=np.float32(2)), x=X)
    names = [name for node in result.graph.node for name in node.input]
    assert [list(n.input)[1:] for n in result.graph.node[:3]] == [
        ["b"],
        ["b::second"],
        [f"b::BatchNormalization_d{suffix}" for suffix in ("", "_2", "_3", "_4")],
    ]
    assert names.count("m") == 2 and names.count("s") == 2  # matrices and scalars stay shared
    got = weights(result)
    assert all(np.array_equal(got[name], X[1]) for name in got if name.startswith("b"))


@pytest.mark.parametrize(
    ("array", "copies"),
    [
        (np.ones(4, np.float16), 1),
        (np.ones((1, 4, 1, 1), np.float32), 1),
        (np.arange(4), 1),
        (np.ones(4, ml_dtypes.bfloat16), 1),
        (np.ones((2, 4), np.float32), 0),
        (np.ones((1, 1), np.float32), 0),
        (np.ones(4, bool), 0),
        (np.ones(0, np.float32), 0),
    ],
)
def test_what_a_vector_is(array: np.ndarray, copies: int) -> None:
    text = "agraph (float[N] x) => (float[N] y) { a = Shape (v) b = Shape (v) c = Add (a, b) y = Reshape (x, c) }"
    assert len(weights(normalise(parsed(text, v=array)))) == 1 + copies


def test_names_of_copies_avoid_all_names_in_use() -> None:
    proto = parsed(LOOP, b=X[1])
    inner = next(node for node in proto.graph.node if node.op_type == "Loop").attribute[0].g.node
    inner[1].output[0] = inner[2].input[0] = "b::Mul_d"
    result = normal(proto, n=1, c=True, x=X[0])
    assert "b::Mul_d_2" in weights(result) and "b::Mul_d" not in weights(result)


# Names and leftovers


def test_every_node_gets_a_name_of_its_own() -> None:
    proto = parsed(
        """agraph (float[N] x) => (float[N] y) {
            [same] a = Relu (x) [same] b = Relu (a) c = Neg (b) [Neg_d] e = Abs (c) d = Neg (e) y = Relu (d)
        }"""
    )
    names = [node.name for node in normal(proto).graph.node]  # ONNX Runtime refuses the original
    assert names == ["same", "Relu_b", "Neg_c", "Neg_d", "Neg_d_2", "Relu_y"]


def test_unread_initialisers_are_dropped() -> None:
    result = normal(parsed("agraph (float[N] x) => (float[N] y) { y = Relu (x) }", unread=X), x=X[0])
    assert not result.graph.initializer


# Whole models


def feeds_for(proto: ModelProto) -> dict[str, np.ndarray]:
    """Random inputs; sizes that are open are 2, but what silero's recurrence asks for."""
    sizes = {"batch": 1, "sequence": 512}
    rng = np.random.default_rng(0)
    feeds = {}
    for value in proto.graph.input:
        tensor = value.type.tensor_type
        shape = [dim.dim_value or sizes.get(dim.dim_param, 2) for dim in tensor.shape.dim]
        if value.name in ("input", "state") and any(v.name == "sr" for v in proto.graph.input):
            shape = [1, 512] if value.name == "input" else [2, 1, 128]
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        array = rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(0, 200, shape)
        feeds[value.name] = np.asarray(16000 if value.name == "sr" else array, dtype)
    return feeds


@pytest.mark.skipif(not REAL, reason="the shared real models are not here")
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_real_models_compute_the_same_bits(path: Path) -> None:
    proto = load(path).proto
    result = normalise(proto)
    assert normalise(result) == result
    if path.stem == "fns_candy":
        pytest.skip("an experimental operator, which not every ONNX Runtime has")
    feeds = feeds_for(result)
    expected = outputs(proto, feeds)
    assert same(expected, outputs(result, feeds))

    # The control: the comparison sees one weight change.
    got = weights(result)
    name = max((n for n in got if got.dtype(n).kind == "f"), key=lambda n: got[n].size, default=None)
    if name is not None and got[name].size > 1:
        tensor = got.tensor(name)
        tensor.CopyFrom(numpy_helper.from_array(got[name] * got[name].dtype.type(1.5), name))
        assert not same(expected, outputs(result, feeds))


@pytest.mark.parametrize("stem", ["light_resnet50", "light_squeezenet", "light_inception_v2"])
def test_models_without_weights_are_filled(stem: str) -> None:
    path = next(path for path in LIGHT if path.stem == stem)
    result = normalise(load(path).proto)
    assert not {"Constant", "ConstantOfShape"} & set(ops(result))
    assert sum(tensor.data_type == TensorProto.FLOAT for tensor in result.graph.initializer) > 50
