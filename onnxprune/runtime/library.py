"""The ONNX Runtime library: its import on demand, IR versions that it reads, session options, and custom operators."""

from __future__ import annotations

import functools
import importlib
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
from onnx import TensorProto, helper

from onnxprune.errors import UsageError

_SILENT = 4  # ONNX Runtime's level "fatal": other messages reach the user as our errors
_EXTRAS = "pip install 'onnxprune[cpu]' or 'onnxprune[gpu]', never both"
_registered: ContextVar[tuple[str, ...]] = ContextVar("custom_ops", default=())


def import_onnxruntime() -> ModuleType:
    """Import ONNX Runtime.

    Raises:
        UsageError: it isn't installed, or its installation is broken (OP601).
    """
    try:
        with _interrupted_afterwards():
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


@contextmanager
def _interrupted_afterwards() -> Iterator[None]:
    """Hold Ctrl-C back while ONNX Runtime is loaded for the first time: its extension module would swallow it."""
    usual = signal.getsignal(signal.SIGINT)
    main = threading.current_thread() is threading.main_thread()
    if "onnxruntime" in sys.modules or not main or not callable(usual):
        yield
        return
    held: list[tuple[int, Any]] = []
    signal.signal(signal.SIGINT, lambda number, frame: held.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
        if held:
            usual(*held[0])


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
    for library in _registered.get():
        options.register_custom_ops_library(library)
    return options


def probe_model() -> bytes:
    """Return a model that adds two numbers, of versions that every ONNX Runtime reads."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "probe", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    return bytes(model.SerializeToString())


@contextmanager
def custom_ops(*libraries: str | Path) -> Iterator[None]:
    """Register libraries of custom operators with every session that is opened in the context.

    A library is native code, and runs with the rights of this process: register only those that you trust.

    Args:
        *libraries: shared libraries that export ONNX Runtime's RegisterCustomOps.

    Raises:
        UsageError: a library is missing or isn't one (OP610), or ONNX Runtime isn't installed (OP601).

    Examples:
        >>> import onnxprune as op
        >>> with op.custom_ops():  # for example onnxruntime_extensions.get_library_path()
        ...     small = op.prune_model("models/digits_resnet.onnx", ratio=0.5)
    """
    for library in libraries:
        _try_library(Path(library))
    before = _registered.get()
    token = _registered.set(tuple(dict.fromkeys((*before, *(str(Path(p).resolve()) for p in libraries)))))
    try:
        yield
    finally:
        _registered.reset(token)


def registered_libraries() -> Sequence[str]:
    """Return the paths of the libraries of custom operators that sessions get now."""
    return _registered.get()


def _try_library(path: Path) -> None:
    """Raise an error if ONNX Runtime can't register a library of custom operators."""
    if not path.is_file():
        hint = "give the path of a shared library, such as libcustom.so"
        raise UsageError("OP610", "there is no such library of custom operators", where=str(path), hint=hint)
    runtime = import_onnxruntime()
    try:
        options = session_options(runtime, False, 1)
        options.register_custom_ops_library(str(path.resolve()))
        runtime.InferenceSession(probe_model(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        cause = " ".join(re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error)).split())[:300]
        hint = "give a shared library that was built for this system and exports RegisterCustomOps"
        raise UsageError(
            "OP610", f"ONNX Runtime can't register the library: {cause}", where=str(path), hint=hint
        ) from error
