"""A training step in ONNX Runtime, and the state that goes from one to the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.model.session import Provider, run, session
from onnxprune.runtime.library import import_onnxruntime
from onnxprune.train.step import NEXT, NUMBER, RATE, TrainingStep

Arrays = Mapping[str, NDArray[Any]]

_DEVICES = {"CUDAExecutionProvider": "cuda", "DmlExecutionProvider": "dml", "MIGraphXExecutionProvider": "cuda"}
"""Devices of providers that have memory of their own which ONNX Runtime lets us bind."""


def _sparing(options: Any) -> None:
    """Let ONNX Runtime take memory as it goes: laid out in advance, a step's tensors need a third more."""
    options.enable_mem_pattern = False


class GraphMachine:
    """Runs training steps; the state is in the computer's memory.

    Attributes:
        step: the step.
        number: how many were made.
    """

    def __init__(self, step: TrainingStep, *, providers: Sequence[Provider], threads: int | None) -> None:
        """Open the graphs of a step.

        Raises:
            ModelError: ONNX Runtime refuses a graph (OP122).
            UsageError: ONNX Runtime (OP601) or a provider (OP608) isn't available.
        """
        self.step = step
        self.number = 0
        self._state: dict[str, Any] = {}
        self.restore(step.state, 0)
        opened = partial(session, providers=providers, threads=threads, configure=_sparing)
        self._gradients = opened(step.gradients)
        self._update = None if step.update is None else opened(step.update)

    def feed(self, batches: Sequence[Arrays], rate: float) -> dict[str, float]:
        """Make one step from one batch, or from as many as accumulate.

        Returns:
            The losses, means over the batches.
        """
        known = {RATE: np.array(rate, np.float32), NUMBER: np.array(self.number + 1, np.float32)}
        losses = [self._run(self._gradients, {**known, **batch}) for batch in batches]
        if self._update is not None:
            self._run(self._update, known)
        self.number += 1
        return {name: float(np.mean([found[name] for found in losses])) for name in self.step.losses}

    @property
    def state(self) -> dict[str, NDArray[Any]]:
        """Weights, statistics and what the optimizer keeps, as they are now."""
        return {name: np.asarray(value) for name, value in self._state.items()}

    @property
    def weights(self) -> Arrays:
        """The model's initializers as they are now."""
        return {name: np.asarray(self._state[name]) for name in self.step.weights}

    def keep(self) -> Arrays:
        """Return all that is needed to go on."""
        return self.state

    def restore(self, state: Arrays, number: int) -> None:
        """Go on from what was kept after so many steps."""
        self._state, self.number = dict(state), number

    def _run(self, opened: Any, given: Arrays) -> dict[str, Any]:
        names = [i.name for i in opened.get_inputs()]
        found = run(opened, {n: np.asarray(given[n] if n in given else self._state[n]) for n in names})
        for name in [n for n in found if n.endswith(NEXT)]:
            self._state[name.removesuffix(NEXT)] = found.pop(name)
        return found


class DeviceMachine(GraphMachine):
    """Runs training steps; the state stays on a device.

    What a state becomes is written to memory of its own, never over what it was: ONNX Runtime doesn't promise that
    nobody still reads that.
    """

    def __init__(
        self, step: TrainingStep, *, providers: Sequence[Provider], threads: int | None, device: tuple[str, int]
    ) -> None:
        """Open the graphs of a step, and bring the state to a device."""
        self._device = device
        super().__init__(step, providers=providers, threads=threads)

    @property
    def state(self) -> dict[str, NDArray[Any]]:
        """Weights, statistics and what the optimizer keeps, as they are now."""
        return {name: value.numpy() for name, value in self._state.items()}

    @property
    def weights(self) -> Arrays:
        """The model's initializers as they are now."""
        return {name: self._state[name].numpy() for name in self.step.weights}

    def restore(self, state: Arrays, number: int) -> None:
        """Go on from what was kept after so many steps."""
        move = import_onnxruntime().OrtValue.ortvalue_from_numpy
        self._state = {name: move(np.ascontiguousarray(array), *self._device) for name, array in state.items()}
        self.number = number

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


def machine_for(step: TrainingStep, *, providers: Sequence[Provider], threads: int | None) -> GraphMachine:
    """Return what runs a step on the first of some providers."""
    name, options = (providers[0], {}) if isinstance(providers[0], str) else providers[0]
    if name not in _DEVICES:
        return GraphMachine(step, providers=providers, threads=threads)
    device = _DEVICES[name], int(options.get("device_id", 0))
    return DeviceMachine(step, providers=providers, threads=threads, device=device)
