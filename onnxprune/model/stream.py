"""A network run on calibration inputs, a stretch at a time.

To repair layer after layer, tensors ever deeper in a network are wanted on the same inputs. Running it from the start
each time would cost the square of its depth. A stream holds the tensors at a *cut*, everything that nodes behind it
read of nodes before it, and moves the cut along; where they would take too much memory the cut stays, and runs get
longer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.model.bodies import in_body
from onnxprune.model.graph import extract, reads
from onnxprune.model.session import run, session

Inputs = Mapping[str, NDArray[Any]]
Batches = Callable[[], Iterable[Inputs]]

_BUDGET = 2 * 2**30


class Stream:
    """A model whose tensors can be asked for, batch by batch.

    Attributes:
        model: the model. Its weights may change behind the cut.
    """

    def __init__(self, model: ModelProto, batches: Batches, budget: int = _BUDGET) -> None:
        """Start with the cut at the model's inputs.

        Args:
            model: a model in topological order.
            batches: gives the inputs, anew at each call, always the same.
            budget: how many bytes of tensors to hold.
        """
        self.model = model
        self._batches = batches
        self._budget = budget
        self._held: list[dict[str, NDArray[Any]]] | None = None

    def tensors(self, names: Iterable[str], of: ModelProto | None = None) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield tensors for each batch of inputs.

        Args:
            names: the tensors.
            of: a model that is the same in front of the cut; the stream's own by default.
        """
        names = list(dict.fromkeys(names))
        source: Iterable[Inputs] = self._batches() if self._held is None else self._held
        runner, feeds = None, set[str]()
        for batch in source:
            ready = {n: batch[n] for n in names if n in batch}
            missing = [n for n in names if n not in ready]
            if missing and runner is None:
                runner = session(extract(of or self.model, missing, batch), configure=_yielding)
                feeds = {i.name for i in runner.get_inputs()}
            if missing:
                ready |= run(runner, {n: a for n, a in batch.items() if n in feeds})
            yield ready

    def advance(self, position: int) -> None:
        """Move the cut to the front of the node at a position, if the tensors there fit the budget."""
        nodes = self.model.graph.node
        while position and in_body(nodes[position - 1]):  # which stand in front of their If and run only with it
            position -= 1
        made = {i.name for i in self.model.graph.input} | {o for n in nodes[:position] for o in n.output}
        read = {n for node in nodes[position:] for n in reads(node)}
        read |= {o.name for o in self.model.graph.output}
        live = sorted(n for n in made & read if n)
        held: list[dict[str, NDArray[Any]]] = []
        count = None if self._held is None else len(self._held)
        for i, batch in enumerate(self.tensors(live)):
            size = sum(a.nbytes if isinstance(a, np.ndarray) else self._budget + 1 for a in batch.values())
            if count is None:
                held.append(batch)
                if size * len(held) > self._budget:
                    return
            elif size * count > self._budget and i == 0:
                return
            else:  # what is in front of the cut is let go at once
                assert self._held is not None
                self._held[i] = batch
        if count is None:
            self._held = held


def _yielding(options: Any) -> None:
    """Let ONNX Runtime's threads sleep between runs, when NumPy's are at work: spinning, they would be in their way."""
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
