"""Quantization: what ONNX Runtime's quantizers make, and what of it is kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import ModelProto, numpy_helper, parser
from onnxruntime.transformers.float16 import convert_float_to_float16

import onnxprune as op
from onnxprune.cli import cli
from onnxprune.errors import ModelError, PlanError, VerificationError
from onnxprune.model.session import run, session
from onnxprune.quantization import quantizers
from onnxprune.quantization.disturbed import disturbed
from onnxprune.quantization.quantizers import calibrate, layers, prepare, refused, static
from onnxprune.settings.quantization import Calibration
from onnxprune.workflow.inputs import divided
from tests.quantization.support import DIGITS, MODELS, QUICK


def test_stored_weights_are_the_original_ones_rounded_to_a_step(prepared: ModelProto, ranges: Any) -> None:
    model = static(prepared, ranges)
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    before = {t.name: numpy_helper.to_array(t) for t in prepared.graph.initializer}
    checked = 0
    for node in model.graph.node:
        weight = node.input[0].removesuffix("_quantized")
        if node.op_type == "DequantizeLinear" and before.get(weight, np.zeros(())).ndim > 1:
            scale = stored[node.input[1]]
            assert stored[node.input[0]].dtype == np.int8 and scale.shape == before[weight].shape[:1]
            steps = before[weight] / scale.reshape(-1, *[1] * (before[weight].ndim - 1))
            assert np.abs(steps - stored[node.input[0]]).max() <= 0.501
            checked += 1
    assert checked == len(layers(prepared)) > 10


def test_kept_layers_read_their_own_weights(prepared: ModelProto, ranges: Any) -> None:
    first, second, *_ = layers(prepared)
    nodes = {n.name: n for n in static(prepared, ranges, keep=[first]).graph.node}
    before = {n.name: n for n in prepared.graph.node}
    assert nodes[first].input[1] == before[first].input[1]
    assert nodes[second].input[1] != before[second].input[1]  # the control


@pytest.mark.parametrize("bits", [8, 4])
def test_blocks_of_weights_are_rounded_to_a_step(bits: int) -> None:
    pytest.importorskip("onnx_ir")
    text = '<ir_version: 8, opset_import: ["": 17]> g (float[n, 64] x) => (float[n, 32] y) { y = MatMul(x, w) }'
    model = parser.parse_model(text)
    weights = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    found = quantizers.blockwise(prepare(model), bits)
    assert [node.op_type for node in found.graph.node] == ["MatMulNBits"]
    rounded = run(session(found), {"x": np.eye(64, dtype=np.float32)})["y"]
    blocks = np.abs(weights).reshape(2, 32, 32).max(axis=1, keepdims=True)
    step = (blocks / 2 ** (bits - 1)).repeat(32, axis=1).reshape(64, 32)
    assert (np.abs(rounded - weights) <= 1.05 * step).all() and np.abs(rounded - weights).max() > 0


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_a_model_in_float16_is_quantized_in_float32(method: Calibration, images: np.ndarray) -> None:
    half = convert_float_to_float16(onnx.load(DIGITS))  # inputs and outputs, too
    assert not layers(half)  # the control: the quantizers know no layer of it
    ready = prepare(half)
    feeds = {"image": images.astype(np.float16)}
    small = static(ready, calibrate(ready, [feeds], method))
    dense, same, found = (session(model).run(None, feeds)[0] for model in (half, ready, small))
    assert dense.dtype == same.dtype == found.dtype == np.float16
    assert np.abs(dense - same).max() < 0.05 < np.abs(dense).max()
    assert (dense.argmax(1) == found.argmax(1)).mean() > 0.95
    assert sum(t.data_type == onnx.TensorProto.INT8 for t in small.graph.initializer) >= len(layers(ready)) > 10


def test_a_grouped_transposed_convolution_stays_in_float() -> None:
    text = """<ir_version: 8, opset_import: ["" : 13]>
    g (float[N, 8, 16, 16] x) => (float[N, 8, 32, 32] y) {
        a = Conv<pads = [1, 1, 1, 1]>(x, w)
        y = ConvTranspose<group = 4, strides = [2, 2]>(a, v, bias)
    }"""
    rng, model = np.random.default_rng(0), parser.parse_model(text)
    for name, shape in {"w": (8, 8, 3, 3), "v": (8, 2, 2, 2), "bias": (8,)}.items():
        model.graph.initializer.append(numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
    for node in model.graph.node:
        node.name = node.op_type
    inputs = {"x": rng.normal(size=(16, 8, 16, 16)).astype(np.float32)}
    whole = prepare(model)
    found = calibrate(whole, [inputs], "minmax")
    with pytest.raises(ModelError, match="OP128"):  # once this passes, nothing needs to be kept any more
        static(whole, found)
    (kept,) = refused(whole)
    made = static(whole, found, keep=[kept])
    before, after = run(session(model), inputs)["y"], run(session(made), inputs)["y"]
    assert 0 < np.square(after - before).mean() < 0.001 * before.var()


def test_what_the_quantizer_refuses_is_our_error(prepared: ModelProto) -> None:
    with pytest.raises(ModelError, match="OP128"):
        static(prepared, ranges=None)
    with pytest.raises(ModelError, match="OP128"):
        calibrate(prepared, [{"image": np.zeros((1, 2, 3), np.float32)}], "minmax")


def test_images_are_disturbed_by_one_pixel_and_numbers_by_noise(images: np.ndarray) -> None:
    model = prepare(op.load(DIGITS).proto)
    moved = disturbed(model, {"image": images[:1]})
    assert moved is not None
    onnx.checker.check_model(moved)
    shifted = np.concatenate([images[..., 1:], images[..., -1:]], axis=3)
    mine = run(session(moved), {"image": images})["logits"]
    right = run(session(model), {"image": shifted})["logits"]
    np.testing.assert_allclose(mine, right, rtol=1e-4, atol=1e-4)
    assert np.abs(mine - run(session(model), {"image": images})["logits"]).max() > 0.1  # the control

    text = '<ir_version: 8, opset_import: ["": 17]> g (float[n, 500] x, int64[n] i) => (float[n, 500] y, int64[n] j) {'
    plain = parser.parse_model(text + " y = Identity(x)\n j = Identity(i) }")
    feeds = {"x": np.random.default_rng(0).normal(3, 2, (4, 500)).astype(np.float32), "i": np.arange(4)}
    noisy = disturbed(plain, feeds)
    assert noisy is not None
    found = run(session(noisy), feeds)
    assert 0.015 < (found["y"] - feeds["x"]).std() < 0.025  # 1 % of 2
    assert (found["j"] == feeds["i"]).all()
    ids = parser.parse_model('<ir_version: 8, opset_import: ["": 17]> g (int64[n] i) => (int64[n] j) { j = Neg(i) }')
    assert disturbed(ids, {"i": np.arange(4)}) is None


def test_samples_that_judge_neither_calibrate_nor_choose() -> None:
    data = op.open_data(MODELS / "digits_test.npz", op.load(DIGITS).proto)
    parts = divided(data, 0, (1 / 2, 96), (1 / 4, 64))
    seen = [np.concatenate([b.inputs["image"] for b in part.batches(64)]) for part in parts]
    counts = [len(part) for part in parts]
    assert min(counts) >= 64 and sum(counts) <= len(data)
    rows = [{image.tobytes() for image in part} for part in seen]
    doubles = len(np.unique(np.concatenate([b.inputs["image"] for b in data.batches(64)]), axis=0)) - len(data)
    assert len(rows[0] & rows[2]) + len(rows[1] & rows[2]) <= -doubles  # equal images are other samples


def test_a_form_that_pays_is_kept_and_right(fast: Callable[[float], None]) -> None:
    fast(2.0)
    found = op.quantize(DIGITS, **QUICK)
    assert found.best.error < found.found.allowed < 1 and found.best.size < 0.5 * DIGITS.stat().st_size
    onnx.checker.check_model(found.model.proto)
    with np.load(MODELS / "digits_test.npz", allow_pickle=False) as data:
        inputs, labels = data["images"], data["labels"]
    logits = run(session(found.model.proto), {"image": inputs})["logits"]
    assert (logits.argmax(axis=1) == labels).mean() > 0.98
    notes = {entry.key: entry.value for entry in found.model.proto.metadata_props}
    assert json.loads(notes["onnxprune.quantized"])["calibration"] == "minmax"


def test_a_form_that_does_not_pay_is_left_out(fast: Callable[[float], None]) -> None:
    fast(0.9)
    with pytest.raises(VerificationError, match=r"OP507.*0\.90 times as fast"):
        op.quantize(DIGITS, **QUICK)
    with pytest.raises(VerificationError, match="OP507"):  # slower is no way to be smaller either
        op.quantize(DIGITS, **QUICK, objective="size")


def test_a_harmful_form_is_left_out(fast: Callable[[float], None], monkeypatch: pytest.MonkeyPatch) -> None:
    fast(5.0)
    half = quantizers.float16

    def harmful(prepared: ModelProto, *, keep: Collection[str] = ()) -> ModelProto:
        model = half(prepared)
        for tensor in model.graph.initializer:
            if len(tensor.dims) > 1:
                tensor.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(tensor), tensor.name))
        return model

    settings = {**QUICK, "kind": ("float16",), "calibration": "auto"}
    assert op.quantize(DIGITS, **settings).best.kind == "float16"  # the control
    monkeypatch.setitem(quantizers.WHOLE, "float16", harmful)
    with pytest.raises(VerificationError, match=r"OP507.*no form keeps the error"):
        op.quantize(DIGITS, **settings)
    broken = {**QUICK, "kind": ("float16", "static"), "calibration": "auto"}
    assert op.quantize(DIGITS, **broken).best.kind == "static"


def test_layers_that_lose_too_much_stay_in_float(fast: Callable[[float], None]) -> None:
    fast(2.0)
    whole = op.quantize(DIGITS, **QUICK).best
    share = 0.6  # weights that make up for rounding don't reach it, where a processor takes 7 bits
    tight = op.quantize(DIGITS, **QUICK, max_error=share * whole.error).best
    assert 0 < len(tight.kept) < len(layers(prepare(op.load(DIGITS).proto)))
    assert tight.error <= share * whole.error
    nodes = {n.name: n for n in tight.model.graph.node}
    stored = {t.name: t.data_type for t in tight.model.graph.initializer}
    assert all(stored[nodes[name].input[1]] == onnx.TensorProto.FLOAT for name in tight.kept)


def test_layers_named_by_the_user_stay_in_float(fast: Callable[[float], None]) -> None:
    fast(2.0)
    name = layers(prepare(op.load(DIGITS).proto))[0]
    assert name in op.quantize(DIGITS, **QUICK, keep=(name,)).best.kept
    with pytest.raises(PlanError, match=r"OP304.*nosuch"):
        op.quantize(DIGITS, **QUICK, keep=("nosuch*",))


def test_the_command(tmp_path: Path, fast: Callable[[float], None]) -> None:
    fast(2.0)
    out, data = tmp_path / "small.onnx", str(MODELS / "digits_test.npz")
    quick = ["--data", data, "--kind", "static", "--calibration", "minmax"]
    done = CliRunner().invoke(cli, ["quantize", str(DIGITS), "-o", str(out), *quick])
    assert done.exit_code == 0 and "2.00x" in done.stdout and f"wrote {out}" in done.stderr
    onnx.checker.check_model(out)
    found = CliRunner().invoke(cli, ["quantize", str(DIGITS), "-o", str(out), "--force", *quick, "--format", "json"])
    document = json.loads(found.stdout)
    assert document["best"]["kind"] == "static" and document["evaluation"]["samples"] > 100
    missing = CliRunner().invoke(cli, ["quantize", str(DIGITS), "-o", str(out), "--force"])
    assert missing.exit_code == 2 and "--data" in missing.stderr
    fast(0.5)
    (tmp_path / "none").mkdir()
    none = tmp_path / "none" / "n.onnx"
    slow = CliRunner().invoke(cli, ["quantize", str(DIGITS), "-o", str(none), *quick])
    assert slow.exit_code == 1 and "OP507" in slow.stderr and not list(none.parent.iterdir())


def test_a_final_softmax_keeps_small_probabilities(
    fast: Callable[[float], None], images: np.ndarray, tmp_path: Path
) -> None:
    fast(2.0)
    model = op.load(DIGITS).proto
    model.graph.node.append(onnx.helper.make_node("Softmax", ["logits"], ["chances"], name="chances", axis=1))
    model.graph.output[0].name = "chances"
    onnx.save(model, tmp_path / "chances.onnx")
    found = op.quantize(tmp_path / "chances.onnx", **QUICK)
    right = run(session(model), {"image": images})["chances"]
    mine = run(session(found.model.proto), {"image": images})["chances"]
    rare = (right < 1e-3) & (right > 1e-6)
    assert rare.sum() > 20 and np.abs(np.log(mine[rare] / right[rare])).mean() < 0.5

    ready = prepare(model)
    whole = static(ready, calibrate(ready, [{"image": images}], "minmax"))  # the control
    assert (run(session(whole), {"image": images})["chances"][rare] == 0).mean() > 0.5
