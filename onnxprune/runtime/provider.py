"""Execution providers as users name them, and as ONNX Runtime takes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from onnxprune.errors import UsageError
from onnxprune.runtime.library import import_onnxruntime

CPU = "CPUExecutionProvider"
_SUFFIX = "ExecutionProvider"

# Short names, in lower case; any other provider may be given by its full name.
_SHORT: Mapping[str, str] = MappingProxyType(
    {
        "acl": "ACLExecutionProvider",
        "azure": "AzureExecutionProvider",
        "cann": "CANNExecutionProvider",
        "coreml": "CoreMLExecutionProvider",
        "cpu": CPU,
        "cuda": "CUDAExecutionProvider",
        "directml": "DmlExecutionProvider",
        "dml": "DmlExecutionProvider",
        "dnnl": "DnnlExecutionProvider",
        "migraphx": "MIGraphXExecutionProvider",
        "nnapi": "NnapiExecutionProvider",
        "openvino": "OpenVINOExecutionProvider",
        "qnn": "QNNExecutionProvider",
        "rocm": "ROCMExecutionProvider",
        "tensorrt": "TensorrtExecutionProvider",
        "tensorrt-rtx": "NvTensorRTRTXExecutionProvider",
        "vitisai": "VitisAIExecutionProvider",
        "webgpu": "WebGpuExecutionProvider",
        "xnnpack": "XnnpackExecutionProvider",
    }
)

# Providers whose tensors live in a memory of their own, and what ONNX Runtime's IOBinding calls that.
_DEVICES: Mapping[str, str] = MappingProxyType(
    {
        "CANNExecutionProvider": "cann",
        "CUDAExecutionProvider": "cuda",
        "DmlExecutionProvider": "dml",
        "NvTensorRTRTXExecutionProvider": "cuda",
        "TensorrtExecutionProvider": "cuda",
    }
)

# Providers that have threads of their own, and the option that says how many.
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
        name: as ONNX Runtime calls it: CUDAExecutionProvider.
        options: its options; values are strings, as ONNX Runtime takes them.
        device: the memory that inputs and outputs are bound in; None for the host's.
    """

    name: str
    options: Mapping[str, str] = field(default_factory=dict)
    device: str | None = None

    @property
    def short(self) -> str:
        """The name as people say it: cuda."""
        return next((s for s, name in _SHORT.items() if name == self.name), self.name.removesuffix(_SUFFIX).lower())

    @property
    def device_id(self) -> int:
        """The number of the device, by its options."""
        number = self.options.get("device_id", "0")
        return int(number) if number.isdecimal() else 0

    def chain(self, threads: int | None = None) -> list[tuple[str, dict[str, Any]]]:
        """Return the providers that a session is opened with: this one, and the CPU for what it leaves over.

        Args:
            threads: threads within an operator, for a provider that has its own; None for the provider's default.
        """
        own = {_THREADS[self.name]: str(threads)} if threads is not None and self.name in _THREADS else {}
        chain = [(self.name, own | dict(self.options))]
        return chain if self.name == CPU else [*chain, (CPU, {})]

    def with_option(self, key: str, value: str) -> Provider:
        """Return the provider with another option."""
        return replace(self, options={**self.options, key: value})


def parse_provider(text: str) -> Provider:
    """Read a provider: a short name such as ``cuda``, or ONNX Runtime's own.

    Raises:
        UsageError: no provider has this name (OP608), or ONNX Runtime isn't installed (OP601).
    """
    runtime = import_onnxruntime()
    known = {name: name for name in runtime.get_all_providers()}
    known |= {name: name for name in runtime.get_available_providers()} | dict(_SHORT)
    name = known.get(text, known.get(text.lower()))
    if name is None:
        near = get_close_matches(text, known, n=1) or sorted(_SHORT)
        raise UsageError("OP608", f"there is no execution provider {text!r}", hint=f"did you mean {', '.join(near)}?")
    return Provider(name, device=_DEVICES.get(name))
