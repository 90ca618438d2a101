"""A model in a process of its own: nothing that another model did disturbs it, and its peak of memory is its own.

The two processes talk in lines of JSON over the child's standard streams: the parent sends a request, the child answers
each with one line. Inputs travel in an .npz file.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

import numpy as np
from onnx import ModelProto

from onnxprune import errors
from onnxprune.benchmarking.session import Feeds, Opened, forget_peak, peak_memory_since
from onnxprune.benchmarking.settings import SessionSettings
from onnxprune.benchmarking.statistics import Seconds
from onnxprune.errors import BenchmarkError, OnnxPruneError
from onnxprune.model.file import save
from onnxprune.runtime.provider import Provider

_START = "import sys; sys.path[:] = {path!r}; from onnxprune.benchmarking.worker import main; main()"


class Worker:
    """A child process that has a model open; used in a ``with`` statement, at whose end it leaves.

    Attributes:
        load: seconds that opening took there.
        first: seconds of the first run.
    """

    def __init__(self, model: ModelProto | Path, feeds: Feeds, settings: SessionSettings) -> None:
        """Start a process and open a model there.

        Raises:
            OnnxPruneError: whatever went wrong there.
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
                model=str(model), feeds=str(folder / "feeds.npz"), names=list(feeds), settings=asdict(settings)
            )
        except BaseException:
            self.close()
            raise
        self.load, self.first = float(opened["load"]), float(opened["first"])
        self._options = {str(k): str(v) for k, v in opened["options"].items()}
        self._copies = opened["copies"]

    def block(self, runs: int) -> Seconds:
        """Run the model so many times in a row; seconds of each run."""
        return np.array(self._ask(runs=runs)["seconds"], dtype=np.float64)

    def copies(self) -> tuple[float, float] | None:
        """Return the seconds that copies to and from the device take; None where nothing is copied."""
        return None if self._copies is None else (self._copies[0], self._copies[1])

    def provider_options(self) -> dict[str, str]:
        """Return the options that the provider really runs with."""
        return self._options

    def peak_memory(self) -> int | None:
        """Return the bytes that the model took at most, from opening it until now; None where nobody keeps count."""
        peak = self._ask(peak=True)["peak"]
        return None if peak is None else int(peak)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._folder.cleanup()

    def __enter__(self) -> Worker:
        """Give the worker itself."""
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
            cause = f"the process that ran the model ended with status {self._process.wait()}"
            raise BenchmarkError("OP802", cause, hint="ONNX Runtime or a provider crashed, or memory ran out")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            kind, code, cause, where, hint = answer["error"]
            raise getattr(errors, kind)(code, cause, where=where, hint=hint)
        return answer


def main() -> None:
    """Be the child."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what a provider prints mustn't come between the answers

    def answer(**fields: Any) -> None:
        answers.write(json.dumps(fields) + "\n")
        answers.flush()

    base = forget_peak()
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


def _open(request: Mapping[str, Any]) -> Opened:
    settings = dict(request["settings"])
    settings["provider"] = Provider(**settings["provider"])
    with np.load(request["feeds"], allow_pickle=False) as arrays:
        feeds = {name: arrays[f"arr_{i}"] for i, name in enumerate(request["names"])}
    return Opened(Path(request["model"]), feeds, SessionSettings(**settings))
