"""What the proof compares of a model that selects by value: also the tensors in front, and outputs of one selection."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from onnx import ModelProto

from onnxprune.model.bodies import in_body
from onnxprune.model.graph import extract
from onnxprune.rewrite.difference import difference
from onnxprune.rewrite.masked import masked
from onnxprune.rewrite.running import Proof, Way
from onnxprune.trace.outputs import followed
from onnxprune.trace.pruned_graph import PrunedGraph


class Selection:
    """The selection at the end of a model, if it has one.

    Attributes:
        fronts: the tensors in front of it.
        uncertain: the outputs behind it; rounding can change what they hold.
        note: what is compared in addition to outputs, None without a selection.
    """

    def __init__(self, kept: PrunedGraph, pruned: ModelProto) -> None:
        """Find the selection.

        Args:
            kept: the traced original and what was removed from it.
            pruned: the pruned model.
        """
        self._models = kept.original.proto, pruned
        outputs = [value.name for value in pruned.graph.output]
        found = followed(kept.original.proto)
        self.uncertain = found.replaced.keys()
        single = self.uncertain and not kept.graph.states  # models with states are run for several steps at once
        stand_ins = [name for name in found.tensors if name not in outputs] if single else []
        self.fronts = self._in_both(stand_ins)
        choices = self._in_both(found.choices)
        whole = (len(choices), len(self.fronts)) == (len(found.choices), len(stand_ins))
        self._choices = choices if single and whole else []  # without all that leads to it, the selection isn't proved
        self.note = found.note() if self.fronts else None

    def same(self, way: Way, proof: Proof, outputs: Sequence[str]) -> dict[str, float]:
        """Return the differences of outputs if the pruned model is given the masked original's selection.

        Args:
            way: how the models are run.
            proof: the models.
            outputs: the outputs. The result is empty if the selection can't be given.
        """
        if not self._choices:
            return {}
        whole = proof.draws.fixed(masked(proof.kept), narrow=False)
        taken = proof.compute(extract(whole, self._choices), proof.inputs)
        given = {name: array for name, array in taken.items() if isinstance(array, np.ndarray)}
        if len(given) < len(self._choices):
            return {}
        found = {name: 0.0 for name in outputs if name in given}
        if behind := [name for name in outputs if name not in given]:
            run = proof.outputs(way, only=behind, given=given)
            found |= {name: difference(run.pruned[name], run.masked[name]) for name in behind}
        return found

    def _in_both(self, tensors: Iterable[str]) -> list[str]:
        """Return those of some tensors that both models compute whenever they run."""
        made = [{name for node in m.graph.node if not in_body(node) for name in node.output} for m in self._models]
        return [name for name in tensors if all(name in names for names in made)]
