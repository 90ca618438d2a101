from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser

from models.fill import fill

LIGHT = sorted((Path(onnx.__file__).parent / "backend/test/data/light").glob("*.onnx"))
LARGE = {"light_bvlc_alexnet", "light_vgg19", "light_zfnet512"}  # 200 to 600 MB of weights
ARCHITECTURES = Path(__file__).parents[2] / "../shared/models/architectures"
CONTRACTIONS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


def test_onnx_ships_nine_light_models() -> None:
    assert len(LIGHT) == 9


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.slow] if path.stem in LARGE else [], id=path.stem) for path in LIGHT],
)
def test_light_model(path: Path) -> None:
    model = onnx.load(path)
    filled = fill(model)

    onnx.checker.check_model(filled, full_check=True)
    assert "ConstantOfShape" not in {node.op_type for node in filled.graph.node}
    assert filled.ir_version == 8
    assert len(filled.graph.input) == 1
    assert faults(filled) == []


@pytest.mark.parametrize(
    "path",
    sorted(ARCHITECTURES.glob("*.onnx"))
    or [pytest.param(None, marks=pytest.mark.skip("needs ../shared/models/architectures"))],
    ids=lambda path: path.stem if path else "none",
)
def test_architecture(path: Path) -> None:
    model = onnx.load(path)
    filled = fill(model)

    onnx.checker.check_model(filled, full_check=True)
    assert filled.ir_version == model.ir_version
    assert faults(filled) == []


def test_a_model_that_was_not_filled_is_found_out() -> None:
    (path,) = (path for path in LIGHT if "squeezenet" in path.stem)
    assert faults(onnx.load(path))


@pytest.mark.parametrize("seed", range(3))
def test_layers_of_every_kind_have_outputs_near_one(seed: int) -> None:
    filled = fill(every_kind(), seed)

    assert faults(filled, low=0.2, high=5) == []


def test_weights_get_what_their_role_asks_for() -> None:
    values = initializers(fill(every_kind()))

    assert values["scale"].min() > 0
    assert values["var"].min() > 0
    assert 0.7 < values["scale"].mean() < 1.3
    assert abs(values["mean"]).mean() < 0.2
    # Given, but of weights that are gone: drawn anew.
    assert not np.array_equal(values["shift"], np.full(8, 100, np.float32))
    filters = values["w_conv"].reshape(80, -1)
    assert abs(filters.mean(axis=1)).max() < 1e-6
    lengths = np.linalg.norm(filters, axis=1)
    assert lengths.max() / lengths.min() > 1.5


def test_integers_and_small_tensors_stay() -> None:
    nodes = {node.output[0] for node in fill(every_kind()).graph.node}

    assert {"ints", "small"} <= nodes
    assert "w_conv" not in nodes


def test_only_the_shapes_that_nothing_reads_go() -> None:
    names = initializers(fill(every_kind())).keys()

    assert "shape_small" in names
    assert "shape_conv" not in names


def test_seed_decides() -> None:
    model = every_kind()
    first, again, other = fill(model, 1), fill(model, 1), fill(model, 2)

    assert first.SerializeToString() == again.SerializeToString()
    assert first.SerializeToString() != other.SerializeToString()


def test_element_types_are_kept() -> None:
    text = """
    <ir_version: 8, opset_import: ["": 17]>
    g (double[N, 16] x) => (double[N, 32] y)
    <int64[2] shape = {16, 32}>
    {
        w = ConstantOfShape <value: tensor = double[1] {0.0}> (shape)
        y = MatMul(x, w)
    }
    """
    (weight,) = fill(parser.parse_model(text)).graph.initializer
    assert weight.data_type == onnx.TensorProto.DOUBLE


def test_a_trained_model_comes_back_as_it_is() -> None:
    model = onnx.load(Path(__file__).parents[2] / "models/digits_resnet.onnx")
    assert fill(model) == model


