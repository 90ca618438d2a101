"""The settings of each stage of `shrink`: what is common to all, of the effort, of the hardware, and the user's own."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxprune.benchmarking.session import Feeds
from onnxprune.errors import OnnxPruneError, UsageError
from onnxprune.runtime.provider import CPU, Provider
from onnxprune.settings import PruneSettings
from onnxprune.settings.declare import flat
from onnxprune.settings.hardware import HARDWARE
from onnxprune.settings.pipeline import EFFORTS, ShrinkSettings
from onnxprune.settings.planning import Target
from onnxprune.settings.reading import build, read
from onnxprune.workflow.planning import read_plan
from onnxprune.workflow.stages import CHOICES, STAGES, Stage

_BUDGETS = frozenset({"ratio", "plan", "target", "remove_blocks"})  # settings of `prune` that say how much to remove


@dataclass(frozen=True, slots=True, eq=False)
class StageSettings:
    """What the settings of stages are made of.

    Attributes:
        shrink: the settings of the pipeline.
        provider: where models run.
        timed: whether time decides.
        data: the samples that stages work with; None without data.
        example: inputs of the model; None before the data are read.
        multiple: the multiple of channels that pruning keeps where time decides; None for the usual ones.
    """

    shrink: ShrinkSettings
    provider: Provider
    timed: bool
    data: Any = None
    example: Feeds | None = None
    multiple: int | None = None

    @property
    def budgeted(self) -> bool:
        """Whether the user's own settings of pruning say how much to remove."""
        return bool(_BUDGETS & self.shrink.options.get("prune", {}).keys())

    @property
    def exact(self) -> bool:
        """Whether the user's own settings of quantization say which form to make."""
        return "form" in self.shrink.options.get("quantize", {})

    def check(self) -> None:
        """Refuse what is wrong before the work.

        Raises:
            UsageError: there is no such stage or setting (OP602).
            PlanError: a setting isn't allowed (OP302, OP303), or a plan can't be read (OP305).
        """
        names = [stage.name for stage in STAGES]
        if unknown := self.shrink.options.keys() - set(names):
            raise UsageError("OP602", f"there is no stage {min(unknown)!r}", hint=f"stages are {', '.join(names)}")
        for stage in STAGES:
            try:
                found = self.of(stage, None if self.data is None else 0.0)
                if isinstance(found, PruneSettings) and isinstance(found.plan, str | os.PathLike):
                    read_plan(found.plan)
            except OnnxPruneError as error:
                where = error.where or f"settings of {stage.name}"
                if where in self.shrink.options.get(stage.name, {}):
                    where = f"{stage.name}.{where}"
                raise error.at(where) from error

    def of(
        self,
        stage: Stage,
        left: float | None = None,
        targets: Sequence[Target] = (),
        milder: Mapping[str, Any] | None = None,
    ) -> Any:
        """Return the settings of a stage.

        Args:
            stage: the stage.
            left: the drop that it may add.
            targets: the limits that it is to meet.
            milder: settings after a try that changed answers too much; they replace the user's own.
        """
        shrink, named = self.shrink, self.shrink.hardware
        values: dict[str, Any] = {
            "seed": shrink.seed,
            "threads": shrink.threads,
            "custom_ops": shrink.running.custom_ops,
            "timed": self.timed and self.provider.name == CPU,  # stages know the CPU's times only
            "provider": None if self.provider.short == "cpu" else self.provider.short,
            **EFFORTS[shrink.effort].get(stage.name, {}),
        }
        if named is not None:
            hardware = HARDWARE[named]
            values |= {"round_to": hardware.channels, "kind": hardware.kinds, "weight_bits": hardware.weight_bits}
        if stage.name == "quantize" and values["timed"]:
            limited = {t.quantity for t in shrink.targets}
            values["objective"] = "size" if "size" in limited and "latency" not in limited else shrink.objective
        if stage.name == "prune" and targets:
            values["target"] = tuple(targets)  # what that costs is judged afterwards
        elif stage.name == "prune":
            values["max_drop"] = left
            if shrink.objective == "size" and left is not None:
                values["minimize"] = "size"
            elif named is None and values["timed"] and left is not None:
                values["round_to"] = self.multiple
        own = read(stage.settings, shrink.options.get(stage.name, {})) | dict(milder or {})
        known = {declared.name for declared in flat(stage.settings)}
        common = {name: value for name, value in values.items() if name in known and value is not None}
        if _BUDGETS & own.keys():
            common = {name: value for name, value in common.items() if name not in ("max_drop", "target", "minimize")}
        if "form" in own:
            common = {name: value for name, value in common.items() if name not in CHOICES}
        if stage.name == "clean" and self.data is not None and self.example is not None:
            common["inputs"] = self.example
        if stage.lossy and self.data is not None:
            common["data"] = self.data
            if shrink.samples.limit is not None:
                common["limit"] = shrink.samples.limit
        else:
            common = {n: v for n, v in common.items() if n not in ("limit", "calibration", "max_drop")}
        return build(stage.settings, {**common, **own})
