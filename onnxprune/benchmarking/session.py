"""Sessions that are run and timed, and the process's memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.benchmarking.rounds import Seconds
from onnxprune.benchmarking.settings import SessionSettings
from onnxprune.errors import ModelError
from onnxprune.errors.words import one_line
from onnxprune.model import session as _runtime
from onnxprune.runtime.library import import_onnxruntime

Feeds = Mapping[str, NDArray[Any]]
Run = Callable[[], Any]

_COPIES = 10  # of inputs and outputs, whose median is reported


def samples_of(feeds: Feeds) -> int:
    """Return the batch size: the longest first axis of inputs with two or more axes."""
    return max((len(array) for array in feeds.values() if array.ndim > 1), default=1)


class TimedSession:
    """A session with its inputs.

    On a device, inputs are copied once and outputs stay there (IOBinding), so that runs take the model's own time;
    copies are timed separately.

    Attributes:
        session: ONNX Runtime's session.
        load: seconds to open it.
        first: seconds of the first run, in which providers allocate, tune and compile.
    """

    def __init__(self, model: ModelProto | bytes | Path, feeds: Feeds, settings: SessionSettings) -> None:
        """Open a model and run it once.

        Raises:
            UsageError: the provider isn't available or doesn't start (OP608).
            ModelError: ONNX Runtime can't load or run the model (OP122).
        """
        start = perf_counter()
        self.session = _runtime.session(
            model, providers=settings.chain(), threads=settings.threads, configure=settings.configure
        )
        self.load = perf_counter() - start
        self._feeds, self._settings = dict(feeds), settings
        self._device = settings.provider.device
        self._run: Run = self._bound() if self._device is not None else self._plain()
        start = perf_counter()
        self._once()
        self.first = perf_counter() - start

    def block(self, runs: int) -> Seconds:
        """Run it a number of times in a row; return the seconds of each run, shape (runs,)."""
        run, times = self._run, np.empty(runs)
        for i in range(runs):
            start = perf_counter()
            run()
            times[i] = perf_counter() - start
        return times

    def copies(self) -> tuple[float, float] | None:
        """Return the seconds to copy inputs to the device and outputs back; None without a device."""
        if self._device is None:
            return None
        outputs = self._binding.get_outputs()
        there = _timed(lambda: [self._place(array) for array in self._feeds.values()])
        back = _timed(lambda: [value.numpy() for value in outputs])
        return there, back

    def provider_options(self) -> dict[str, str]:
        """Return the provider's effective options; the given ones if it reports none."""
        given = self._settings.chain()[0][1]
        options = given | self.session.get_provider_options().get(self._settings.provider.name, {})
        return {str(key): str(value) for key, value in options.items()}

    def _once(self) -> None:
        try:
            self._run()
        except Exception as error:  # ONNX Runtime raises several undocumented types
            raise ModelError("OP122", f"ONNX Runtime can't run the model: {one_line(error, 400)}") from error

    def _plain(self) -> Run:
        names, run, feeds = [o.name for o in self.session.get_outputs()], self.session.run, self._feeds
        return lambda: run(names, feeds)

    def _bound(self) -> Run:
        binding = self.session.io_binding()
        for name, array in self._feeds.items():
            binding.bind_ortvalue_input(name, self._place(array))
        for output in self.session.get_outputs():
            binding.bind_output(output.name, self._device, self._settings.provider.device_id)
        self._binding = binding

        def run() -> None:
            self.session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return run

    def _place(self, array: NDArray[Any]) -> Any:
        runtime = import_onnxruntime()
        return runtime.OrtValue.ortvalue_from_numpy(array, self._device, self._settings.provider.device_id)


def _timed(work: Run) -> float:
    times = []
    for _ in range(_COPIES):
        start = perf_counter()
        work()
        times.append(perf_counter() - start)
    return median(times)


def peak_memory_since(base: int | None) -> int | None:
    """Return the bytes by which this process's peak memory exceeds a base; None if unsupported."""
    high = memory("VmHWM")
    return None if base is None or high is None else max(0, high - base)


def reset_peak_memory() -> int | None:
    """Reset this process's peak memory counter; return its memory in bytes, None if unsupported."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # see proc_pid_clear_refs(5)
        return memory("VmRSS")
    return None


def memory(key: str) -> int | None:
    """Return an entry of this process's memory status in bytes; None on systems other than Linux."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    return None