def every_kind() -> onnx.ModelProto:
    """A graph with every kind of layer and of path from a weight to it; hollow but for `shift`."""
    float_, int_ = "<value: tensor = float[1] {0.5}>", "<value: tensor = int64[1] {7}>"
    model = parser.parse_model(f"""
    <ir_version: 8, opset_import: ["": 17]>
    g (float[N, 8, 16, 16] x) => (float[N, 10] logits, float[N, 16, 32, 32] up, int64[2] seven)
    <int64[1] shape_8 = {{8}}, int64[4] shape_conv = {{80, 8, 3, 3}}, int64[1] shape_80 = {{80}},
     int64[4] shape_deep = {{80, 1, 3, 3}}, int64[2] shape_point = {{16, 80}},
     int64[4] to_point = {{16, 80, 1, 1}}, int64[4] shape_up = {{16, 16, 4, 4}},
     int64[2] shape_gemm = {{32, 16}}, int64[2] shape_matmul = {{10, 32}},
     int64[3] shape_gamma = {{80, 1, 1}}, int64[1] shape_ints = {{2}},
     int64[1] shape_small = {{10}}, float[1] six = {{6.0}}>
    {{
        scale = ConstantOfShape {float_} (shape_8)
        mean = ConstantOfShape {float_} (shape_8)
        var = ConstantOfShape {float_} (shape_8)
        normal = BatchNormalization (x, scale, shift, mean, var)
        w_conv = ConstantOfShape {float_} (shape_conv)
        b_conv = ConstantOfShape {float_} (shape_80)
        w_conv_id = Identity (w_conv)
        conv = Conv <pads = [1, 1, 1, 1]> (normal, w_conv_id, b_conv)
        gate = Sigmoid (conv)
        silu = Mul (conv, gate)
        w_deep = ConstantOfShape {float_} (shape_deep)
        deep = Conv <pads = [1, 1, 1, 1], group = 80> (silu, w_deep)
        gamma = ConstantOfShape {float_} (shape_gamma)
        scaled = Mul (deep, gamma)
        sum = Add (scaled, conv)
        relu = Relu (sum)
        pooled = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (relu)
        w_point = ConstantOfShape {float_} (shape_point)
        w_point_4d = Reshape (w_point, to_point)
        point = Conv (pooled, w_point_4d)
        w_up = ConstantOfShape {float_} (shape_up)
        up = ConvTranspose <strides = [2, 2], pads = [1, 1, 1, 1]> (point, w_up)
        mean_point = GlobalAveragePool (point)
        flat = Flatten (mean_point)
        w_gemm = ConstantOfShape {float_} (shape_gemm)
        hidden = Gemm <transB = 1> (flat, w_gemm)
        w_matmul = ConstantOfShape {float_} (shape_matmul)
        w_matmul_t = Transpose <perm = [1, 0]> (w_matmul)
        product = MatMul (hidden, w_matmul_t)
        small = ConstantOfShape {float_} (shape_small)
        logits = Add (product, small)
        ints = ConstantOfShape {int_} (shape_ints)
        seven = Identity (ints)
    }}
    """)
    model.graph.initializer.append(numpy_helper.from_array(np.full(8, 100, np.float32), "shift"))
    return model


def initializers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def faults(model: onnx.ModelProto, low: float = 0.02, high: float = 20) -> list[str]:
    """What is wrong with a model's activations on two random inputs, by ONNX Runtime."""
    inner = [node.output[0] for node in model.graph.node if node.op_type in CONTRACTIONS]
    outputs = [value.name for value in model.graph.output if is_float(value)]
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    present = {value.name for value in model.graph.output}
    probed.graph.output.extend(onnx.ValueInfoProto(name=n) for n in inner if n not in present)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(probed.SerializeToString(), options)
    one, other = (run(session, seed) for seed in (0, 1))
    found = []
    for name in inner:
        rms = float(np.sqrt(np.mean(np.square(one[name], dtype=np.float64))))
        if not low < rms < high:
            found.append(f"{name} has a root mean square of {rms}")
    for name in outputs:
        if not np.isfinite(one[name]).all():
            found.append(f"{name} isn't finite")
        elif np.ptp(one[name]) == 0:
            found.append(f"{name} is constant")
        elif np.allclose(one[name], other[name], rtol=1e-3, atol=0):
            found.append(f"{name} doesn't depend on the input")
    return found


def is_float(value: onnx.ValueInfoProto) -> bool:
    return value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def run(session: ort.InferenceSession, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    feed = {
        value.name: rng.standard_normal([d if isinstance(d, int) else 1 for d in value.shape], np.float32)
        for value in session.get_inputs()
    }
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))
