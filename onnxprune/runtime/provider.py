"""Execution providers: their short names, options and devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from onnxprune.errors import UsageError
from onnxprune.errors.words import did_you_mean

CPU = "CPUExecutionProvider"
_SUFFIX = "ExecutionProvider"

_NAMES = (
    *("ACL", "Azure", "CANN", "CoreML", "CPU", "CUDA", "Dml", "Dnnl", "MIGraphX", "Nnapi", "OpenVINO", "QNN", "ROCM"),
    *("Tensorrt", "VitisAI", "WebGpu", "Xnnpack"),
)

# Short names, in lower case; other providers are given by their full names.
_SHORT: Mapping[str, str] = MappingProxyType(
    {"directml": f"Dml{_SUFFIX}", "tensorrt-rtx": f"NvTensorRTRTX{_SUFFIX}"}
    | {name.lower(): name + _SUFFIX for name in _NAMES}
)

# Providers with device memory, and its name in ONNX Runtime's IOBinding.
_DEVICES: Mapping[str, str] = MappingProxyType(
    {
        "CANNExecutionProvider": "cann",
        "CUDAExecutionProvider": "cuda",
        "DmlExecutionProvider": "dml",
        "NvTensorRTRTXExecutionProvider": "cuda",
        "TensorrtExecutionProvider": "cuda",
    }
)

# Providers with their own thread pools, and the option for the number of threads.
_THREADS: Mapping[str, str] = MappingProxyType(
    {
        "OpenVINOExecutionProvider": "num_of_threads",
        "XnnpackExecutionProvider": "intra_op_num_threads",
    }
)


@dataclass(frozen=True, slots=True)
class Provider:
    """An execution provider with its options.

    Attributes:
        name: ONNX Runtime's name, such as CUDAExecutionProvider.
        options: its options; values are strings.
        device: the device memory for inputs and outputs; None for host memory.
    """

    name: str
    options: Mapping[str, str] = field(default_factory=dict)
    device: str | None = None

    @property
    def short(self) -> str:
        """The short name, such as cuda."""
        return next((s for s, name in _SHORT.items() if name == self.name), self.name.removesuffix(_SUFFIX).lower())

    @property
    def device_id(self) -> int:
        """The device number, from the options."""
        number = self.options.get("device_id", "0")
        return int(number) if number.isdecimal() else 0

    def chain(self, threads: int | None = None) -> list[tuple[str, dict[str, Any]]]:
        """Return the providers to open a session with: this one, then the CPU for the remaining nodes.

        Args:
            threads: threads within an operator, for providers with their own pools; None for the provider's default.
        """
        own = {_THREADS[self.name]: str(threads)} if threads is not None and self.name in _THREADS else {}
        chain = [(self.name, own | dict(self.options))]
        return chain if self.name == CPU else [*chain, (CPU, {})]

    def with_option(self, key: str, value: str) -> Provider:
        """Return a copy with an option set."""
        return replace(self, options={**self.options, key: value})


def parse_provider(text: str) -> Provider:
    """Return the provider with a name: a short one such as ``cuda``, or ONNX Runtime's.

    Raises:
        UsageError: no provider has this name (OP608), or ONNX Runtime isn't installed (OP601).
    """
    from onnxprune.runtime.library import import_onnxruntime

    runtime = import_onnxruntime()
    known = {name: name for name in runtime.get_all_providers()}
    known |= {name: name for name in runtime.get_available_providers()} | dict(_SHORT)
    name = known.get(text, known.get(text.lower()))
    if name is None:
        hint = did_you_mean(text, known) or f"there are {', '.join(sorted(_SHORT))}"
        raise UsageError("OP608", f"there is no execution provider {text!r}", hint=hint)
    return Provider(name, device=_DEVICES.get(name))
