"""Weights and biases that make up for rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper, parser

import onnxprune as op
from onnxprune.model.file import load
from onnxprune.model.session import run, session
from onnxprune.quantization import correction, search
from onnxprune.quantization.correction import correct
from onnxprune.quantization.quantizers import calibrate, layers, prepare, static
from tests.quantization.support import DIGITS, MODELS, QUICK


def outputs(model: ModelProto, images: np.ndarray, node: str | None = None) -> np.ndarray:
    """Return the output of a model, or of one of its nodes, by ONNX Runtime on the whole model."""
    whole = ModelProto()
    whole.CopyFrom(model)
    if node is not None:
        del whole.graph.output[:]
        whole.graph.output.add(name=next(n.output[0] for n in model.graph.node if n.name == node))
    return np.asarray(next(iter(run(session(whole), {"image": images}).values()))).astype(np.float64)


def coarser(model: ModelProto, factor: int) -> ModelProto:
    """Return a model of larger steps; those of weights and biases change alike, which kernels assume."""
    found = ModelProto()
    found.CopyFrom(model)
    stored = {t.name: t for t in found.graph.initializer}
    for node in found.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in stored:
            numbers, step = (numpy_helper.to_array(stored[name]) for name in node.input[:2])
            pair = np.round(numbers / factor).astype(numbers.dtype), factor * step
            for name, value in zip(node.input[:2], pair, strict=True):
                stored[name].CopyFrom(numpy_helper.from_array(value, name))
    return found


class TestCorrection:
    """Weights and biases that make up for rounding, by ONNX Runtime on images that they weren't solved for on."""

    @pytest.fixture
    def others(self) -> np.ndarray:
        with np.load(MODELS / "digits_train.npz", allow_pickle=False) as found:
            return np.asarray(found["images"])[:300]

    @staticmethod
    def batches(images: np.ndarray) -> Callable[[], Any]:
        return lambda: iter([{"image": images[:40]}, {"image": images[40:]}])

    @staticmethod
    def error(model: ModelProto, prepared: ModelProto, images: np.ndarray) -> float:
        found, goal = (outputs(each, images) for each in (model, prepared))
        return float(np.square(found - goal).mean() / goal.var())

    def test_outputs_are_nearer_than_biases_alone_bring_them(
        self,
        prepared: ModelProto,
        ranges: Any,
        images: np.ndarray,
        others: np.ndarray,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        rough = coarser(load(static(prepared, ranges)).proto, 16)
        model, biases = ModelProto(), ModelProto()
        model.CopyFrom(rough)
        biases.CopyFrom(rough)
        assert correct(model, prepared, self.batches(images)) == len(layers(prepared))
        monkeypatch.setattr(correction, "_RIDGES", ())
        correct(biases, prepared, self.batches(images))
        before, shifted, after = (self.error(each, prepared, others) for each in (rough, biases, model))
        assert after < 0.3 * shifted < 0.3 * before
        for old, new in zip(rough.graph.initializer, model.graph.initializer, strict=True):
            assert (old.name, old.data_type, old.dims) == (new.name, new.data_type, new.dims)
            if old.data_type == onnx.TensorProto.INT8 and len(old.dims) > 1:  # no number needs more bits than before
                assert np.abs(numpy_helper.to_array(new)).max() <= np.abs(numpy_helper.to_array(old)).max()
            elif old.data_type == onnx.TensorProto.FLOAT:
                assert old == new
        for name in [n.name for n in prepared.graph.node if n.op_type == "Conv"]:
            goal, old, new = (outputs(each, images, name).mean(axis=(0, 2, 3)) for each in (prepared, rough, model))
            assert np.abs(new - goal).mean() < 0.5 * np.abs(old - goal).mean()

        noise = np.random.default_rng(0).standard_normal(images.shape).astype(np.float32) * 8  # the control
        monkeypatch.undo()
        correct(rough, prepared, self.batches(noise))
        assert self.error(rough, prepared, others) > 5 * after

    def test_few_samples_do_no_harm(
        self, prepared: ModelProto, ranges: Any, images: np.ndarray, others: np.ndarray
    ) -> None:
        rough = coarser(load(static(prepared, ranges)).proto, 8)
        before = self.error(rough, prepared, others)
        for count in (3, 8):
            model = ModelProto()
            model.CopyFrom(rough)
            correct(model, prepared, lambda count=count: iter([{"image": images[:count]}]))  # type: ignore[misc]
            assert self.error(model, prepared, others) < before

    def test_matrices_and_transposed_convolutions_are_solved_for(self) -> None:
        rng = np.random.default_rng(1)
        model = parser.parse_model(
            """<ir_version: 8, opset_import: ["": 17]> g (float[n, 16, 5, 5] image) => (float[n, 4, 9] y) {
                [a] a = ConvTranspose <strides = [2, 2]> (image, w, b)
                [c] c = ReduceMean <axes = [2], keepdims = 0> (a)
                [y] y = MatMul(c, m)
            }"""
        )
        shapes = {"w": (16, 4, 3, 3), "b": (4,), "m": (11, 9)}
        for name, shape in shapes.items():
            model.graph.initializer.append(numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
        hidden = rng.normal(size=(600, 3, 5, 5)).cumsum(axis=3)
        images = np.einsum("nhij,hc->ncij", hidden, rng.normal(size=(3, 16))).astype(np.float32)
        ready = prepare(model)
        rough = coarser(load(static(ready, calibrate(ready, [{"image": images[:200]}], "minmax"))).proto, 16)
        solved = ModelProto()
        solved.CopyFrom(rough)
        assert correct(solved, ready, lambda: iter([{"image": images[:200]}])) == 2
        before, after = (self.error(each, ready, images[200:]) for each in (rough, solved))
        assert after < 0.5 * before

    def test_a_search_takes_it_where_it_helps(
        self, fast: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fast(2.0)
        monkeypatch.setattr(search, "static", lambda *args, **how: coarser(load(static(*args, **how)).proto, 16))
        how = {**QUICK, "weight_bits": 8, "max_error": 0.005}
        found = op.quantize(DIGITS, **how).best
        assert found.about["weights"] == "solved for" and found.error < 0.005 and not found.kept
        form = {"kind": found.kind, **found.about, "kept": []}
        given = {name: QUICK[name] for name in ("data", "threads")}
        again = op.quantize(DIGITS, **given, form=form, max_error=0.005).best
        assert again.model.graph == found.model.graph

        def harmful(model: ModelProto, *_: Any) -> None:
            for tensor in model.graph.initializer:
                if tensor.data_type == onnx.TensorProto.INT8:
                    tensor.raw_data = bytes(len(tensor.raw_data))

        monkeypatch.setattr(search, "correct", harmful)
        found = op.quantize(DIGITS, **how).best
        assert "weights" not in found.about and found.kept and found.error < 0.005
