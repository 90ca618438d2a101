"""A training step in ONNX Runtime, and the state that goes from one to the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune._runtime import Provider, run, session
from onnxprune.train.step import NEXT, NUMBER, RATE, Step

Arrays = Mapping[str, NDArray[Any]]


class GraphMachine:
    """Runs training steps.

    Attributes:
        state: weights, statistics and what the optimiser keeps.
        number: how many steps were made.
    """

    def __init__(self, step: Step, *, providers: Sequence[Provider], threads: int | None) -> None:
        """Open the graphs of a step.

        Raises:
            ModelError: ONNX Runtime refuses a graph (OP122).
            UsageError: ONNX Runtime (OP601) or a provider (OP608) isn't available.
        """
        self.step = step
        self.state = dict(step.state)
        self.number = 0
        self._gradients = session(step.gradients, providers=providers, threads=threads)
        self._update = None if step.update is None else session(step.update, providers=providers, threads=threads)

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

    def _run(self, opened: Any, given: Arrays) -> dict[str, Any]:
        names = [i.name for i in opened.get_inputs()]
        found = run(opened, {n: np.asarray(given[n] if n in given else self.state[n]) for n in names})
        for name in [n for n in found if n.endswith(NEXT)]:
            self.state[name.removesuffix(NEXT)] = found.pop(name)
        return found

    def keep(self) -> Arrays:
        """Return all that is needed to go on."""
        return self.state

    def restore(self, state: Arrays, number: int) -> None:
        """Go on from what was kept after so many steps."""
        self.state, self.number = dict(state), number

    @property
    def weights(self) -> dict[str, NDArray[Any]]:
        """The model's initialisers as they are now."""
        return {name: self.state[name] for name in self.step.weights}
