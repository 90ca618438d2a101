"""What processors and execution providers support and prefer: one table, with its sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from onnxprune.settings.quantization import Kind

HardwareName = Literal["cpu", "arm64", "avx2", "avx512-vnni", "cuda", "tensorrt", "openvino", "qnn", "coreml", "webgpu"]

_ORT_QUANTIZATION = "https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html"
_INT8_CPU: tuple[Kind, ...] = ("static", "dynamic", "int8-weights", "int4-weights")


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a target supports and prefers.

    Attributes:
        provider: the short name of its execution provider in ONNX Runtime.
        channels: the multiple of channels that it computes at once; None for the usual ones.
        kinds: the kinds of numbers worth trying, see `QuantizeSettings`.
        weight_bits: the bits of INT8 weights, where more would overflow; None lets measurements decide.
        machine: the processor that it needs, as Python's `platform.machine` says it, or a flag of it; empty for any.
        why: the reasons in a line.
        source: where they are documented.
    """

    provider: str
    channels: int | None
    kinds: tuple[Kind, ...]
    why: str
    source: str
    weight_bits: int | None = None
    machine: str = ""


HARDWARE: Mapping[HardwareName, Hardware] = {
    "cpu": Hardware("cpu", None, (), "everything is measured here", _ORT_QUANTIZATION),
    "arm64": Hardware(
        *("cpu", 8, _INT8_CPU, "float kernels take 8 channels at once; INT8 sums don't overflow", _ORT_QUANTIZATION),
        weight_bits=8,
        machine="aarch64",
    ),
    "avx2": Hardware(
        *("cpu", 8, _INT8_CPU, "registers hold 8 floats; 16-bit sums of INT8 overflow", _ORT_QUANTIZATION),
        weight_bits=7,
        machine="avx2",
    ),
    "avx512-vnni": Hardware(
        *("cpu", 16, _INT8_CPU, "registers hold 16 floats; INT8 is summed in 32 bits", _ORT_QUANTIZATION),
        weight_bits=8,
        machine="avx512_vnni",
    ),
    "cuda": Hardware(
        *("cuda", 8, ("float16",), "tensor cores take multiples of 8 in float16; no INT8 convolutions"),
        "https://docs.nvidia.com/deeplearning/performance/dl-performance-convolutional/index.html",
    ),
    "tensorrt": Hardware(
        *("tensorrt", 8, ("float16",), "tensor cores take multiples of 8; INT8 needs symmetric activations"),
        "https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-with-quantized-types.html",
    ),
    "openvino": Hardware(
        *("openvino", 16, ("static", "float16"), "QDQ models run in INT8; float16 on its GPUs"),
        "https://onnxruntime.ai/docs/execution-providers/OpenVINO-ExecutionProvider.html",
    ),
    "qnn": Hardware(
        *(
            "qnn",
            32,
            ("static",),
            "its HTP backend runs QDQ models only, of 8-bit weights and 8- or 16-bit activations",
        ),
        "https://onnxruntime.ai/docs/execution-providers/QNN-ExecutionProvider.html",
    ),
    "coreml": Hardware(
        *("coreml", 16, ("float16",), "its Neural Engine computes in float16; it lists no quantized operators"),
        "https://onnxruntime.ai/docs/execution-providers/CoreML-ExecutionProvider.html",
    ),
    "webgpu": Hardware(
        *("webgpu", 4, ("float16", "int4-weights"), "shaders take 4 channels at once; no INT8 convolutions"),
        "https://onnxruntime.ai/docs/tutorials/web/ep-webgpu.html",
    ),
}
"""What each target supports and prefers, by the words of `--for`."""
