"""Pruning and quantization together: each leaves to the other what that can bring, or may lose.

The model is quantized alone first, which tells what that brings and loses. Pruning then gets the rest, and the pruned
model is quantized. The result is never worse than the model that is quantized alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from onnxprune.model.wire import pieces
from onnxprune.progress import Progress, counted
from onnxprune.settings.pipeline import StageName
from onnxprune.settings.planning import Target
from onnxprune.workflow.goals import Goals, share_left
from onnxprune.workflow.judging import Judge
from onnxprune.workflow.verdicts import Reached, Verdict

_ROUNDS = 3  # of pruning and quantization that meet targets together
_AS_EXPECTED = 1.005  # times what quantization was expected to leave, up to which pruning isn't repeated
_SURE = 1.01  # times what it left the last time, which pruning then reckons with
_RESERVE = 0.8  # of the drop that quantization leaves: it loses more of a pruned model


@dataclass(frozen=True, slots=True)
class Share:
    """What is left to a stage.

    Attributes:
        drop: the drop that it may add; None for an equal part of what is allowed, for each stage that may lose.
        targets: the limits that it must meet; None for those of the user that aren't met.
    """

    drop: float | None = None
    targets: tuple[Target, ...] | None = None


WHOLE = Share()
"""What a stage gets that shares with none."""


class Run(Protocol):
    """A function that runs stages."""

    def __call__(self, name: StageName, reached: Reached, record: str | None = None, share: Share = WHOLE) -> Reached:
        """Run a stage on what is reached, under the name of its record."""


@dataclass(frozen=True, slots=True)
class Together:
    """Pruning and quantization as one step of the pipeline.

    Attributes:
        goals: the user's targets.
        judge: judges models.
        run: runs a stage.
        progress: called with phases and their parts.
    """

    goals: Goals
    judge: Judge
    run: Run
    progress: Progress

    def steps(self, start: Reached) -> Iterator[Reached]:
        """Yield the best so far, each better than the one before."""
        return self._to_targets(start) if self.goals.targets else self._within_the_drop(start)

    def _within_the_drop(self, start: Reached) -> Iterator[Reached]:
        """Prune by the drop that quantization leaves; by half of what is allowed, if both together lose too much."""
        alone = self.run("quantize", start, "quantize alone")
        quantized = alone.verdicts[-1]
        yield _only(start, alone, Verdict("prune", False, "interrupted"))
        allowed = self.judge.allowed or 0.0
        lost = max(0.0, quantized.drop.value) if quantized.kept and quantized.drop is not None else 0.0
        first = max(allowed / 2, _RESERVE * (allowed - lost)) if quantized.kept else allowed
        for drop in dict.fromkeys((first, allowed / 2) if quantized.kept else (first,)):
            pruned = self.run("prune", start, f"prune by {drop:.6g}", Share(drop))
            found = pruned.verdicts[-1]
            if not found.kept:
                yield _only(start, alone, found)
            elif not quantized.kept:
                yield pruned.then(quantized)
            else:
                both = self.run("quantize", pruned, f"quantize after {drop:.6g}")
                better = self._better(alone, both)
                yield both if better.kept else _only(start, alone, replace(found, kept=False, why=better.why))
                if both.verdicts[-1].kept and both.verdicts[-1].tries == 1:
                    return

    def _better(self, alone: Reached, both: Reached) -> Verdict:
        """Return whether what is pruned, too, is worth more than what is quantized alone."""
        before, after = alone.model.proto, both.model.proto
        verdict = Verdict("prune", True, "", size=(pieces(before)[0], pieces(after)[0]))
        told = counted(self.progress, "time what is pruned against what is quantized alone")
        found = self.judge.pays(verdict, before, after, told, lossy=True)
        return found if found.kept else replace(found, why=f"next to quantization alone, {found.why}")

    def _to_targets(self, start: Reached) -> Iterator[Reached]:
        """Prune no more than what quantization can't bring.

        If that brings less than expected, or is left out, the model is pruned again.
        """
        costs = self.goals.costs(start.model.proto)
        if not self.goals.missed(costs):
            yield (kept := start.then(Verdict("prune", False, f"{self.goals.text} holds without removing channels")))
            yield self.run("quantize", kept)
            return
        alone = self.run("quantize", start, "quantize alone")
        after = self.goals.costs(alone.model.proto)
        told = f"{self.goals.text} holds with quantization, without removing channels"
        yield _only(start, alone, Verdict("prune", False, told if not self.goals.missed(after) else "interrupted"))
        best = self.goals.excess(after)
        expected = share_left(costs, after)
        for number in range(1, _ROUNDS + 1):
            if best <= 1:
                return
            pruned = self.run("prune", start, f"prune {number}", Share(targets=self.goals.left(costs, expected)))
            both = self.run("quantize", pruned, f"quantize {number}")
            before, after = (self.goals.costs(reached.model.proto) for reached in (pruned, both))
            if number == 1 or self.goals.excess(after) < best:
                yield both
                best = self.goals.excess(after)
            brought = share_left(before, after)
            as_expected = all(brought[name] <= _AS_EXPECTED * expected.get(name, 1.0) for name in brought)
            if not pruned.verdicts[-1].kept or pruned.verdicts[-1].tries > 1 or as_expected:
                return
            expected = {name: min(1.0, share * _SURE) for name, share in brought.items()}


def _only(start: Reached, alone: Reached, prune: Verdict) -> Reached:
    """Return what is quantized alone, with the verdict on pruning."""
    return replace(alone, verdicts=(*start.verdicts, prune, alone.verdicts[-1]))
