"""The targets of `shrink`: what a model costs, which targets it misses, and what is left to pruning."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from onnx import ModelProto

from onnxprune.benchmarking.speed import Speed
from onnxprune.cost.cost import stored_weights
from onnxprune.errors import OnnxPruneError
from onnxprune.settings import DataSettings
from onnxprune.settings.planning import Target
from onnxprune.workflow.analysis import TracedModel, analyze

log = logging.getLogger(__name__)

SHARED = frozenset({"size", "memory", "latency"})
"""Costs that other stages than pruning bring down, too."""

_SAFE = 1 - 1e-5  # of a limit: recipes hold it in six digits


@dataclass(frozen=True, slots=True)
class Costs:
    """What a model costs, and the file.

    Attributes:
        file: the costs of the file, by quantity: counts, bytes, seconds.
        own: the costs of the model; those that can't be measured are missing.
        untimed: why there is no latency; "" if there is, or nobody asked.
    """

    file: Mapping[str, float]
    own: Mapping[str, float]
    untimed: str = ""


class Goals:
    """Upper limits on what a model costs, relative to its file."""

    def __init__(
        self,
        targets: Sequence[Target],
        file: TracedModel,
        samples: DataSettings,
        speed: Callable[[ModelProto], tuple[Speed | None, str]],
    ) -> None:
        """Take the limits.

        Args:
            targets: the limits, of the file.
            file: the traced file.
            samples: the data, whose sizes models are counted at.
            speed: times a model against the file; returns why not if that can't be done.
        """
        self.targets, self._file, self._samples, self._speed = tuple(targets), file, samples, speed
        self.quantities = {target.quantity for target in targets}

    @property
    def text(self) -> str:
        """The limits in words."""
        return " and ".join(f"{t.quantity}={t.text}" for t in self.targets)

    def costs(self, model: ModelProto, speed: Speed | None = None, untimed: str = "") -> Costs:
        """Measure what a model costs, as far as it is limited.

        Args:
            model: the model.
            speed: how it compares with the file, if that is known.
            untimed: why it isn't.
        """
        file: dict[str, float] = dict(self._file.cost.totals())
        own: dict[str, float] = dict(zip(("params", "size"), stored_weights(model.graph), strict=True))
        if "latency" in self.quantities and speed is None and not untimed:
            speed, untimed = self._speed(model)
        if speed is not None:
            file["latency"], own["latency"] = speed.before, speed.after
        if self.quantities & {"macs", "memory"}:
            try:
                own |= {
                    name: value
                    for name, value in analyze(model, data=self._samples).cost.totals().items()
                    if name not in own
                }
            except OnnxPruneError as error:
                log.debug("not counted: %s", error)
        return Costs(file, own, untimed)

    def excess(self, costs: Costs) -> float:
        """Return the largest ratio of a cost to its limit: at most 1 if all targets are met."""
        return max((_ratio(t, costs) for t in self.targets), default=0.0)

    def missed(self, costs: Costs) -> list[str]:
        """Return the targets that aren't met, in words."""
        found = []
        for target in self.targets:
            name = target.quantity
            if name not in costs.own:
                found.append(f"{name} wasn't measured{costs.untimed and f' ({costs.untimed})'}")
            elif _ratio(target, costs) > 1:
                is_ = replace(target, value=max(costs.own[name], 1e-12), absolute=True)
                limit = replace(target, value=target.limit(costs.file[name]), absolute=True)
                found.append(f"{name} is {is_.shown}, and {limit.shown} was asked for")
        return found

    def left(self, costs: Costs, brought: Mapping[str, float]) -> tuple[Target, ...]:
        """Return the targets that are left to pruning: absolute, without those that are met.

        Args:
            costs: what the model to prune costs.
            brought: what later stages are expected to leave of each cost, a share.
        """
        found = []
        for target in self.targets:
            if target.quantity not in costs.own:
                found.append(target)
                continue
            limit = target.limit(costs.file[target.quantity]) / brought.get(target.quantity, 1.0)
            if costs.own[target.quantity] > limit:
                found.append(Target.parse(str(replace(target, value=limit * _SAFE, absolute=True))))
        return tuple(found)

    def eased(self, targets: Sequence[Target], costs: Costs) -> tuple[Target, ...]:
        """Return limits half way to what a model costs."""
        return tuple(t.eased(costs.file[t.quantity], costs.own[t.quantity]) for t in targets if t.quantity in costs.own)


def share_left(before: Costs, after: Costs) -> dict[str, float]:
    """Return the share that a stage left of each shared cost; at most 1."""
    names = SHARED & before.own.keys() & after.own.keys()
    return {name: min(1.0, after.own[name] / before.own[name]) for name in names if before.own[name] > 0}


def _ratio(target: Target, costs: Costs) -> float:
    name = target.quantity
    return costs.own[name] / max(target.limit(costs.file[name]), 1e-12) if name in costs.own else float("inf")
