"""ONNX Runtime itself: imported when first needed, and the newest models that it reads."""

from __future__ import annotations

import functools
import importlib
import re
from types import ModuleType
from typing import Any

import onnx

from onnxprune.errors import UsageError

_SILENT = 4  # ONNX Runtime's "fatal": everything below reaches the user through our errors
_EXTRAS = "pip install 'onnxprune[cpu]' or 'onnxprune[gpu]', never both"


def import_onnxruntime() -> ModuleType:
    """Import ONNX Runtime.

    Raises:
        UsageError: It isn't installed, or its installation is broken (OP601).
    """
    try:
        module = importlib.import_module("onnxruntime")
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise UsageError("OP601", f"onnxruntime can't be imported: {error}") from error
        raise UsageError("OP601", "onnxruntime isn't installed", hint=_EXTRAS) from error
    except ImportError as error:
        raise UsageError("OP601", f"onnxruntime can't be imported: {error}") from error
    if not hasattr(module, "InferenceSession"):
        # Uninstalling one of the two builds leaves a hollow package of the other.
        hint = "uninstall onnxruntime and onnxruntime-gpu, then " + _EXTRAS
        raise UsageError("OP601", "the installation of onnxruntime is incomplete", hint=hint)
    return module


@functools.cache
def max_ir_version() -> int:
    """Give the newest IR version that the installed ONNX Runtime reads (onnx's own without it)."""
    try:
        runtime = import_onnxruntime()
    except UsageError:
        return int(onnx.IR_VERSION)
    opset = onnx.OperatorSetIdProto(version=17)
    probe = onnx.ModelProto(ir_version=2**30, opset_import=[opset], graph=onnx.GraphProto())
    try:  # no API tells, but the refusal does
        runtime.InferenceSession(probe.SerializeToString(), session_options(runtime, False, None))
    except Exception as error:
        if match := re.search(r"max supported IR version: (\d+)", str(error)):
            return int(match[1])
    return int(onnx.IR_VERSION)


def session_options(runtime: ModuleType, optimize: bool, threads: int | None) -> Any:
    """Return session options: silent, the graph optimized or not, a number of threads."""
    options = runtime.SessionOptions()
    options.log_severity_level = _SILENT
    levels = runtime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    return options
