"""Optimizers that rewrite a graph without changing what it computes, each run in a process of its own.

They are others' code and rewrite files that they have never seen. In a process of its own, one that crashes, hangs or
calls `exit` costs nothing but its result.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
from onnx import GraphProto, ModelProto, NodeProto

from onnxprune.errors import ModelError
from onnxprune.model.bodies import close_bodies
from onnxprune.model.checks import subgraphs
from onnxprune.model.file import load, save
from onnxprune.model.session import message_of
from onnxprune.model.wire import copy_without
from onnxprune.runtime.library import custom_ops, import_onnxruntime, registered_libraries, session_options
from onnxprune.settings.cleaning import OptimizerName

_START = "import sys; sys.path[:] = {path!r}; from onnxprune.cleaning.optimizers import main; main()"
_LARGE = 2**30  # bytes of weights from which they are kept beside the file


def _onnxruntime(source: Path, target: Path) -> None:
    """Save what ONNX Runtime makes of a graph by the rewrites that keep standard operators (its basic level)."""
    runtime = import_onnxruntime()
    options = session_options(runtime, False, 1)
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    if sum(file.stat().st_size for file in source.parent.iterdir()) > _LARGE:
        name = f"{target.name}.data"
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", name)
    runtime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


def _onnxsim(source: Path, target: Path) -> None:
    """Save what onnxsim makes of a graph."""
    import onnxsim

    simplified, _ = onnxsim.simplify(onnx.load(source))
    large = source.with_name(f"{source.stem}.onnx.data").is_file()
    onnx.save(simplified, target, save_as_external_data=large, location=f"{target.name}.data")


OPTIMIZERS: Mapping[OptimizerName, Callable[[Path, Path], None]] = {"onnxruntime": _onnxruntime, "onnxsim": _onnxsim}
"""Functions that read a file and write another, by the package that does it."""


def installed(name: OptimizerName) -> bool:
    """Whether the package of an optimizer is there."""
    return importlib.util.find_spec(name) is not None


def optimize(model: ModelProto, name: OptimizerName, *, seconds: float) -> ModelProto:
    """Return what an optimizer makes of a model; its inputs, outputs and metadata stay as they are declared.

    Args:
        model: a normalized model.
        name: the optimizer.
        seconds: the time it may take.

    Raises:
        ModelError: it fails, takes longer, or writes an invalid model or one with other inputs or outputs (OP129).

    Examples:
        >>> import onnxprune as op
        >>> model = op.analyze("models/digits_resnet.onnx").graph.proto
        >>> before = len(model.graph.node)
        >>> len(optimize(model, "onnxruntime", seconds=60).graph.node) < before
        True
    """
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        source, target = Path(folder, "source.onnx"), Path(folder, "target.onnx")
        save(close_bodies(model), source)
        command = [sys.executable, "-c", _START.format(path=sys.path)]
        request = json.dumps([name, str(source), str(target), list(registered_libraries())])
        try:
            done = subprocess.run(command, input=request, capture_output=True, text=True, timeout=seconds)
        except subprocess.TimeoutExpired as error:
            raise ModelError("OP129", f"{name} doesn't finish within {seconds:g} s") from error
        if done.returncode or not target.is_file():
            said = done.stderr.strip().splitlines()[-1:] or [f"it ended with status {done.returncode}"]
            raise ModelError("OP129", f"{name} fails: {said[0][:300]}")
        try:
            found = load(target).proto
        except ModelError as error:
            raise ModelError("OP129", f"{name} writes an invalid model: {error.cause}") from error
    return _as_declared(model, found, name)


def _as_declared(model: ModelProto, found: ModelProto, name: str) -> ModelProto:
    """Return an optimized graph in the shell of the model that it was made of."""
    for what in ("input", "output"):
        wanted, got = ([value.name for value in getattr(m.graph, what)] for m in (model, found))
        weights = {tensor.name for tensor in found.graph.initializer}
        if [n for n in got if n not in weights] != wanted:
            raise ModelError("OP129", f"{name} changes the {what}s of the model")
    shell = copy_without(model, "graph", "opset_import", "functions")
    used = {_domain(node.domain) for node in _nodes(found.graph)} | {""}
    shell.opset_import.extend(o for o in found.opset_import if found.functions or _domain(o.domain) in used)
    shell.ir_version = max(model.ir_version, found.ir_version)
    shell.functions.extend(found.functions)
    shell.graph.CopyFrom(found.graph)
    for what in ("input", "output"):
        values = getattr(shell.graph, what)
        del values[:]
        values.extend(getattr(model.graph, what))
    shell.graph.name = model.graph.name
    return shell


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for body in subgraphs(node):
            yield from _nodes(body)


def main() -> None:
    """Run an optimizer in this process: its name, the files and libraries of operators come as JSON on stdin."""
    name, source, target, libraries = json.loads(sys.stdin.read())
    try:
        with custom_ops(*libraries):
            OPTIMIZERS[name](Path(source), Path(target))
    except Exception as error:  # of many kinds: this is others' code
        print(f"{type(error).__name__}: {message_of(error)}", file=sys.stderr)
        sys.exit(1)
