"""Run models of any size in ONNX Runtime, and turn its failures into our errors."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx
from google.protobuf.message import EncodeError

from onnxprune.errors import ModelError, UsageError
from onnxprune.model.bodies import close_bodies
from onnxprune.model.file import save
from onnxprune.runtime.library import import_onnxruntime, session_options

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_REAL = (np.float16, np.float64, onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16))

Provider: TypeAlias = "str | tuple[str, dict[str, Any]]"

# How ONNX Runtime says that it has no such operator, or not for these types.
_UNKNOWN = "not a registered function/op|No [Oo]p registered|find an implementation for|Type Error: Type '"
_MISSING = (
    "this execution provider has no such operator, or not for this type: if a library of custom operators has it, give "
    "it with `custom_ops`"
)


_THREADS: ContextVar[int | None] = ContextVar("threads", default=None)


@contextmanager
def with_threads(count: int | None) -> Iterator[None]:
    """Set the number of threads within an operator for all sessions that don't set their own; None changes nothing."""
    token = _THREADS.set(_THREADS.get() if count is None else count)
    try:
        yield
    finally:
        _THREADS.reset(token)


def session(
    model: onnx.ModelProto | bytes | Path,
    *,
    providers: Sequence[Provider] = ("CPUExecutionProvider",),
    optimize: bool = True,
    threads: int | None = None,
    configure: Callable[[Any], None] | None = None,
) -> InferenceSession:
    """Open a model in ONNX Runtime.

    Args:
        model: The model; a ModelProto may be larger than 2 GiB.
        providers: Execution providers in order of preference, each a name or (name, options).
        optimize: Whether ONNX Runtime may optimize the graph.
        threads: Threads within an operator; by default those of `with_threads`, or ONNX Runtime's default.
        configure: Called with the SessionOptions to set anything else.

    Raises:
        UsageError: ONNX Runtime (OP601) or a provider (OP608) isn't available.
        ModelError: ONNX Runtime refuses the model (OP122).
    """
    runtime = import_onnxruntime()
    wanted = [provider if isinstance(provider, str) else provider[0] for provider in providers]
    _require(wanted, runtime.get_available_providers())
    options = session_options(runtime, optimize, _THREADS.get() if threads is None else threads)
    if configure is not None:
        configure(options)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        try:
            opened: InferenceSession = runtime.InferenceSession(
                _loadable(model, Path(folder)),
                options,
                providers=list(providers),
                enable_fallback=0,  # otherwise it prints to stdout and continues with another provider
            )
        except ModelError:
            raise
        except Exception as error:
            cause = f"ONNX Runtime can't load the model: {message_of(error)}"
            hint = _MISSING if re.search(_UNKNOWN, str(error)) else None
            raise ModelError("OP122", cause, hint=hint) from error
    _require(wanted, opened.get_providers())  # a provider that fails to start is dropped silently
    return opened


def run(opened: InferenceSession, feeds: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Run a session on named inputs and return every output by its name.

    Arrays of other real types are converted where the model takes float32.

    Raises:
        ModelError: ONNX Runtime can't run the model on these inputs (OP122).
    """
    names = [output.name for output in opened.get_outputs()]
    wide = {entry.name for entry in opened.get_inputs() if entry.type == "tensor(float)"}
    arrays = {name: array for name, array in feeds.items() if name in wide and isinstance(array, np.ndarray)}
    real = {name: array.astype(np.float32) for name, array in arrays.items() if array.dtype in _REAL}
    try:
        return dict(zip(names, opened.run(names, {**feeds, **real}), strict=True))
    except Exception as error:
        cause = f"ONNX Runtime can't run the model: {message_of(error)}"
        raise ModelError("OP122", cause) from error


def _loadable(model: onnx.ModelProto | bytes | Path, folder: Path) -> bytes | str:
    """Return what InferenceSession takes: the model's bytes, or a file in `folder` if it is too large for that."""
    if isinstance(model, bytes):
        return model
    if isinstance(model, Path):
        return str(model)
    model = close_bodies(model)
    try:
        return bytes(model.SerializeToString())
    except EncodeError:  # above 2 GiB
        save(model, folder / "model.onnx", external=True)
        return str(folder / "model.onnx")


def _require(wanted: Sequence[str], present: Sequence[str]) -> None:
    for name in wanted:
        if name not in present:
            raise UsageError(
                "OP608",
                f"the execution provider {name} isn't available",
                hint=f"available: {', '.join(present)}; the command `doctor` explains why one is missing",
            )


def message_of(error: Exception) -> str:
    """Return ONNX Runtime's message without its prefix, file positions and signatures."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    return re.sub(r"^/\S+:\d+ .*?\) (?=[A-Z])", "", text)[:400]
