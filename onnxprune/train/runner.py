"""Training steps run by ONNX Runtime, and the state that each step updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import TrainingError
from onnxprune.model.session import Provider, run, session
from onnxprune.runtime.library import import_onnxruntime
from onnxprune.train.step import NEXT, NUMBER, RATE, SKIPPED, TrainingStep

Arrays = Mapping[str, NDArray[Any]]

_DEVICES = {"CUDAExecutionProvider": "cuda", "DmlExecutionProvider": "dml", "MIGraphXExecutionProvider": "cuda"}
"""Device memory of providers, by its name in ONNX Runtime's IOBinding."""


def _save_memory(options: Any) -> None:
    """Allocate memory on demand: planned in advance, a step's tensors need a third more."""
    options.enable_mem_pattern = False


class HostRunner:
    """Runs training steps with the state in host memory.

    Attributes:
        graphs: the graphs of a step.
        number: number of steps run, without those that were skipped.
    """

    def __init__(self, graphs: TrainingStep, *, providers: Sequence[Provider], threads: int | None) -> None:
        """Open the graphs of a step.

        Raises:
            ModelError: ONNX Runtime refuses a graph (OP122).
            UsageError: ONNX Runtime (OP601) or a provider (OP608) isn't available.
        """
        self.graphs = graphs
        self.number = 0
        self._state: dict[str, Any] = {}
        self.load_state(graphs.state, 0)
        opened = partial(session, providers=providers, threads=threads, configure=_save_memory)
        self._gradients = opened(graphs.gradients)
        self._update = None if graphs.update is None else opened(graphs.update)

    def step(self, batches: Sequence[Arrays], rate: float) -> dict[str, float]:
        """Run one step on one batch, or on several that accumulate.

        Returns:
            The losses, means over the batches, and whether the step was skipped (`SKIPPED`), as a loss or a gradient
            isn't finite: then the state is what it was before.

        Raises:
            TrainingError: an input that decides which body of an If runs has another value than before (OP902).
        """
        for name, value in self.graphs.fixed.items():
            if any((batch[name] != value).any() for batch in batches):
                cause = f"{name} decides which body of an If is trained, and differs between samples"
                raise TrainingError("OP902", cause, hint=f"train on the samples with one value of {name}")
        known = {RATE: np.array(rate, np.float32), NUMBER: np.array(self.number + 1, np.float32)}
        before = dict(self._state)
        found = [self._run(self._gradients, {**known, **batch}) for batch in batches]
        if self._update is not None:
            self._run(self._update, known)
        skipped = any(one[SKIPPED] for one in found)
        if skipped:
            self._state = before
        else:
            self.number += 1
        means = {name: float(np.mean([one[name] for one in found])) for name in self.graphs.losses}
        return {**means, SKIPPED: float(skipped)}

    @property
    def state(self) -> Arrays:
        """Current weights, statistics and optimizer state: everything needed to resume."""
        return {name: self._array(value) for name, value in self._state.items()}

    @property
    def weights(self) -> Arrays:
        """The model's current initializers."""
        return {name: self._array(self._state[name]) for name in self.graphs.weights}

    def load_state(self, state: Arrays, number: int) -> None:
        """Resume from the state after a number of steps."""
        self._state, self.number = dict(state), number

    def put(self, arrays: Arrays) -> None:
        """Replace some tensors of the state."""
        self._state |= arrays

    @staticmethod
    def _array(value: Any) -> NDArray[Any]:
        return np.asarray(value)

    def _run(self, opened: Any, given: Arrays) -> dict[str, Any]:
        names = [i.name for i in opened.get_inputs()]
        found = run(opened, {n: np.asarray(given[n] if n in given else self._state[n]) for n in names})
        for name in [n for n in found if n.endswith(NEXT)]:
            self._state[name.removesuffix(NEXT)] = found.pop(name)
        return found


class DeviceRunner(HostRunner):
    """Runs training steps with the state in device memory.

    The next state is written to new memory, never over the current one, which ONNX Runtime may still be reading.
    """

    def __init__(
        self, graphs: TrainingStep, *, providers: Sequence[Provider], threads: int | None, device: tuple[str, int]
    ) -> None:
        """Open the graphs of a step, and move the state to a device."""
        self._device = device
        super().__init__(graphs, providers=providers, threads=threads)

    def load_state(self, state: Arrays, number: int) -> None:
        """Resume from the state after a number of steps."""
        self._state, self.number = {}, number
        self.put(state)

    def put(self, arrays: Arrays) -> None:
        """Replace some tensors of the state."""
        move = import_onnxruntime().OrtValue.ortvalue_from_numpy
        self._state |= {name: move(np.ascontiguousarray(array), *self._device) for name, array in arrays.items()}

    @staticmethod
    def _array(value: Any) -> NDArray[Any]:
        array: NDArray[Any] = value.numpy()
        return array

    def _run(self, opened: Any, given: Arrays) -> dict[str, Any]:
        binding = opened.io_binding()
        for entry in opened.get_inputs():
            if entry.name in given:
                binding.bind_cpu_input(entry.name, np.ascontiguousarray(given[entry.name]))
            else:
                binding.bind_ortvalue_input(entry.name, self._state[entry.name])
        names = [entry.name for entry in opened.get_outputs()]
        for name in names:
            binding.bind_output(name, *(self._device if name.endswith(NEXT) else ("cpu", 0)))
        opened.run_with_iobinding(binding)
        found = dict(zip(names, binding.get_outputs(), strict=True))
        self._state |= {name.removesuffix(NEXT): value for name, value in found.items() if name.endswith(NEXT)}
        return {name: value.numpy() for name, value in found.items() if not name.endswith(NEXT)}


def runner_for(graphs: TrainingStep, *, providers: Sequence[Provider], threads: int | None) -> HostRunner:
    """Return the runner of a step for the first of some providers."""
    name, options = (providers[0], {}) if isinstance(providers[0], str) else providers[0]
    if name not in _DEVICES:
        return HostRunner(graphs, providers=providers, threads=threads)
    device = _DEVICES[name], int(options.get("device_id", 0))
    return DeviceRunner(graphs, providers=providers, threads=threads, device=device)
