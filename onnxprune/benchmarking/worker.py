"""Timing a model in a separate process, isolated from other models, which also measures its peak memory.

The processes exchange lines of JSON over the child's standard streams: one answer for each request. Inputs are passed
in an .npz file.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

import numpy as np
from onnx import ModelProto

from onnxprune import errors
from onnxprune.benchmarking.rounds import Seconds
from onnxprune.benchmarking.session import Feeds, TimedSession, peak_memory_since, reset_peak_memory
from onnxprune.benchmarking.settings import SessionSettings
from onnxprune.errors import BenchmarkError, OnnxPruneError
from onnxprune.model.file import save
from onnxprune.runtime.library import custom_ops, registered_libraries
from onnxprune.runtime.provider import Provider

_START = "import sys; sys.path[:] = {path!r}; from onnxprune.benchmarking.worker import main; main()"


class TimedProcess:
    """A child process with an open model; a context manager that ends the process.

    Attributes:
        load: seconds to open the model.
        first: seconds of the first run.
    """

    def __init__(self, model: ModelProto | Path, feeds: Feeds, settings: SessionSettings) -> None:
        """Start a process and open a model there.

        Raises:
            OnnxPruneError: any error in the process.
            BenchmarkError: the process died (OP802).
        """
        self._folder = TemporaryDirectory(ignore_cleanup_errors=True)
        folder = Path(self._folder.name)
        if isinstance(model, ModelProto):
            save(model, folder / "model.onnx")
            model = folder / "model.onnx"
        np.savez(folder / "feeds.npz", *feeds.values())  # by position: names may be those of savez's own parameters
        command = [sys.executable, "-c", _START.format(path=sys.path)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            opened = self._ask(
                model=str(model),
                feeds=str(folder / "feeds.npz"),
                names=list(feeds),
                settings=asdict(settings),
                custom_ops=registered_libraries(),
            )
        except BaseException:
            self.close()
            raise
        self.load, self.first = float(opened["load"]), float(opened["first"])
        self._options = {str(k): str(v) for k, v in opened["options"].items()}
        self._copies = opened["copies"]

    def block(self, runs: int) -> Seconds:
        """Run the model a number of times in a row; return the seconds of each run, shape (runs,)."""
        return np.array(self._ask(runs=runs)["seconds"], dtype=np.float64)

    def copies(self) -> tuple[float, float] | None:
        """Return the seconds to copy inputs to the device and outputs back; None without a device."""
        return None if self._copies is None else (self._copies[0], self._copies[1])

    def provider_options(self) -> dict[str, str]:
        """Return the provider's effective options."""
        return self._options

    def peak_memory(self) -> int | None:
        """Return the model's peak memory in bytes, from opening it until now; None if unsupported."""
        peak = self._ask(peak=True)["peak"]
        return None if peak is None else int(peak)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):  # a request that a dead process never read is still in the buffer
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._folder.cleanup()

    def __enter__(self) -> TimedProcess:
        """Return the process."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End the process."""
        self.close()

    def _ask(self, **request: Any) -> Mapping[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            cause = f"the process that ran the model exited with status {self._process.wait()}"
            raise BenchmarkError("OP802", cause, hint="ONNX Runtime or a provider crashed, or memory ran out")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            kind, code, cause, where, hint = answer["error"]
            raise getattr(errors, kind)(code, cause, where=where, hint=hint)
        return answer


def main() -> None:
    """Run the child process: open the model, then answer requests until the input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # keeps a provider's output out of the answers

    def answer(**fields: Any) -> None:
        answers.write(json.dumps(fields) + "\n")
        answers.flush()

    base = reset_peak_memory()
    try:
        opened = _open(json.loads(sys.stdin.readline()))
    except OnnxPruneError as error:
        answer(error=[type(error).__name__, error.code, error.cause, error.where, error.hint])
        return
    answer(load=opened.load, first=opened.first, options=opened.provider_options(), copies=opened.copies())
    for line in sys.stdin:
        request = json.loads(line)
        if "runs" in request:
            answer(seconds=opened.block(request["runs"]).tolist())
        else:
            answer(peak=peak_memory_since(base))


def _open(request: Mapping[str, Any]) -> TimedSession:
    settings = dict(request["settings"])
    settings["provider"] = Provider(**settings["provider"])
    with np.load(request["feeds"], allow_pickle=False) as arrays:
        feeds = {name: arrays[f"arr_{i}"] for i, name in enumerate(request["names"])}
    with custom_ops(*request["custom_ops"]):
        return TimedSession(Path(request["model"]), feeds, SessionSettings(**settings))
