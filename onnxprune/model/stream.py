"""Run a network on calibration inputs, one part after the other.

Repairing layer after layer needs tensors ever deeper in a network, on the same inputs. Running it from the start each
time would cost the square of its depth. A stream holds the tensors at a *cut*: everything that nodes after it read of
nodes before it. The cut moves along with the layers, unless its tensors would take too much memory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
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


def _sleeping(options: Any) -> None:
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # spinning threads slow down NumPy


class Stream:
    """A model's tensors on calibration inputs, batch by batch.

    Attributes:
        model: the model. Its weights may change after the cut.
    """

    def __init__(
        self,
        model: ModelProto,
        batches: Batches,
        budget: int = _BUDGET,
        *,
        unmade: Collection[str] = (),
        keep: Collection[str] = (),
    ) -> None:
        """Start with the cut at the model's inputs.

        Args:
            model: a model in topological order.
            batches: returns the inputs; the same ones at each call.
            budget: the bytes of tensors that may be held.
            unmade: tensors that can't be computed.
            keep: tensors to hold even if no node after the cut reads them.
        """
        self.model = model
        self._unmade = unmade
        self._batches = batches
        self._budget = budget
        self._keep = frozenset(keep)
        self._held: list[dict[str, NDArray[Any]]] | None = None

    def tensors(self, names: Iterable[str], of: ModelProto | None = None) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield tensors for each batch of inputs.

        Args:
            names: the tensors.
            of: a model that is the same before the cut; the stream's own by default.
        """
        names = list(dict.fromkeys(names))
        source: Iterable[Inputs] = self._batches() if self._held is None else self._held
        runner, feeds = None, set[str]()
        for batch in source:
            ready = {n: batch[n] for n in names if n in batch}
            missing = [n for n in names if n not in ready]
            if missing and runner is None:
                runner = session(extract(of or self.model, missing, batch), configure=_sleeping)
                feeds = {i.name for i in runner.get_inputs()}
            if missing:
                ready |= run(runner, {n: a for n, a in batch.items() if n in feeds})
            yield ready

    def advance(self, position: int) -> None:
        """Move the cut to just before the node at a position, if the tensors there fit the budget."""
        nodes = self.model.graph.node
        while position and in_body(nodes[position - 1]):  # which come before their If and run only with it
            position -= 1
        made = {i.name for i in self.model.graph.input} | {o for n in nodes[:position] for o in n.output}
        read = {n for node in nodes[position:] for n in reads(node)}
        read |= self._keep
        live = sorted(n for n in made & read if n and n not in self._unmade)
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
            else:  # frees what was before the cut
                assert self._held is not None
                self._held[i] = batch
        if count is None:
            self._held = held
