"""Models as other tools rewrite them: quantized, and optimized by ONNX Runtime."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.optimizer import optimize_model

Feeds = dict[str, NDArray[Any]]


def quantized(
    model: ModelProto,
    batches: list[Feeds],
    form: Literal["QDQ", "QOperator"],
    *,
    per_channel: bool,
    signed: bool = True,
) -> ModelProto:
    """Quantize weights and activations to 8 bits, with the ranges that a few batches show."""
    with TemporaryDirectory() as folder, _quiet():
        source, prepared, target = (Path(folder) / f"{n}.onnx" for n in ("source", "prepared", "target"))
        onnx.save(model, source)
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            target,
            _Batches(batches),
            quant_format=QuantFormat[form],
            per_channel=per_channel,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8 if signed else QuantType.QUInt8,
            reduce_range=True,  # 7 bits: on x86 without VNNI, sums of 8-bit products overflow, and no two runs agree
        )
        return onnx.load(target)


def dynamically_quantized(model: ModelProto, *, per_channel: bool) -> ModelProto:
    """Quantize weights; activations get their scales at run time."""
    with TemporaryDirectory() as folder, _quiet():
        source, target = Path(folder) / "source.onnx", Path(folder) / "target.onnx"
        onnx.save(model, source)
        unknown = {"DefaultTensorType": onnx.TensorProto.FLOAT}  # behind operators that onnx doesn't know
        how: dict[str, Any] = {"weight_type": QuantType.QUInt8, "reduce_range": True, "extra_options": unknown}
        quantize_dynamic(source, target, per_channel=per_channel, **how)
        return onnx.load(target)


def optimized(model: ModelProto, level: Literal["EXTENDED", "ALL"] = "EXTENDED") -> ModelProto:
    """Let ONNX Runtime fuse what it can, as it would before a run, and save the result.

    With all optimizations, layouts are changed as well.
    """
    with TemporaryDirectory() as folder:
        target = Path(folder) / "target.onnx"
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
        options.optimized_model_filepath = str(target)
        options.log_severity_level = 4
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(target)


def fused(model: ModelProto, kind: str, heads: int, width: int) -> ModelProto:
    """Fuse attentions, embeddings and norms with the optimizer for transformers that comes with ONNX Runtime."""
    with TemporaryDirectory() as folder, _quiet():
        source = Path(folder) / "source.onnx"
        onnx.save(model, source)
        found = optimize_model(str(source), model_type=kind, num_heads=heads, hidden_size=width, opt_level=0)
        result = ModelProto.FromString(found.model.SerializeToString())
        if all(entry.domain != "com.microsoft" for entry in result.opset_import):  # it may forget to say so
            result.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
        return result


class _Batches(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, batches: list[Feeds]) -> None:
        self._batches: Iterator[Feeds] = iter(batches)

    def get_next(self) -> Feeds | None:
        return next(self._batches, None)


class _quiet:
    """Silence tools that log through the root logger."""

    def __enter__(self) -> None:
        self._level = logging.root.manager.disable
        logging.disable(logging.CRITICAL)

    def __exit__(self, *error: object) -> None:
        logging.disable(self._level)
