"""How to sweep: which trade-off, how many trials, kept where, and on which hardware."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from onnxprune.errors import PlanError
from onnxprune.settings.declare import Rule, Settings, setting
from onnxprune.settings.pipeline import Effort
from onnxprune.settings.planning import Limited
from onnxprune.settings.pruning import READING, DataSettings
from onnxprune.settings.running import RunSettings
from onnxprune.settings.types import Share

Objective = Literal["accuracy", "macs", "size", "params", "memory", "latency"]

_TIMES = {"s": 1, "m": 60, "min": 60, "h": 3600}


@dataclass(frozen=True, slots=True)
class SweepSettings(Settings):
    """How to look for the best trade-offs of a model."""

    _rules: ClassVar = (
        Rule("join", ["store"], "both {first} and {other} name a store", "drop one"),
        Rule("join", ["trials", "objective", "max_drop", "effort", "seed", *READING], "the store says {other} already"),
        Rule("on", ["provider", "tag"], "workers of a cluster have no {other} of their own", "drop one"),
        Rule("on", ["count"], "{other} needs a cluster", "name it with {first}", forbids=False),
    )

    store: str | None = setting(
        None,
        "Where trials are kept: a file of this machine (the default kind, or sqlite:///FILE), or what several machines "
        "reach: postgresql://USER@HOST/NAME, grpc://HOST:PORT.",
        metavar="STORE",
    )
    join: str | None = setting(None, "Work for the sweep that this store has already.", metavar="STORE")
    trials: int = setting(60, "Number of trials, of all workers together.", at_least=1)
    time: str | None = setting(
        None, "Begin no trial after this time: 90s, 30m, 2h.", metavar="TIME", shown="until all trials are done"
    )
    objective: tuple[Objective, ...] = setting(
        ("accuracy", "macs", "size"),
        "What is traded, at least two: accuracy (the drop against the file; without labels the disagreement with it), "
        "macs, size (bytes of the file), params, memory (peak of activations), latency (measured).",
        least=2,
        shown="accuracy,macs,size",
    )
    max_drop: Share = setting(
        0.2, "Stop measuring a model once it surely loses more accuracy than this.", at_least=0, below=1
    )
    samples: DataSettings = setting(DataSettings, "Inputs to repair, calibrate and judge by.")
    effort: Effort = setting("normal", "How many samples and forms are tried for each model.")
    provider: str | None = setting(
        None,
        "Execution provider that latency is measured on; a worker that has one measures the best models there, too.",
        metavar="NAME",
        shown="cpu if latency is an objective",
    )
    tag: str | None = setting(
        None,
        "Name of this machine's hardware: latencies are compared between machines of the same tag only.",
        shown="the provider's short name",
    )
    keep_models: str | None = setting(
        None,
        "Folder for the models of the front, with their recipes.",
        metavar="FOLDER",
        shown="STORE.models beside a store that is a file, else none",
    )
    on: str | None = setting(
        None,
        "Work on a cluster: ray://HOST:PORT, or ray:// for the one that this machine belongs to, or dask://HOST:PORT.",
        metavar="CLUSTER",
    )
    count: int | None = setting(
        None, "Number of workers on the cluster.", flag="--workers", at_least=1, shown="one for each machine"
    )
    threads: int | None = setting(None, "Number of threads within an operator.", at_least=1, shown="all cores")
    seed: int = setting(0, "Random seed.", at_least=0)
    running: RunSettings = setting(RunSettings, "How ONNX Runtime runs models.")

    def __post_init__(self) -> None:
        """Check the fields, the time, and that nothing is traded for itself.

        Raises:
            PlanError: a field isn't allowed (OP303), or two contradict each other (OP302).
        """
        Settings.__post_init__(self)
        if len(set(self.objective)) < len(self.objective):
            raise PlanError("OP303", "an objective is named twice", where="objective")
        if "accuracy" not in self.objective:
            cause = "without accuracy, the smallest model is the best"
            raise PlanError("OP303", cause, where="objective", hint="name accuracy and what it is traded for")
        self.seconds  # noqa: B018, refuses what is no time

    @property
    def seconds(self) -> float:
        """The time in seconds; infinite if there is no limit."""
        if self.time is None:
            return float("inf")
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|m|min|h)\s*", self.time)
        if found is None:
            raise PlanError("OP303", f"{self.time!r} is no time", where="time", hint="write 90s, 30m or 2h")
        return float(found[1]) * _TIMES[found[2]]


@dataclass(frozen=True, slots=True)
class PickSettings(Settings):
    """Which model of a sweep to take."""

    _rules: ClassVar = (
        Rule("latency_on", ["minimize"], "{first} says what decides, so {other} has no effect", "drop one"),
    )

    max_drop: Share = setting(
        help="Allow this drop in accuracy, as the sweep has measured it; other samples then judge the model.",
        at_least=0,
        below=1,
    )
    minimize: Limited | None = setting(
        None,
        "The cost that decides: macs, params, size, memory or latency.",
        shown="the first one that the sweep trades accuracy for",
    )
    latency_on: str | None = setting(
        None, "Take the model that is fastest on hardware of this tag, on which a worker has timed it.", metavar="TAG"
    )
    model: Any = setting(None, "The model's file, if it isn't where the store says.", metavar="FILE.onnx")
    data: Any = setting(None, "The data, if they aren't where the store says.", metavar="DATA")
