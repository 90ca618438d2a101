"""The ONNX Runtime library: its import on demand, the IR versions that it reads, and session options."""

from __future__ import annotations

import functools
import importlib
import re
from types import ModuleType
from typing import Any

import onnx

from onnxprune.errors import UsageError

_SILENT = 4  # ONNX Runtime's level "fatal": other messages reach the user as our errors
_EXTRAS = "pip install 'onnxprune[cpu]' or 'onnxprune[gpu]', never both"


def import_onnxruntime() -> ModuleType:
    """Import ONNX Runtime.

    Raises:
        UsageError: it isn't installed, or its installation is broken (OP601).
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
        # Uninstalling one of the two builds leaves the other without its modules.
        hint = "uninstall onnxruntime and onnxruntime-gpu, then " + _EXTRAS
        raise UsageError("OP601", "the installation of onnxruntime is incomplete", hint=hint)
    return module


@functools.cache
def max_ir_version() -> int:
    """Return the newest IR version that the installed ONNX Runtime reads; onnx's own version without ONNX Runtime."""
    try:
        runtime = import_onnxruntime()
    except UsageError:
        return int(onnx.IR_VERSION)
    opset = onnx.OperatorSetIdProto(version=17)
    probe = onnx.ModelProto(ir_version=2**30, opset_import=[opset], graph=onnx.GraphProto())
    try:  # only the error message contains it
        runtime.InferenceSession(probe.SerializeToString(), session_options(runtime, False, None))
    except Exception as error:
        if match := re.search(r"max supported IR version: (\d+)", str(error)):
            return int(match[1])
    return int(onnx.IR_VERSION)


def session_options(runtime: ModuleType, optimize: bool, threads: int | None) -> Any:
    """Return session options: silent, with or without graph optimization, with a number of threads."""
    options = runtime.SessionOptions()
    options.log_severity_level = _SILENT
    levels = runtime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    return options
