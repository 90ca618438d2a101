"""How to shrink a model in several stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from onnxprune.settings.declare import Rule, Settings, setting
from onnxprune.settings.hardware import HardwareName
from onnxprune.settings.planning import Target, Targets, all_targets
from onnxprune.settings.pruning import LIMIT, READING, DataSettings
from onnxprune.settings.running import RunSettings
from onnxprune.settings.types import Share

StageName = Literal["clean", "prune", "quantize"]
Effort = Literal["quick", "normal", "thorough"]

EFFORTS: Mapping[Effort, Mapping[StageName, Mapping[str, Any]]] = {
    "quick": {
        "prune": {"limit": 128},
        "quantize": {"limit": 32, "kind": ("static", "dynamic"), "calibration": "minmax"},
    },
    "normal": {"prune": {"limit": LIMIT}},
    "thorough": {"prune": {"limit": 2048}, "quantize": {"limit": 512}},
}
"""What an effort sets of the stages."""


@dataclass(frozen=True, slots=True)
class ShrinkSettings(Settings):
    """How to shrink a model in several stages."""

    _rules: ClassVar = (
        Rule("checkpoint", ["resume"], "{other} needs a checkpoint", "name the file with {first}", forbids=False),
        Rule(
            "data",
            [*READING, "max_drop"],
            "{other} needs inputs",
            "give some with {first}; labels are optional, and random generates synthetic inputs",
            forbids=False,
        ),
    )

    stages: tuple[StageName, ...] = setting(
        (), "Stages to try, in this order: clean, prune, quantize.", shown="all of them"
    )
    max_drop: Share | None = setting(
        None,
        "Allow this drop in accuracy in all, against the file; without labels, this disagreement with it. Each stage "
        "may use what those before it have left.",
        at_least=0,
        below=1,
        shown="without `target`, what goes unnoticed: what the file itself loses on inputs shifted by a hair",
    )
    target: Targets | None = setting(
        None,
        "Upper limit on a cost of the file, as `onnxprune prune` takes it: macs, params, size, memory or latency, such "
        "as latency=50%, size=5MB or speedup=2x. Of several, all hold. Pruning removes only what cleaning and "
        "quantization don't bring.",
        metavar="COST=LIMIT",
        least=1,
        read=Target.parse,
    )
    objective: Literal["latency", "size"] = setting(
        "latency", "What stages are for: none may make the model slower (latency), or larger (size)."
    )
    effort: Effort = setting("normal", "How many samples and forms are tried.")
    hardware: HardwareName | None = setting(
        None,
        "Hardware that the model is for: which multiples of channels and which kinds of numbers it prefers. Times are "
        "measured on it if it is here.",
        flag="--for",
        shown="this machine's CPU",
    )
    also: tuple[str, ...] = setting(
        (),
        "Run, time and compare the result on this execution provider, too: openvino, cuda, ... or ONNX Runtime's name "
        "of it. One that isn't installed is noted.",
        metavar="NAME",
    )
    timed: bool = setting(True, "Leave out stages that make the model slower on this machine.")
    samples: DataSettings = setting(DataSettings, "Inputs to prune, repair, calibrate and judge by.")
    threads: int | None = setting(None, "Number of threads within an operator.", at_least=1, shown="all cores")
    seed: int = setting(0, "Random seed.", at_least=0)
    running: RunSettings = setting(RunSettings, "How ONNX Runtime runs models.")
    options: Any = setting(
        dict, "Settings of the stages: a dictionary for each, by the name of the stage.", by_hand=True
    )
    checkpoint: Any = setting(None, "Save the stages that are done to this file.", metavar="FILE")
    resume: bool = setting(False, "Resume from `checkpoint`, if the file exists.")

    @property
    def targets(self) -> tuple[Target, ...]:
        """All targets."""
        return all_targets(self.target)
